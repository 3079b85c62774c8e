//! Opening a model and running its steps.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ds4_cpu::{CpuBackend, CpuOptions, SimdPath};
use ds4_formats::gguf::{self, Gguf};
use ds4_model::session::{RowKind, StoredRows};
use ds4_model::{
    Backend, BackendError, Batch, CacheRounding, Frontier, Geometry, GeometryError, ImportError,
    Limits, Network, Reference, RestoreError, RewindError, SessionShape, SlotState, StepError,
    WeightsError,
};
use ds4_text::Tokenizer;

use crate::memory::available_bytes;
use crate::runner::{Loaded, Runner};

/// Tokens of a slot when none are asked for and memory allows.
pub const DEFAULT_CONTEXT: usize = 32_768;
/// Rows of a prefill step when none are asked for.
pub const DEFAULT_CHUNK: usize = 512;
/// Tokens that a slot must hold at least to be of use.
const MIN_CONTEXT: usize = 256;
/// Part of the available memory left to everything else, in sixteenths.
const RESERVED_SIXTEENTHS: u64 = 1;

/// Where the network runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendKind {
    /// Vectorised kernels on the processor.
    #[default]
    Cpu,
    /// The scalar reference: slow, for comparison.
    Reference,
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
    /// Rows of the largest prefill step.
    pub chunk: usize,
    /// Rows of a step that can have logits; `None` takes one for every slot.
    pub max_outputs: Option<usize>,
    /// Rounding of cache rows.
    pub rounding: CacheRounding,
    /// Bytes the slots and the scratch may take; `None` asks the machine.
    pub memory_bytes: Option<u64>,
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
            chunk: DEFAULT_CHUNK,
            max_outputs: None,
            rounding: CacheRounding::default(),
            memory_bytes: None,
        }
    }
}

/// How far opening has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadProgress {
    /// The file is mapped and its table checked.
    Opened {
        /// Tensors in it.
        n_tensors: usize,
        /// Its size.
        file_bytes: u64,
    },
    /// Weights were bound to the backend.
    Bound {
        /// So many bytes.
        n_done: u64,
        /// Of so many in the file.
        n_bytes: u64,
    },
}

/// What a loaded model takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Weights, used in place from the file.
    pub weights_bytes: u64,
    /// Caches of all slots.
    pub slots_bytes: u64,
    /// Scratch of a step.
    pub scratch_bytes: u64,
    /// What the machine has to give, if it says so.
    pub available_bytes: Option<u64>,
    /// Tokens of one slot.
    pub context: usize,
    /// Slots.
    pub n_slots: usize,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = |bytes: u64| bytes as f64 / f64::from(1u32 << 30);
        write!(
            f,
            "weights {:.2} GiB from the file, {} of {} tokens {:.2} GiB, scratch {:.2} GiB",
            gib(self.weights_bytes),
            if self.n_slots == 1 {
                "a slot".to_owned()
            } else {
                format!("{} slots", self.n_slots)
            },
            self.context,
            gib(self.slots_bytes),
            gib(self.scratch_bytes),
        )?;
        if let Some(available) = self.available_bytes {
            write!(f, "; {:.2} GiB of memory available", gib(available))?;
            if self.weights_bytes + self.slots_bytes + self.scratch_bytes > available {
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
        "a context of {asked} tokens in {n_slots} slot(s) needs {needed_bytes} bytes and {available_bytes} are available; {}",
        fits_hint(*fits)
    )]
    Memory {
        /// Tokens asked for.
        asked: usize,
        /// Slots.
        n_slots: usize,
        /// What they and the scratch need.
        needed_bytes: u64,
        /// What there is.
        available_bytes: u64,
        /// Tokens that would fit; 0 when not even a short context does.
        fits: usize,
    },
    /// The options contradict each other or the machine.
    #[error("{0}")]
    Options(String),
    /// The device failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

fn fits_hint(fits: usize) -> String {
    if fits == 0 {
        "not even a short context fits: close other programs, or use a smaller --chunk".to_owned()
    } else {
        format!("--ctx {fits} would fit")
    }
}

/// A loaded model.
pub struct Engine {
    runner: Box<dyn Runner>,
    geometry: Geometry,
    name: String,
    tokenizer: Option<Arc<Tokenizer>>,
    plan: Plan,
    shape: SessionShape,
    tokens: Vec<Vec<u32>>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("name", &self.name)
            .field("plan", &self.plan)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Opens a file: checks it whole, decides memory, binds the weights.
    pub fn open(
        options: &OpenOptions,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Engine, OpenError> {
        let gguf = Gguf::open(&options.model)?;
        Engine::from_gguf(&gguf, options, progress)
    }

    /// The same for a file that is already parsed, such as one inside the
    /// program; `options.model` only names it in messages.
    pub fn from_gguf(
        gguf: &Gguf,
        options: &OpenOptions,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Engine, OpenError> {
        let path = &options.model;
        progress(LoadProgress::Opened {
            n_tensors: gguf.tensors().len(),
            file_bytes: gguf.file_bytes(),
        });
        let geometry =
            Geometry::from_metadata(gguf.metadata()).map_err(|source| OpenError::Geometry {
                path: path.clone(),
                source,
            })?;
        let tokenizer = tokenizer_of(gguf, path)?.map(Arc::new);
        if let Some(tokenizer) = &tokenizer
            && tokenizer.n_vocab() != geometry.n_vocab
        {
            return Err(OpenError::Tokenizer {
                path: path.clone(),
                reason: format!(
                    "the tokenizer has {} tokens, expected {} as the embedding",
                    tokenizer.n_vocab(),
                    geometry.n_vocab
                ),
            });
        }
        let (shape, plan) = plan(&geometry, gguf, options)?;
        let runner = match options.backend {
            BackendKind::Reference => {
                let backend = Reference::new(&geometry);
                load(backend, gguf, &geometry, shape.clone(), path, progress)?
            }
            BackendKind::Cpu => {
                let backend = CpuBackend::new(
                    &geometry,
                    CpuOptions {
                        n_threads: options.n_threads,
                        simd: options.simd,
                    },
                )
                .map_err(|e| OpenError::Options(e.to_string()))?;
                load(backend, gguf, &geometry, shape.clone(), path, progress)?
            }
        };
        Ok(Engine {
            runner,
            name: gguf
                .metadata()
                .str("general.name")
                .unwrap_or("unnamed")
                .to_owned(),
            tokenizer,
            plan,
            tokens: vec![Vec::new(); shape.n_slots()],
            shape,
            geometry,
        })
    }

    /// What it takes.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Its sizes.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// `general.name` of the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its tokenizer; `None` when the file has none.
    pub fn tokenizer(&self) -> Option<&Arc<Tokenizer>> {
        self.tokenizer.as_ref()
    }

    /// Tokens that one slot can hold.
    pub fn context(&self) -> usize {
        self.shape.longest()
    }

    /// Slots.
    pub fn n_slots(&self) -> usize {
        self.shape.n_slots()
    }

    /// Rows of the largest step.
    pub fn max_rows(&self) -> usize {
        self.shape.max_rows
    }

    /// Tokens by which a slot can be cut back at any time.
    pub fn rewind_rows(&self) -> usize {
        self.shape.rewind_rows
    }

    /// Appends the batch's tokens to their slots and returns the logits it
    /// asks for, `[n_outputs, n_vocab]`.
    pub fn step(&mut self, batch: &Batch) -> Result<&[f32], StepError> {
        match self.runner.step(batch) {
            Ok(logits) => {
                for segment in batch.segments() {
                    self.tokens[segment.slot].extend_from_slice(&segment.tokens);
                }
                Ok(logits)
            }
            Err(error) => {
                if let StepError::Backend(_) = error {
                    for segment in batch.segments() {
                        self.tokens[segment.slot].clear();
                    }
                }
                Err(error)
            }
        }
    }

    /// Tokens in a slot.
    pub fn tokens(&self, slot: usize) -> &[u32] {
        &self.tokens[slot]
    }

    /// Number of tokens in a slot.
    pub fn len(&self, slot: usize) -> usize {
        debug_assert_eq!(self.runner.len(slot), self.tokens[slot].len());
        self.tokens[slot].len()
    }

    /// Whether a slot holds nothing.
    pub fn is_empty(&self, slot: usize) -> bool {
        self.len(slot) == 0
    }

    /// Empties a slot.
    pub fn clear(&mut self, slot: usize) {
        self.runner.clear(slot);
        self.tokens[slot].clear();
    }

    /// Makes `to` a copy of `from`.
    pub fn fork(&mut self, from: usize, to: usize) {
        self.runner.fork(from, to);
        if from != to {
            self.tokens[to] = self.tokens[from].clone();
        }
    }

    /// Makes `to` a copy of the frontier's slot as it was there; the other slot stays
    /// as it is. On an error `to` is empty or as it was.
    pub fn fork_at(&mut self, frontier: &Frontier, to: usize) -> Result<(), RestoreError> {
        let forked = self.runner.fork_at(frontier, to);
        // A device that fails half way leaves the target empty.
        if self.runner.len(to) == 0 {
            self.tokens[to].clear();
        }
        forked?;
        self.tokens[to] = self.tokens[frontier.slot()][..frontier.len].to_vec();
        Ok(())
    }

    /// A frontier of the slot that `to` was copied from, as one of `to`; see
    /// [`ds4_model::Session::carry`].
    pub fn carry(&self, frontier: &Frontier, to: usize) -> Result<Frontier, RewindError> {
        self.runner.carry(frontier, to)
    }

    /// Shortest length that [`Engine::rewind`] can cut a slot back to, other
    /// than 0.
    pub fn rewind_floor(&self, slot: usize) -> usize {
        self.runner.rewind_floor(slot)
    }

    /// Cuts a slot back to its first `len` tokens.
    pub fn rewind(&mut self, slot: usize, len: usize) -> Result<(), RewindError> {
        self.runner.rewind(slot, len)?;
        self.tokens[slot].truncate(len);
        Ok(())
    }

    /// Takes what is needed to come back to this length later.
    pub fn frontier(&mut self, slot: usize) -> Result<Frontier, BackendError> {
        self.runner.frontier(slot)
    }

    /// The same for an earlier length, no earlier than [`Engine::rewind_floor`].
    pub fn frontier_at(&mut self, slot: usize, len: usize) -> Result<Frontier, RestoreError> {
        self.runner.frontier_at(slot, len)
    }

    /// Returns a slot to where a frontier was taken.
    pub fn restore(&mut self, slot: usize, frontier: &Frontier) -> Result<(), RestoreError> {
        self.runner.restore(slot, frontier)?;
        self.tokens[slot].truncate(frontier.len);
        Ok(())
    }

    /// Rows of a slot in logical order: positions of a ring, indices of
    /// compressed rows. The range must be inside what the slot holds.
    pub fn read_rows(
        &mut self,
        slot: usize,
        layer: usize,
        kind: RowKind,
        range: Range<usize>,
    ) -> Result<StoredRows, BackendError> {
        self.runner.read_rows(slot, layer, kind, range)
    }

    /// A slot's state, with the tokens it was made from.
    pub fn export(&mut self, slot: usize) -> Result<(Vec<u32>, SlotState), BackendError> {
        Ok((self.tokens[slot].clone(), self.runner.export(slot)?))
    }

    /// Fills a slot with an exported state.
    pub fn import(
        &mut self,
        slot: usize,
        tokens: &[u32],
        state: &SlotState,
    ) -> Result<(), ImportError> {
        self.clear(slot);
        if tokens.len() != state.len {
            return Err(ImportError::Mismatch {
                what: "the number of tokens".to_owned(),
                found: tokens.len().to_string(),
                expected: state.len.to_string(),
            });
        }
        self.runner.import(slot, state)?;
        self.tokens[slot] = tokens.to_vec();
        Ok(())
    }
}

fn load<B>(
    mut backend: B,
    gguf: &Gguf,
    geometry: &Geometry,
    shape: SessionShape,
    path: &Path,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Box<dyn Runner>, OpenError>
where
    B: Backend + Send + 'static,
    B::Buffer: Send,
    B::Weight: Send,
    B::Rows: Send,
{
    let n_bytes = gguf.tensors().map(|t| t.n_bytes).sum();
    let mut n_done = 0;
    let mut moved = |bytes| {
        n_done += bytes;
        progress(LoadProgress::Bound { n_done, n_bytes });
    };
    let find = |name: &str| gguf.tensor(name);
    let network = Network::bind(geometry, &mut backend, &find, &mut moved).map_err(|source| {
        OpenError::Weights {
            path: path.to_owned(),
            source,
        }
    })?;
    Ok(Box::new(Loaded::new(backend, network, shape)?))
}

/// Decides the session: as asked, or as much as fits.
fn plan(
    geometry: &Geometry,
    gguf: &Gguf,
    options: &OpenOptions,
) -> Result<(SessionShape, Plan), OpenError> {
    if options.n_slots == 0 || options.chunk == 0 {
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
    let available_bytes = options.memory_bytes.or_else(available_bytes);
    let budget = available_bytes.map_or(u64::MAX, |b| b - b / 16 * RESERVED_SIXTEENTHS);
    let shape = |context: usize| {
        let max_rows = options.chunk.min(context).max(options.n_slots);
        SessionShape {
            max_outputs: options.max_outputs.unwrap_or(options.n_slots),
            rounding: options.rounding,
            ..SessionShape::uniform(options.n_slots, context, max_rows)
        }
    };
    let limits = Limits::default();
    let needed = |context: usize| shape(context).plan(geometry, &limits).total_bytes() as u64;

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
                available_bytes: budget,
                fits: if fits < MIN_CONTEXT { 0 } else { fits },
            });
        }
        fits
    };
    let shape = shape(context);
    let memory = shape.plan(geometry, &limits);
    let weights_bytes = gguf.tensors().map(|t| t.n_bytes).sum();
    Ok((
        shape,
        Plan {
            weights_bytes,
            slots_bytes: memory.slots_bytes as u64,
            scratch_bytes: memory.scratch_bytes as u64,
            available_bytes,
            context,
            n_slots: options.n_slots,
        },
    ))
}

/// The tokenizer in a file's metadata; `None` when the file has none.
pub fn tokenizer_of(gguf: &Gguf, path: &Path) -> Result<Option<Tokenizer>, OpenError> {
    let metadata = gguf.metadata();
    if !metadata.contains("tokenizer.ggml.tokens") {
        return Ok(None);
    }
    let strings = |key: &str| -> Result<Vec<String>, gguf::Error> {
        Ok(metadata.strs(key)?.map(str::to_owned).collect())
    };
    let read = || -> Result<_, gguf::Error> {
        Ok((
            metadata.str("tokenizer.ggml.model")?,
            metadata.str("tokenizer.ggml.pre")?,
            strings("tokenizer.ggml.tokens")?,
            metadata.i32s("tokenizer.ggml.token_type")?,
            strings("tokenizer.ggml.merges")?,
        ))
    };
    let wrong = |reason: String| OpenError::Tokenizer {
        path: path.to_owned(),
        reason,
    };
    let (model, pre, tokens, types, merges) = read().map_err(|e| wrong(e.to_string()))?;
    Tokenizer::from_gguf_parts(model, pre, tokens, &types, merges)
        .map(Some)
        .map_err(|e| wrong(e.to_string()))
}
