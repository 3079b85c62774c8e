//! A loaded model and its timelines.
//!
//! [`Engine::open`] maps a file, checks it, decides memory and binds the weights
//! to a backend. [`Slots`] is the contract of what was loaded, in one page. [`Scheduler`] turns
//! requests into steps: it chooses slots, reuses what they hold, prefills in
//! chunks, decodes all sequences together and samples.
//!
//! One thread owns an engine; nothing in here locks.

mod alone;
mod engine;
mod gpu;
mod importance;
mod memory;
mod plan;
mod random;
mod sampler;
mod scheduler;
mod slots;
pub mod store;

pub use alone::{BackendTask, on_backend};
pub use engine::{Engine, LoadProgress, tokenizer_of};
pub use importance::Importance;
pub use memory::{available_bytes, give_back_freed};
pub use plan::{BackendKind, DEFAULT_CONTEXT, GpuOptions, OpenError, OpenOptions, Plan};
pub use random::random_model;
pub use sampler::{
    Constraint, NotFinite, Sampler, SamplingError, SamplingOptions, TokenLogprobs, TokenSet,
};
pub use scheduler::{
    Event, FIRST_ROWS, FinishReason, GENERATION_TOKENS, IDLE_SAVE, MAX_WAITING, MIN_ANCHOR,
    MIN_ANCHOR_GAIN, MIN_COPY_GAIN, MIN_LOAD_GAIN, MIN_PREFILL_ROWS, MIXED_CHUNK, MIXED_TIME,
    PREFILL_TIME, PromptRow, READ_RATE, RECENT_TOKENS, Request, RequestError, Reuse, SAVE_INTERVAL,
    SAVE_RETRY, SNAPSHOT_BYTES, SNAPSHOT_INTERVAL, SNAPSHOT_STRIDE, STORE_PATIENCE, Scheduler,
    SchedulerOptions, SequenceId, SlotUse, Timings,
};
pub use slots::{Group, Slots};

pub use ds4_cpu::{SimdPath, encode_row};
pub use ds4_model::{
    Backend, Batch, CacheRounding, Geometry, Outputs, RewindError, RowKind, SlotState, StepError,
    StoredRows, Wanted,
};
