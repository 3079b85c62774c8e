//! The real server with an actor in it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use ds4_engine::store::{
    CompatInputs, CompatKey, SlotLayout, Store, StoreOptions, TurnLogOptions, WeightsFingerprint,
};
use ds4_engine::{Engine, OpenOptions, Scheduler};
use ds4_formats::gguf::Gguf;
use ds4_server::http::{ModelFacts, Server, ServerOptions, bind};
use tempfile::TempDir;

use crate::actor::{Actor, Takes};
use crate::play;

/// Replies in the making at once: agents ask for a title beside their first turn.
const N_SLOTS: usize = 2;

/// A running server.
pub(crate) struct Stage {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// The server.
    pub(crate) server: Arc<Server>,
    /// Holds the store.
    _folder: TempDir,
}

impl Stage {
    /// Listens on a port of this machine, 0 for a free one, with slots of so many tokens; lines of
    /// the server's log go to `log`.
    pub(crate) async fn open(
        port: u16,
        context: usize,
        log: impl Fn(String) + Clone + Send + Sync + 'static,
    ) -> Stage {
        let note = log.clone();
        let options = ServerOptions {
            log: Arc::new(move |line| log(line.to_string())),
            note: Arc::new(move |line| note(line.to_owned())),
            ..ServerOptions::default()
        };
        let bound = bind(([127, 0, 0, 1], port).into()).await;
        let bound = bound.expect("the port is free");
        let address = bound.address();
        let server = Server::new(options, true);
        tokio::spawn(bound.serve(Arc::clone(&server), std::future::pending()));
        let folder = tempfile::tempdir().expect("a temporary folder");
        load(&server, folder.path(), context);
        Stage {
            address,
            server,
            _folder: folder,
        }
    }
}

fn load(server: &Arc<Server>, folder: &Path, context: usize) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/ds4-small-q8_0.gguf");
    let gguf = Gguf::open(&path).expect("the built-in model is in the repository");
    let mut options = OpenOptions::new(&path);
    options.context = Some(context);
    options.n_slots = N_SLOTS;
    let engine = Engine::from_gguf(&gguf, &options, &mut |_| {}).expect("the model opens");
    let tokenizer = Arc::clone(engine.tokenizer().expect("the model has a tokenizer"));
    let facts = ModelFacts {
        name: engine.name().to_owned(),
        file_name: "ds4-small-q8_0.gguf".to_owned(),
        n_context: context,
        n_context_train: engine.geometry().max_context,
        n_slots: N_SLOTS,
        ..ModelFacts::default()
    };
    let layout = SlotLayout::new(engine.geometry(), options.rounding);
    let inputs = CompatInputs {
        geometry: engine.geometry(),
        weights: WeightsFingerprint::of(&gguf),
        tokenizer: [0; 32],
        numerics_class: "agents",
    };
    let store = StoreOptions {
        max_tokens: context,
        keep_free_bytes: 0,
        ..StoreOptions::default()
    };
    let key = CompatKey::new(&inputs, &layout);
    let store = Store::open(folder, store, key, layout).expect("the store opens");
    let log = store.open_turn_log(TurnLogOptions::default());
    let reader = Arc::clone(&tokenizer);
    let play = move |prompt: &[u32]| {
        let text = reader.decode(prompt);
        let text = text.expect("a prompt holds tokens of the vocabulary");
        Some(reader.encode(&play::reply(&text)))
    };
    let scheduler = Scheduler::new(engine).with_store(store);
    let actor = Actor::new(scheduler, Box::new(play), Takes::default());
    server
        .load(actor, tokenizer, facts, Some(log.expect("the log opens")))
        .expect("the engine has its thread");
}
