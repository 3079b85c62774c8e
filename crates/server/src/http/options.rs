//! What a server can be told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ds4_text::{Effort, Mode};

use crate::api::Preferences;
use crate::generation::Thinking;
use crate::log::RequestLine;
use crate::prompt::PromptRules;
use crate::trace::Trace;

/// The id under which the model is served unless said otherwise.
pub const DEFAULT_MODEL_ID: &str = "deepseek-v4-flash";
/// Most tokens of a reply unless said otherwise.
pub const DEFAULT_MAX_TOKENS: usize = 393_216;
/// Requests that can wait unless said otherwise.
pub const DEFAULT_MAX_QUEUE: usize = 128;
/// Bytes of a request's body unless said otherwise.
pub const DEFAULT_MAX_BODY_BYTES: usize = 64 << 20;
/// Bytes of a request's header block.
pub const MAX_HEADER_BYTES: usize = 64 << 10;
/// Longest silence of a client that is sending a request, unless said otherwise.
pub const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time that a client may take nothing of its answer, unless said otherwise.
pub const WRITE_STALL: Duration = Duration::from_secs(10);
/// Time that a connection may wait for a request, or for the rest of one, while all places are taken,
/// unless said otherwise. Whoever waits longer makes room for the next that comes.
pub const YIELDS_AFTER: Duration = Duration::from_secs(1);
/// Connections at once unless said otherwise: half of the files that systems let a program open.
pub const DEFAULT_MAX_CONNECTIONS: usize = 512;

/// Which web pages may use the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cors {
    /// None but its own.
    #[default]
    Off,
    /// Those of these origins.
    Origins(Vec<String>),
    /// All.
    Any,
}

/// What is told about the model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelFacts {
    /// Its name, as its file has it.
    pub name: String,
    /// The file's name, without its folder.
    pub file_name: String,
    /// Tokens of a context.
    pub n_context: usize,
    /// Tokens of the longest context it was made for.
    pub n_context_train: usize,
    /// Its weights.
    pub n_params: u64,
    /// Bytes of its weights.
    pub size_bytes: u64,
    /// Slots.
    pub n_slots: usize,
}

/// How a server behaves.
#[derive(Clone)]
pub struct ServerOptions {
    /// The id under which the model is served.
    pub model_id: String,
    /// Other names of it, with the thinking they ask for, if any.
    pub aliases: BTreeMap<String, Option<Thinking>>,
    /// Whether unknown model names are refused.
    pub strict_models: bool,
    /// Whether tools that only a vendor's servers can run are refused.
    pub strict_tools: bool,
    /// What it does where a request leaves a choice.
    pub preferences: Preferences,
    /// Thinking when a request says nothing of it.
    pub default_thinking: Thinking,
    /// Most tokens of a reply when a request says nothing.
    pub default_max_tokens: usize,
    /// Keys of which a request must carry one; none are needed when there are none.
    pub api_keys: Vec<String>,
    /// Which web pages may use the server.
    pub cors: Cors,
    /// Host names besides `localhost` and addresses that a request may be for.
    pub allowed_hosts: Vec<String>,
    /// Bytes of a body.
    pub max_body_bytes: usize,
    /// Longest silence of a client that is sending a request; one that has sent nothing of it
    /// is disconnected then.
    pub read_timeout: Duration,
    /// Longest time that a client may take nothing of its answer before it counts as gone.
    pub write_stall: Duration,
    /// Connections at once.
    pub max_connections: usize,
    /// Time after which a connection that waits for a request makes room for another.
    pub yields_after: Duration,
    /// Requests that can wait for a slot.
    pub max_queue: usize,
    /// Silence after which a stream says that it is alive; zero for never.
    pub ping_interval: Duration,
    /// Whether a reply that is not streamed is preceded by line feeds, which JSON allows, while it
    /// is long in coming. Its status is then 200, whatever comes of it.
    pub nonstream_keepalive: bool,
    /// Whether a client that closes its sending side is gone.
    pub half_close_cancels: bool,
    /// Time that running requests have when the server shuts down.
    pub shutdown_grace: Duration,
    /// Whether `/metrics` answers.
    pub metrics: bool,
    /// How prompts are rendered.
    pub prompt: PromptRules,
    /// Call ids whose turns are remembered; 0 remembers none.
    pub max_call_ids: usize,
    /// Reads the line that every request leaves.
    pub log: Arc<dyn Fn(&RequestLine) + Send + Sync>,
    /// Reads what else is worth knowing, one line at a time.
    pub note: Arc<dyn Fn(&str) + Send + Sync>,
    /// Where everything of a request is written, its text included; nowhere if not told.
    pub trace: Option<Arc<Trace>>,
}

impl Default for ServerOptions {
    fn default() -> ServerOptions {
        let thinking = |mode, effort| Thinking {
            mode,
            effort,
            budget: None,
        };
        let thinks = thinking(Mode::Thinking, Effort::High);
        ServerOptions {
            model_id: DEFAULT_MODEL_ID.to_owned(),
            aliases: BTreeMap::from([
                (
                    "deepseek-chat".to_owned(),
                    Some(thinking(Mode::Chat, Effort::None)),
                ),
                ("deepseek-reasoner".to_owned(), Some(thinks)),
                ("deepseek-v4-flash-0731".to_owned(), None),
            ]),
            strict_models: false,
            strict_tools: false,
            preferences: Preferences::default(),
            default_thinking: thinks,
            default_max_tokens: DEFAULT_MAX_TOKENS,
            api_keys: Vec::new(),
            cors: Cors::Off,
            allowed_hosts: Vec::new(),
            max_body_bytes: DEFAULT_MAX_BODY_BYTES,
            read_timeout: READ_TIMEOUT,
            write_stall: WRITE_STALL,
            max_connections: DEFAULT_MAX_CONNECTIONS,
            yields_after: YIELDS_AFTER,
            max_queue: DEFAULT_MAX_QUEUE,
            ping_interval: Duration::from_secs(5),
            nonstream_keepalive: false,
            half_close_cancels: true,
            shutdown_grace: Duration::from_secs(5),
            metrics: true,
            prompt: PromptRules::default(),
            max_call_ids: crate::turns::DEFAULT_MAX_CALL_IDS,
            log: Arc::new(|_| {}),
            note: Arc::new(|_| {}),
            trace: None,
        }
    }
}
