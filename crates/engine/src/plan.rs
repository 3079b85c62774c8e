//! What a model will take, decided before anything is loaded.

use std::fmt;
use std::path::PathBuf;

use ds4_cpu::SimdPath;
use ds4_cuda::CudaError;
use ds4_formats::gguf::{self, Gguf};
use ds4_model::{
    Backend, BackendError, CacheRounding, GeometryError, MemoryPlan, SessionShape, WeightsError,
    requirements,
};

use crate::memory::available_bytes;
use crate::scheduler::{SNAPSHOT_BYTES, most_snapshot_bytes};
use crate::slots::session_bytes;

/// Tokens of a slot when none are asked for and memory allows.
pub const DEFAULT_CONTEXT: usize = 32_768;
/// Tokens that a slot must hold at least to be of use.
const MIN_CONTEXT: usize = 256;
/// Part of the available memory left to everything else, in sixteenths.
const RESERVED_SIXTEENTHS: u64 = 1;

/// Where the network runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendKind {
    /// The NVIDIA device when there is one and the model fits it, else any GPU that this build
    /// knows, else the processor.
    Auto,
    /// Vectorised kernels on the processor.
    #[default]
    Cpu,
    /// Kernels on an NVIDIA device.
    Cuda,
    /// Kernels on any GPU, through Metal or Vulkan.
    Wgpu,
    /// The scalar reference: slow, for comparison.
    Reference,
}

/// Which GPU is taken through Metal or Vulkan, and as what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GpuOptions {
    /// Part of its name, in any case, which may be that of one that the processor plays; `None` for the
    /// best one that is none.
    pub name: Option<String>,
    /// What it is taken not to have: names that an error lists, for tests and to go around a driver
    /// that gets something wrong.
    pub lacks: Vec<String>,
}

/// How to open a model.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// The GGUF file; of a split model the first part.
    pub model: PathBuf,
    /// Where to run it.
    pub backend: BackendKind,
    /// Threads of the CPU backend; `None` takes one for every core.
    pub n_threads: Option<usize>,
    /// Instruction set of the CPU backend; `None` takes the best there is.
    pub simd: Option<SimdPath>,
    /// Tokens of one slot; `None` takes [`DEFAULT_CONTEXT`] or what fits.
    pub context: Option<usize>,
    /// Slots.
    pub n_slots: usize,
    /// Rows of the largest prefill step; `None` for as many as make good use of the
    /// device.
    pub chunk: Option<usize>,
    /// Rows of a step that can have logits; `None` takes one for every slot.
    pub max_outputs: Option<usize>,
    /// Rounding of cache rows.
    pub rounding: CacheRounding,
    /// Bytes that weights, slots and scratch may take; `None` asks the device.
    pub memory_bytes: Option<u64>,
    /// Bytes of the host's memory that the snapshots of each slot may take.
    pub snapshot_bytes: usize,
    /// Bytes of the host's memory that a store will take for its queue.
    pub store_bytes: u64,
    /// Which GPU is taken through Metal or Vulkan, and as what.
    pub gpu: GpuOptions,
    /// Where compiled kernels are kept between runs; `None` keeps none.
    pub kernel_cache: Option<PathBuf>,
    /// Whether a device measures every kernel, which slows it down.
    pub timed: bool,
}

impl OpenOptions {
    /// The defaults for a file.
    pub fn new(model: impl Into<PathBuf>) -> OpenOptions {
        OpenOptions {
            model: model.into(),
            backend: BackendKind::default(),
            n_threads: None,
            simd: None,
            context: None,
            n_slots: 1,
            chunk: None,
            max_outputs: None,
            rounding: CacheRounding::default(),
            memory_bytes: None,
            snapshot_bytes: SNAPSHOT_BYTES,
            store_bytes: 0,
            gpu: GpuOptions::default(),
            kernel_cache: None,
            timed: false,
        }
    }
}

/// What a loaded model takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Weights in the file.
    pub weights_bytes: u64,
    /// Of them, those that the device keeps a copy of, in its own form; 0 when they are
    /// used where they lie in the file.
    pub device_weights_bytes: u64,
    /// Caches of all slots.
    pub slots_bytes: u64,
    /// Scratch of a step, and what the device takes beside.
    pub scratch_bytes: u64,
    /// The most that snapshots of the slots take of the host's memory.
    pub snapshots_bytes: u64,
    /// What a store takes of the host's memory.
    pub store_bytes: u64,
    /// What the device has to give, if it says so.
    pub available_bytes: Option<u64>,
    /// Whether that is memory of its own.
    pub own_memory: bool,
    /// Tokens of one slot.
    pub context: usize,
    /// Slots.
    pub n_slots: usize,
}

impl Plan {
    /// Bytes that must fit into what is available; weights used in place need not.
    fn needed_bytes(&self) -> u64 {
        let host = match self.own_memory {
            true => 0,
            false => self.snapshots_bytes + self.store_bytes,
        };
        self.device_weights_bytes + self.slots_bytes + self.scratch_bytes + host
    }
}

impl Plan {
    /// The plan with slots of another shape, if they fit in what there was.
    pub(crate) fn with_context(
        &self,
        context: usize,
        memory: MemoryPlan,
    ) -> Result<Plan, OpenError> {
        let plan = Plan {
            slots_bytes: memory.slots_bytes as u64,
            scratch_bytes: memory.scratch_bytes as u64,
            context,
            ..self.clone()
        };
        let budget = plan.budget();
        if plan.needed_bytes() > budget {
            return Err(OpenError::Memory {
                asked: plan.context,
                n_slots: plan.n_slots,
                needed_bytes: plan.needed_bytes(),
                weights_bytes: plan.device_weights_bytes,
                available_bytes: budget,
                fits: 0,
            });
        }
        Ok(plan)
    }

    /// What may be taken of what is available.
    fn budget(&self) -> u64 {
        budget(self.available_bytes)
    }
}

fn budget(available_bytes: Option<u64>) -> u64 {
    available_bytes.map_or(u64::MAX, |b| b - b / 16 * RESERVED_SIXTEENTHS)
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (weights, place) = match self.device_weights_bytes {
            0 => (self.weights_bytes, "from the file"),
            n => (n, "on the device"),
        };
        let slots = match self.n_slots {
            1 => "a slot".to_owned(),
            n => format!("{n} slots"),
        };
        write!(
            f,
            "weights {:.2} GiB {place}, {slots} of {} tokens {:.2} GiB, scratch {:.2} GiB, \
             snapshots up to {:.2} GiB",
            gib(weights),
            self.context,
            gib(self.slots_bytes),
            gib(self.scratch_bytes),
            gib(self.snapshots_bytes),
        )?;
        if self.store_bytes > 0 {
            write!(
                f,
                ", the store's queue up to {:.2} GiB",
                gib(self.store_bytes)
            )?;
        }
        if let Some(available) = self.available_bytes {
            write!(f, "; {:.2} GiB of memory available", gib(available))?;
            let in_place = self.weights_bytes - self.weights_bytes.min(self.device_weights_bytes);
            if !self.own_memory && self.needed_bytes() + in_place > available {
                write!(f, ", so weights will be read from disk again and again")?;
            }
        }
        Ok(())
    }
}

/// Why a model could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file could not be read as GGUF.
    #[error(transparent)]
    File(#[from] gguf::Error),
    /// Its metadata is not a geometry we run.
    #[error("{}: {source}", path.display())]
    Geometry {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: GeometryError,
    },
    /// Its tensors are not the network's.
    #[error("{}: {source}", path.display())]
    Weights {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: WeightsError,
    },
    /// Its tokenizer cannot be used.
    #[error("{}: {reason}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The context asked for is longer than the model's.
    #[error(
        "a context of {asked} tokens is longer than the model's {limit}; use --ctx {limit} or less"
    )]
    ContextTooLong {
        /// Tokens asked for.
        asked: usize,
        /// Tokens the model was made for.
        limit: usize,
    },
    /// The session does not fit.
    #[error(
        "a context of {asked} tokens in {n_slots} slot(s) needs {:.2} GiB{} and {:.2} GiB are available; {}",
        gib(*needed_bytes), of_weights(*weights_bytes), gib(*available_bytes),
        fits_hint(*fits, *weights_bytes > *available_bytes)
    )]
    Memory {
        /// Tokens asked for.
        asked: usize,
        /// Slots.
        n_slots: usize,
        /// What they, the scratch and the weights that the device keeps need.
        needed_bytes: u64,
        /// Of it, for those weights.
        weights_bytes: u64,
        /// What there is.
        available_bytes: u64,
        /// Tokens that would fit; 0 when not even a short context does.
        fits: usize,
    },
    /// There is no device to use.
    #[error("{0}; --backend cpu computes without one")]
    NoDevice(#[from] CudaError),
    /// There is no GPU to use, or this build knows none.
    #[error("{0}")]
    NoGpu(String),
    /// The GPU that there is cannot be used.
    #[error("{0}")]
    UnfitGpu(String),
    /// The options contradict each other or the machine.
    #[error("{0}")]
    Options(String),
    /// The device failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1u32 << 30)
}

fn of_weights(bytes: u64) -> String {
    match bytes {
        0 => String::new(),
        n => format!(", {:.2} of them for the weights,", gib(n)),
    }
}

fn fits_hint(fits: usize, weights_do_not: bool) -> String {
    if weights_do_not {
        "not even the weights fit: use a smaller file, a larger device, or --backend cpu".to_owned()
    } else if fits == 0 {
        "not even a short context fits: close other programs, or use a smaller --chunk".to_owned()
    } else {
        format!("--ctx {fits} would fit")
    }
}

/// Decides the session on a backend: as asked, or as much as fits.
pub(crate) fn plan<B: Backend>(
    backend: &B,
    gguf: &Gguf,
    options: &OpenOptions,
) -> Result<(SessionShape, Plan), OpenError> {
    let geometry = backend.geometry();
    let limits = backend.limits();
    let chunk = options.chunk.unwrap_or(limits.prefill_rows);
    if options.n_slots == 0 || chunk == 0 {
        return Err(OpenError::Options(
            "the number of slots and the chunk must be at least 1".to_owned(),
        ));
    }
    let limit = geometry.max_context;
    if let Some(asked) = options.context
        && asked > limit
    {
        return Err(OpenError::ContextTooLong { asked, limit });
    }
    let device_bytes = backend.memory_bytes();
    let own_memory = device_bytes.is_some();
    let available_bytes = options
        .memory_bytes
        .or(device_bytes)
        .or_else(available_bytes);
    let budget = budget(available_bytes);
    let device_weights_bytes = requirements(geometry)
        .iter()
        .filter_map(|need| Some(backend.weight_bytes(need, gguf.spec(&need.name)?.ty)))
        .sum();
    let shape = |context: usize| {
        let max_rows = chunk.min(context).max(options.n_slots);
        SessionShape {
            max_outputs: options.max_outputs.unwrap_or(options.n_slots),
            rounding: options.rounding,
            ..SessionShape::uniform(options.n_slots, context, max_rows)
        }
    };
    let planned = |context: usize| {
        let shape = shape(context);
        let memory = session_bytes(backend, &shape);
        let per_slot = most_snapshot_bytes(geometry, &shape).min(options.snapshot_bytes);
        Plan {
            weights_bytes: gguf.tensors().map(|t| t.n_bytes).sum(),
            device_weights_bytes,
            slots_bytes: memory.slots_bytes as u64,
            scratch_bytes: memory.scratch_bytes as u64,
            snapshots_bytes: (per_slot * options.n_slots) as u64,
            store_bytes: options.store_bytes,
            available_bytes,
            own_memory,
            context,
            n_slots: options.n_slots,
        }
    };
    let needed = |context: usize| planned(context).needed_bytes();

    let wanted = options.context.unwrap_or(DEFAULT_CONTEXT.min(limit)).max(1);
    let context = if needed(wanted) <= budget {
        wanted
    } else {
        // The need grows with the context: halve the gap.
        let (mut fits, mut too_long) = (0, wanted);
        while too_long - fits > MIN_CONTEXT {
            let middle = fits + (too_long - fits) / 2;
            if needed(middle) <= budget {
                fits = middle;
            } else {
                too_long = middle;
            }
        }
        if options.context.is_some() || fits < MIN_CONTEXT {
            return Err(OpenError::Memory {
                asked: wanted,
                n_slots: options.n_slots,
                needed_bytes: needed(wanted),
                weights_bytes: device_weights_bytes,
                available_bytes: budget,
                fits: if fits < MIN_CONTEXT { 0 } else { fits },
            });
        }
        fits
    };
    Ok((shape(context), planned(context)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_too_small_is_refused_with_numbers() {
        const GIB: u64 = 1 << 30;
        let says = |needed, weights, available, fits| {
            let error = OpenError::Memory {
                asked: 1 << 20,
                n_slots: 1,
                needed_bytes: needed,
                weights_bytes: weights,
                available_bytes: available,
                fits,
            };
            error.to_string()
        };
        let start = "a context of 1048576 tokens in 1 slot(s) needs";
        assert_eq!(
            says(92 * GIB, 83 * GIB, 87 * GIB, 276_224),
            format!(
                "{start} 92.00 GiB, 83.00 of them for the weights, and 87.00 GiB are available; \
                 --ctx 276224 would fit"
            )
        );
        assert_eq!(
            says(92 * GIB, 83 * GIB, 54 * GIB, 0),
            format!(
                "{start} 92.00 GiB, 83.00 of them for the weights, and 54.00 GiB are available; \
                 not even the weights fit: use a smaller file, a larger device, or --backend cpu"
            )
        );
        assert_eq!(
            says(3 * GIB, 0, 2 * GIB, 0),
            format!(
                "{start} 3.00 GiB and 2.00 GiB are available; not even a short context fits: \
                 close other programs, or use a smaller --chunk"
            )
        );
    }
}
