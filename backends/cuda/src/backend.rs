//! The backend: options, and what it wants and has. Its ops are in `ops.rs`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use ds4_formats::GgmlType;
use ds4_model::{
    BackendError, Geometry, Limits, N_CANDIDATES, Requirement, SessionShape, StepKey, WeightRole,
};

use crate::decode::{self, Decoder};
use crate::driver::{Context, DeviceError, DeviceFacts, Event, Memory, Pinned, Stream};
use crate::kernels::Kernels;
use crate::landing::Landing;
use crate::load::Upload;
use crate::prefill::{self, Workspace};
use crate::steps::{MAX_GRAPH_ROWS, Mode, Recorded};
use crate::times::KernelTimes;
use crate::wanted::Wanted;
use crate::weight::Layout;

/// Bytes of the pinned memory that reads and writes go through.
pub(crate) const STAGING_BYTES: usize = 16 << 20;
/// Rows of a prefill step.
const PREFILL_ROWS: usize = 2048;
/// Most bytes of the indexer's scores of one step.
const SCORE_BYTES: usize = 512 << 20;
/// Bytes that the driver, the machine code and allocations' edges take beside what is counted.
const RESERVED_BYTES: u64 = 512 << 20;
/// Widest head that the plain attention holds in the shared memory of a block.
pub(crate) const MAX_HEAD_DIM: usize = 4096;
/// Blocks that a row of logits is divided among when its largest are chosen.
pub(crate) const SHARES: usize = 32;
/// Bytes of what they find: four sums, and as many values and ids as there are candidates.
pub(crate) const SHARE_BYTES: usize = 16 + 8 * N_CANDIDATES;

/// Most streams that the plain kernels of hyper-connections take.
pub(crate) const MAX_STREAMS: usize = 16;

/// Addresses of what the shares of rows of logits have found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shares {
    pub(crate) sums: u64,
    pub(crate) values: u64,
    pub(crate) ids: u64,
}

/// How a [`CudaBackend`] runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CudaOptions {
    /// Number of the device.
    pub device: usize,
    /// Where machine code is kept between runs; `None` compiles what is needed in each.
    pub cache: Option<PathBuf>,
    /// Whether to measure every kernel, which turns recordings off.
    pub timed: bool,
    /// Where the kernels for the published geometry take the place of the plain ones.
    pub fast: Fast,
}

/// Parts of the network that have kernels for the published geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fast {
    /// From one sublayer to the next.
    pub turns: bool,
    /// The attention sublayer.
    pub attention: bool,
    /// The experts sublayer.
    pub experts: bool,
    /// Whole steps of a few rows.
    pub steps: bool,
}

impl Fast {
    /// None: the plain kernels only.
    pub const NONE: Fast = Fast {
        turns: false,
        attention: false,
        experts: false,
        steps: false,
    };
}

impl Default for Fast {
    fn default() -> Fast {
        Fast {
            turns: true,
            attention: true,
            experts: true,
            steps: true,
        }
    }
}

/// Why a backend could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    /// There is no device to use.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The kernels cannot compute this geometry.
    #[error("the CUDA kernels take {what} up to {limit}, the model has {found}")]
    Geometry {
        /// What.
        what: &'static str,
        /// Largest accepted.
        limit: usize,
        /// In the model.
        found: usize,
    },
    /// A kernel cannot be had.
    #[error(transparent)]
    Kernel(#[from] crate::kernels::KernelError),
}

impl CudaError {
    /// Whether there is simply no such device or driver.
    pub fn is_absent(&self) -> bool {
        matches!(
            self,
            CudaError::Device(DeviceError::NoDriver | DeviceError::NoDevice { .. })
        )
    }
}

/// The network's operations on an NVIDIA device.
///
/// Ops of small steps are captured into a graph, one for each [`StepKey`], which later steps of the
/// key replay; those of large steps are launched one by one.
#[derive(Debug)]
pub struct CudaBackend {
    pub(crate) geometry: Geometry,
    pub(crate) graphs: HashMap<StepKey, Recorded>,
    pub(crate) n_steps: u64,
    pub(crate) mode: Mode,
    /// Session of the step under way.
    pub(crate) current: Option<u64>,
    /// What went wrong since the last launch.
    pub(crate) failed: Option<BackendError>,
    pub(crate) times: Option<KernelTimes>,
    pub(crate) uploads: Vec<Upload>,
    /// Units that the weights uploaded so far need, once one of them is the embedding of a model.
    pub(crate) wanted: Wanted,
    /// Records of gate and up of a layer whose other half is still to come.
    pub(crate) pair: Option<(usize, Arc<Memory>)>,
    pub(crate) staging: Pinned,
    /// Products of the head's hyper-connection, f32 `[rows, n_hc]`.
    pub(crate) head_products: Option<Memory>,
    pub(crate) n_head_rows: usize,
    /// What the shares of rows of logits have found, and of how many rows there is room.
    pub(crate) shares: Option<(Memory, usize)>,
    pub(crate) landing: Landing,
    /// Of the kernels for the published geometry.
    pub(crate) workspace: Option<Workspace>,
    pub(crate) decoder: Decoder,
    pub(crate) options: CudaOptions,
    pub(crate) kernels: Kernels,
    /// The end of the step that was launched last.
    pub(crate) launched: Event,
    pub(crate) compute: Stream,
    pub(crate) copies: Stream,
    pub(crate) context: Arc<Context>,
}

impl CudaBackend {
    /// A backend for models of this geometry.
    ///
    /// # Errors
    ///
    /// No driver, an old one, no such device, or a geometry beyond the kernels.
    pub fn new(geometry: &Geometry, options: CudaOptions) -> Result<CudaBackend, CudaError> {
        for (what, found, limit) in [
            ("heads of a width", geometry.head_dim, MAX_HEAD_DIM),
            ("index heads of a width", geometry.index_dim, MAX_HEAD_DIM),
            ("streams", geometry.n_hc, MAX_STREAMS),
        ] {
            if found > limit {
                return Err(CudaError::Geometry { what, limit, found });
            }
        }
        let context = Context::new(options.device)?;
        let driver = |e| CudaError::Device(DeviceError::Driver(e));
        let times = match options.timed {
            true => Some(KernelTimes::new(&context).map_err(driver)?),
            false => None,
        };
        Ok(CudaBackend {
            geometry: geometry.clone(),
            graphs: HashMap::new(),
            n_steps: 0,
            mode: Mode::Direct,
            current: None,
            failed: None,
            times,
            uploads: Vec::new(),
            wanted: Wanted::default(),
            pair: None,
            staging: Pinned::new(&context, STAGING_BYTES).map_err(driver)?,
            head_products: None,
            n_head_rows: 0,
            shares: None,
            landing: Landing::default(),
            workspace: None,
            decoder: Decoder::new(),
            kernels: Kernels::new(&context, options.cache.clone()),
            launched: Event::new(&context, false).map_err(driver)?,
            compute: Stream::new(&context).map_err(driver)?,
            copies: Stream::new(&context).map_err(driver)?,
            options,
            context,
        })
    }

    /// Whether the kernels for the published geometry are used.
    pub(crate) fn is_fast(&self) -> bool {
        self.options.fast != Fast::NONE && prefill::takes(&self.geometry)
    }

    /// What is known of the device.
    pub fn device(&self) -> &DeviceFacts {
        &self.context.facts
    }

    /// Units of kernels that were compiled since it was made.
    pub fn n_compiled(&self) -> usize {
        self.kernels.n_compiled()
    }

    /// Recordings there are.
    pub fn n_recordings(&self) -> usize {
        self.graphs.len()
    }

    /// Time of every kernel since the last call, longest first, when it was made `timed`.
    pub fn take_times(&mut self) -> Vec<(String, u64, f64)> {
        self.times
            .as_mut()
            .map(KernelTimes::take)
            .unwrap_or_default()
    }

    /// Keeps what went wrong for the launch of the step.
    pub(crate) fn fail(&mut self, error: BackendError) {
        self.failed.get_or_insert(error);
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits {
            prefill_rows: PREFILL_ROWS,
            score_bytes: SCORE_BYTES,
            host_angles: true,
        }
    }

    pub(crate) fn row_class(&self, n_rows: usize) -> usize {
        match n_rows {
            0..=MAX_GRAPH_ROWS => n_rows.next_power_of_two(),
            65..=512 => n_rows.next_multiple_of(64),
            _ => n_rows.next_multiple_of(128),
        }
    }

    pub(crate) fn memory_bytes(&self) -> Option<u64> {
        let (free, _) = self.context.memory().ok()?;
        Some(free.saturating_sub(RESERVED_BYTES))
    }

    pub(crate) fn weight_bytes(&self, need: &Requirement, ty: GgmlType) -> u64 {
        let layout = Layout::of(need, ty, self.geometry.n_hc);
        let n_rows = need.ne[1..].iter().product::<u64>();
        let table = match need.role {
            WeightRole::Experts => 8 * self.geometry.n_experts as u64,
            _ => 0,
        };
        layout.n_bytes(ty, need.ne[0], n_rows).next_multiple_of(256) + table
    }

    pub(crate) fn workspace_bytes(&self, shape: &SessionShape) -> u64 {
        let shares = shape.max_outputs * SHARES * SHARE_BYTES;
        let products = (shape.max_rows * self.geometry.n_hc * 4 + shares) as u64;
        match self.is_fast() {
            true => {
                products
                    + prefill::workspace_bytes(shape.max_rows)
                    + decode::workspace_bytes(
                        &self.geometry,
                        shape.bases().last().copied().unwrap_or(0),
                    )
            }
            false => products,
        }
    }
}
