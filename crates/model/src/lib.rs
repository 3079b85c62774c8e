//! The network of DeepSeek V4 Flash, once.
//!
//! [`forward`] is a straight line over the [`Backend`] trait, for a batch of
//! rows that belong to any number of slots. [`Geometry`] holds every size and is
//! read from the file; [`Network`] holds the weights by their GGUF names;
//! [`Session`] holds the caches, the scratch and what each slot contains.
//! [`Reference`] is the scalar meaning of every op. [`Unfused`] restores the
//! default bodies of fused ops, and [`Observed`] watches a backend from outside.
//!
//! The crate knows no files, devices or sockets: weights arrive as
//! [`ds4_formats::Tensor`]s.

pub mod backend;
mod forward;
pub mod geometry;
mod observed;
pub mod operands;
mod reference;
mod rope;
pub mod rounding;
mod rows;
pub mod session;
mod unfused;
pub mod weights;

pub use backend::Backend;
pub use forward::{Step, attention, experts, forward};
pub use geometry::{Geometry, GeometryError, LayerKind};
pub use observed::{Observed, Observer, OpTimes};
pub use operands::{
    Attend, AttentionSublayer, BackendError, Choice, Compress, CompressedRows, ElementType, Entry,
    ExpertsGateUp, ExpertsSublayer, GateUp, IndexScores, IndexSelect, Limits, N_CANDIDATES, Pass,
    Place, Pool, ReadPart, Recording, Rotation, Routes, ScoreTile, Shape, StepKey, Turn,
    WeightRole, WritePart,
};
pub use reference::Reference;
pub use rope::{RopeFrequencies, RopeTable};
pub use rows::{
    BASE_ALIGN, Batch, N_ROW_IDS, Outputs, PAD_SLOT, RowsImage, Segment, SegmentPlace, Visibility,
    Wanted,
};
pub use session::{
    CacheRounding, Candidates, Frontier, ImportError, LayerCache, MemoryPlan, OutputRow,
    RestoreError, RewindError, RowKind, Scratch, Session, SessionShape, SlotContents, SlotState,
    StepError, StepShape, StoredRows,
};
pub use unfused::Unfused;
pub use weights::{
    Component, Layer, Network, Requirement, Split, WeightsError, check, requirements,
};
