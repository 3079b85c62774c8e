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
mod reference;
mod rope;
pub mod rounding;
mod rows;
pub mod session;
mod unfused;
pub mod weights;

pub use backend::{
    Backend, BackendError, CompressedRows, ElementType, Place, Rotation, Routes, Shape, WeightRole,
};
pub use forward::forward;
pub use geometry::{Geometry, GeometryError, LayerKind};
pub use observed::{Observed, Observer, OpTimes};
pub use reference::Reference;
pub use rope::{RopeFrequencies, RopeTable};
pub use rows::{Batch, Outputs, PAD_SLOT, RowsImage, Segment};
pub use session::{
    CacheRounding, Frontier, ImportError, MemoryPlan, RestoreError, RewindError, RowKind, Session,
    SessionShape, SlotState, StepError, StoredRows,
};
pub use unfused::Unfused;
pub use weights::{Component, Network, Requirement, WeightsError, requirements};
