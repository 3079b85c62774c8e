//! A server whose device is lost: it says so, keeps what is stored, and goes on from there when it is
//! started again. `DS4_TEST_BACKEND=cuda` runs it on an NVIDIA device, which is then lost indeed; a
//! process that did that can use the device no more, so this test is to be run alone there.
//! `DS4_TEST_BACKEND=wgpu` runs it on a device of Vulkan or Metal, which is then destroyed.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ds4_conformance::faults::lose_device;
use ds4_conformance::golden::project_root;
use ds4_cuda::{CudaBackend, CudaOptions};
use ds4_engine::store::{
    CompatInputs, CompatKey, SlotLayout, Store, StoreOptions, WeightsFingerprint, list, verify,
};
use ds4_engine::{
    BackendKind, Batch, CacheRounding, Engine, Geometry, Group, OpenOptions, RewindError,
    Scheduler, SchedulerOptions, SlotState, Slots, StepError, StoredRows,
};
use ds4_model::{
    BackendError, Frontier, ImportError, MemoryPlan, OutputRow, RestoreError, SessionShape,
};
use ds4_server::http::{ModelFacts, ServerOptions};
use ds4_wgpu::{Gpu, WgpuOptions};
use serde_json::{Value, json};

use crate::backend::test_backend;
use crate::web::{Web, read_until};

/// Slots on a device that can be lost.
struct Losable {
    slots: Box<dyn Slots>,
    is_lost: Arc<AtomicBool>,
}

impl Losable {
    fn there(&self) -> Result<(), BackendError> {
        match self.is_lost.load(Ordering::Relaxed) {
            true => Err(BackendError::Lost("a test took it".to_owned())),
            false => Ok(()),
        }
    }
}

impl Slots for Losable {
    fn shape(&self) -> &SessionShape {
        self.slots.shape()
    }
    fn tokens(&self, slot: usize) -> &[u32] {
        self.slots.tokens(slot)
    }
    fn launch(&mut self, batch: &Batch) -> Result<(), StepError> {
        self.there()?;
        self.slots.launch(batch)
    }
    fn wait(&mut self) -> Result<(), StepError> {
        let done = self.slots.wait();
        self.there()?;
        done
    }
    fn output(&self, index: usize) -> OutputRow<'_> {
        self.slots.output(index)
    }
    fn read_logits(&mut self, index: usize, logits: &mut Vec<f32>) -> Result<(), BackendError> {
        self.there()?;
        self.slots.read_logits(index, logits)
    }
    fn step(&mut self, batch: &Batch) -> Result<&[f32], StepError> {
        self.there()?;
        self.slots.step(batch)
    }
    fn clear(&mut self, slot: usize) {
        self.slots.clear(slot);
    }
    fn rewind_floor(&self, slot: usize) -> usize {
        self.slots.rewind_floor(slot)
    }
    fn rewind(&mut self, slot: usize, len: usize) -> Result<(), RewindError> {
        self.slots.rewind(slot, len)
    }
    fn fork(&mut self, from: usize, to: usize) {
        self.slots.fork(from, to);
    }
    fn fork_at(&mut self, frontier: &Frontier, to: usize) -> Result<(), RestoreError> {
        self.there()?;
        self.slots.fork_at(frontier, to)
    }
    fn carry(&self, frontier: &Frontier, to: usize) -> Result<Frontier, RewindError> {
        self.slots.carry(frontier, to)
    }
    fn frontier(&mut self, slot: usize) -> Result<Frontier, BackendError> {
        self.there()?;
        self.slots.frontier(slot)
    }
    fn frontier_at(&mut self, slot: usize, len: usize) -> Result<Frontier, RestoreError> {
        self.there()?;
        self.slots.frontier_at(slot, len)
    }
    fn restore(&mut self, slot: usize, frontier: &Frontier) -> Result<(), RestoreError> {
        self.there()?;
        self.slots.restore(slot, frontier)
    }
    fn read_groups(
        &mut self,
        slot: usize,
        groups: &[Group],
    ) -> Result<Vec<StoredRows>, BackendError> {
        self.there()?;
        self.slots.read_groups(slot, groups)
    }
    fn export(&mut self, slot: usize) -> Result<(Vec<u32>, SlotState), BackendError> {
        self.there()?;
        self.slots.export(slot)
    }
    fn import(
        &mut self,
        slot: usize,
        tokens: &[u32],
        state: &SlotState,
    ) -> Result<(), ImportError> {
        self.there()?;
        self.slots.import(slot, tokens, state)
    }
    fn session_bytes(&self, shape: &SessionShape) -> MemoryPlan {
        self.slots.session_bytes(shape)
    }
    fn reopen(&mut self, shape: SessionShape) -> Result<(), BackendError> {
        self.there()?;
        self.slots.reopen(shape)
    }
    fn check_integrity(&self) -> Result<(), String> {
        self.slots.check_integrity()
    }
}

/// A server of the small model with its states in a folder, and what takes its device away.
async fn start(folder: &Path, backend: BackendKind) -> (Web, Arc<AtomicBool>) {
    let mut options = OpenOptions::new(project_root().join("models/ds4-small-q8_0.gguf"));
    options.backend = backend;
    options.context = Some(4096);
    let is_lost = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&is_lost);
    let engine = Engine::open(&options, &mut |_| {})
        .expect("the small model opens")
        .with_slots(|slots| {
            Box::new(Losable {
                slots,
                is_lost: flag,
            })
        });
    let layout = SlotLayout::new(engine.geometry(), CacheRounding::default());
    let inputs = CompatInputs {
        geometry: engine.geometry(),
        weights: WeightsFingerprint([9; 32]),
        tokenizer: [9; 32],
        numerics_class: "lost",
    };
    let key = CompatKey::new(&inputs, &layout);
    let store = StoreOptions {
        min_tokens: 64,
        max_tokens: engine.context(),
        keep_free_bytes: 0,
        ..StoreOptions::default()
    };
    let store = Store::open(folder, store, key, layout).expect("a store");
    let tokenizer = Arc::clone(engine.tokenizer().expect("a tokenizer"));
    let facts = ModelFacts {
        name: "Small".to_owned(),
        n_context: engine.context(),
        n_slots: 1,
        ..ModelFacts::default()
    };
    let keeping = SchedulerOptions {
        idle_save: Duration::ZERO,
        ..SchedulerOptions::default()
    };
    let scheduler = Scheduler::new(engine)
        .with_store(store)
        .with_options(keeping);
    let web = Web::loading(ServerOptions::default()).await;
    web.server
        .load(scheduler, tokenizer, facts, None)
        .expect("a thread");
    (web, is_lost)
}

async fn stop(mut web: Web) {
    web.begin_stop();
    let server = Arc::clone(&web.server);
    drop(web);
    let joined = tokio::task::spawn_blocking(move || server.join()).await;
    joined.expect("the worker ends");
}

fn n_points(folder: &Path) -> usize {
    let models = list(folder).unwrap_or_default();
    models.iter().map(|model| model.points.len()).sum()
}

const PATH: &str = "/v1/chat/completions";

fn body(messages: &Value) -> Value {
    json!({"messages": messages, "temperature": 0, "max_tokens": 60})
}

/// The reply, and tokens of its prompt that were not computed.
async fn reply(web: &Web, messages: &Value) -> (Value, u64) {
    let answer = web.post(PATH, &body(messages)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = answer.json();
    let cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
    (
        answer["choices"][0]["message"].clone(),
        cached.unwrap_or_default(),
    )
}

fn take_device(backend: BackendKind, is_lost: &AtomicBool) {
    match backend {
        BackendKind::Cuda => {
            let made = CudaBackend::new(&Geometry::flash(), CudaOptions::default());
            let said = lose_device(&mut made.expect("the device is there until now"));
            assert!(matches!(said, BackendError::Lost(_)), "{said}");
        }
        BackendKind::Wgpu => Gpu::lose_every_device(),
        _ => is_lost.store(true, Ordering::Relaxed),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_device_is_lost_says_so_and_goes_on_from_disk_when_started_again() {
    loses_its_device(test_backend()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_does_one_on_a_gpu_through_metal_or_vulkan() {
    let options = WgpuOptions {
        allow_processor: true,
        plain: true,
        ..WgpuOptions::default()
    };
    if let Err(error) = Gpu::open(&options) {
        return ds4_conformance::golden::skipped(&error.to_string());
    }
    loses_its_device(BackendKind::Wgpu).await;
}

async fn loses_its_device(backend: BackendKind) {
    let kept = tempfile::tempdir().expect("a temporary folder");
    let fresh = tempfile::tempdir().expect("another");
    let (web, is_lost) = start(kept.path(), backend).await;
    let long = "You answer sums. ".repeat(30);
    let mut messages = json!([
        {"role": "system", "content": long},
        {"role": "user", "content": "What is 17 + 25?"}
    ]);
    let (first, _) = reply(&web, &messages).await;
    while n_points(kept.path()) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let n_before = n_points(kept.path());

    let mut endless = body(&json!([{"role": "user", "content": "Hello"}]));
    endless["stream"] = json!(true);
    endless["ignore_eos"] = json!(true);
    endless["max_tokens"] = json!(3000);
    let mut stream = web.open("POST", PATH, &[], endless.to_string()).await;
    read_until(&mut stream, "delta").await;
    take_device(backend, &is_lost);
    // The stream ends with the reason, and so does whatever comes after it.
    let rest = read_until(&mut stream, "the device is lost").await;
    assert!(rest.contains("error"), "{rest}");
    for _ in 0..2 {
        let health = web.get("/health").await;
        assert_eq!(
            (health.status, &health.json()["status"]),
            (503, &json!("device lost"))
        );
        let refused = web.post(PATH, &body(&messages)).await;
        assert_eq!(refused.status, 503, "{refused:?}");
        assert!(refused.body.contains("restarted"), "{refused:?}");
    }
    stop(web).await;
    let verified = verify(kept.path()).expect("the folder opens");
    assert!(verified.damaged.is_empty() && verified.incomplete.is_empty());
    assert!(n_points(kept.path()) >= n_before);

    // A process that lost a real device has none: what is started again is another process, and
    // states are the same on every backend.
    let (again, _) = start(kept.path(), BackendKind::Cpu).await;
    let (other, _) = start(fresh.path(), BackendKind::Cpu).await;
    let more = messages.as_array_mut().expect("an array");
    more.push(first);
    more.push(json!({"role": "user", "content": "What is 8 + 9?"}));
    let (from_disk, n_cached) = reply(&again, &messages).await;
    let (computed, n_fresh) = reply(&other, &messages).await;
    assert!(n_cached > 64, "{n_cached} tokens came from disk");
    assert_eq!(n_fresh, 0);
    assert_eq!(from_disk["content"], computed["content"]);
    assert_eq!(again.get("/health").await.status, 200);
    stop(again).await;
    stop(other).await;
}
