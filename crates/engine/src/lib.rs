//! A loaded model and its timelines.
//!
//! [`Engine::open`] maps a file, checks it, decides memory and binds the weights
//! to a backend. [`Engine::step`] runs one batch of rows. [`Scheduler`] turns
//! requests into steps: it chooses slots, reuses what they hold, prefills in
//! chunks, decodes all sequences together and samples.
//!
//! One thread owns an engine; nothing in here locks.

mod engine;
mod memory;
mod runner;
mod sampler;
mod scheduler;
pub mod store;

pub use engine::{
    BackendKind, DEFAULT_CONTEXT, Engine, LoadProgress, OpenError, OpenOptions, Plan, tokenizer_of,
};
pub use memory::available_bytes;
pub use sampler::{Constraint, Sampler, SamplingError, SamplingOptions, TokenLogprobs, TokenSet};
pub use scheduler::{
    Event, FinishReason, GENERATION_TOKENS, IDLE_SAVE, MAX_WAITING, MIN_ANCHOR, MIN_ANCHOR_GAIN,
    MIN_COPY_GAIN, MIN_LOAD_GAIN, MIXED_CHUNK, READ_RATE, RECENT_TOKENS, Request, RequestError,
    Reuse, SAVE_INTERVAL, SNAPSHOT_BYTES, SNAPSHOT_INTERVAL, SNAPSHOT_STRIDE, Scheduler,
    SchedulerOptions, SequenceId, SlotUse, Timings,
};

pub use ds4_cpu::SimdPath;
pub use ds4_model::{
    Batch, CacheRounding, Geometry, Outputs, RewindError, RowKind, SlotState, StepError,
    StoredRows, Wanted,
};
