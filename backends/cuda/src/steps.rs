//! Steps: which are recorded, replayed or run as their ops come.

use ds4_model::{BackendError, Recording, StepKey};

use crate::backend::CudaBackend;
use crate::driver::{Graph, Launch, Parameter};
use crate::error;
use crate::kernels::Unit;
use crate::landing::Landed;

/// Most rows of a step that is recorded as a graph; launches of larger ones are a small part of them.
pub(crate) const MAX_GRAPH_ROWS: usize = 64;
/// Recordings kept; the one that was used longest ago makes room.
const MAX_RECORDINGS: usize = 64;

/// What `begin` decided for the step under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Ops run as they come.
    Direct,
    /// Ops are captured from the first on.
    Record { key: StepKey, capturing: bool },
    /// The recording of this key runs.
    Replay { key: StepKey },
}

#[derive(Debug)]
pub(crate) struct Recorded {
    graph: Graph,
    /// What its last copies bring.
    landed: Vec<Landed>,
    used: u64,
}

impl CudaBackend {
    /// Starts a kernel, or records it.
    pub(crate) fn run(
        &mut self,
        unit: &Unit,
        name: &'static str,
        launch: Launch,
        parameters: &[Parameter],
    ) {
        if self.failed.is_some() {
            return;
        }
        if let Err(error) = self.try_run(unit, name, launch, parameters) {
            self.failed = Some(error);
        }
    }

    fn try_run(
        &mut self,
        unit: &Unit,
        name: &'static str,
        launch: Launch,
        parameters: &[Parameter],
    ) -> Result<(), BackendError> {
        let kernel = self.kernels.get(unit, name).map_err(error::kernel)?;
        if let Mode::Record { capturing, .. } = &mut self.mode
            && !*capturing
        {
            self.compute.begin_capture().map_err(error::device)?;
            *capturing = true;
        }
        if let Some(times) = &mut self.times {
            times.before(&self.compute, name).map_err(error::device)?;
        }
        // SAFETY: the callers in `ops.rs` give addresses of buffers and weights whose shapes they
        // compared with what the kernel touches, and which live as long as the recording is used:
        // the session that owns them ends it first.
        unsafe { self.compute.launch(&kernel, launch, parameters) }.map_err(error::device)?;
        if let Some(times) = &mut self.times {
            times.after(&self.compute).map_err(error::device)?;
        }
        Ok(())
    }

    pub(crate) fn is_capturing(&self) -> bool {
        matches!(
            self.mode,
            Mode::Record {
                capturing: true,
                ..
            }
        )
    }

    /// Waits for the step that was launched last, which may not be the one being recorded.
    pub(crate) fn wait_for_step(&self) -> Result<(), BackendError> {
        self.launched.wait().map_err(error::device)?;
        if !self.is_capturing() {
            self.compute.wait().map_err(error::device)?;
        }
        Ok(())
    }

    fn keep(&mut self, key: StepKey, graph: Graph) {
        if self.graphs.len() >= MAX_RECORDINGS
            && let Some(oldest) = self
                .graphs
                .iter()
                .min_by_key(|(_, r)| r.used)
                .map(|(k, _)| *k)
        {
            self.graphs.remove(&oldest);
        }
        let recorded = Recorded {
            graph,
            landed: self.landing.parts.clone(),
            used: self.n_steps,
        };
        self.graphs.insert(key, recorded);
    }

    pub(crate) fn forget_recordings(&mut self) {
        self.graphs.clear();
    }

    /// The session of the step that is being recorded.
    pub(crate) fn session(&self) -> Option<u64> {
        self.current
    }

    pub(crate) fn begin(&mut self, key: &StepKey) -> Recording {
        self.n_steps += 1;
        self.current = Some(key.session);
        self.drop_notes();
        self.settle();
        self.landing.parts.clear();
        if let Some(recorded) = self.graphs.get_mut(key) {
            recorded.used = self.n_steps;
            self.mode = Mode::Replay { key: *key };
            return Recording::Replay;
        }
        if key.shape.chooses
            && let Err(error) = self.take_shares(key.shape.n_outputs)
        {
            self.fail(error);
        }
        self.notes_step(key);
        self.mode = if self.times.is_some() || key.shape.n_rows > MAX_GRAPH_ROWS {
            Mode::Direct
        } else {
            Mode::Record {
                key: *key,
                capturing: false,
            }
        };
        Recording::Record
    }

    pub(crate) fn launch(&mut self) -> Result<(), BackendError> {
        // A step without outputs ends with its last layer.
        if let Err(error) = self.finish_notes(None) {
            self.failed.get_or_insert(error);
        }
        let mode = std::mem::replace(&mut self.mode, Mode::Direct);
        let graph = match mode {
            Mode::Record {
                key,
                capturing: true,
            } => {
                let graph = self.compute.end_capture().map_err(error::device);
                // An error of an op says more than that of the capture it broke.
                if let Some(error) = self.failed.take() {
                    return Err(error);
                }
                self.keep(key, graph?);
                Some(key)
            }
            Mode::Replay { key } => Some(key),
            _ => None,
        };
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        if let Some(key) = graph {
            let recorded = &self.graphs[&key];
            self.landing.parts.clone_from(&recorded.landed);
            self.compute
                .replay(&recorded.graph)
                .map_err(error::device)?;
        }
        self.compute.record(&self.launched).map_err(error::device)
    }

    pub(crate) fn wait(&mut self) -> Result<(), BackendError> {
        self.launched.wait().map_err(error::device)?;
        if let Some(times) = &mut self.times {
            times.settle().map_err(error::device)?;
        }
        self.failed.take().map_or(Ok(()), Err)
    }

    pub(crate) fn end_session(&mut self, session: u64) {
        self.graphs.retain(|key, _| key.session != session);
        self.decoder.end_session(session);
    }
}
