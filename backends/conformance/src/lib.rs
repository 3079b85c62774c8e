//! The suite that every backend runs.
//!
//! [`ops`] compares every op with the scalar reference at awkward shapes;
//! [`network`] states what must hold of whole networks on any backend (chunks,
//! batches, forks, rewinds, export and import, and the logits of independent
//! implementations). A backend's own tests call these functions with a
//! constructor of itself; the reference runs them in this crate's tests. [`steps`] states what must
//! hold of steps: of candidates, of replays, of failures; [`replaying`] is a backend that records and
//! replays as a device does.
//! [`speaking_model`] writes a random model that reads and writes text.

pub mod faults;
pub mod fixtures;
pub mod golden;
pub mod network;
pub mod ops;
pub mod replaying;
pub mod speaking_model;
pub mod steps;
