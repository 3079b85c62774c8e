//! Opening a model.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::sync::Arc;

use ds4_cpu::{CpuBackend, CpuOptions, SimdPath};
use ds4_cuda::{CudaBackend, CudaOptions};
use ds4_formats::gguf::{self, Gguf};
use ds4_model::{Geometry, Network, Reference, SessionShape};
use ds4_text::Tokenizer;

use crate::gpu;
use crate::plan::{BackendKind, OpenError, OpenOptions, Plan, plan};
use crate::slots::{Loaded, Measured, Slots};

/// How far opening has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoadProgress {
    /// The file is mapped and its table checked.
    Opened {
        /// Tensors in it.
        n_tensors: usize,
        /// Its size.
        file_bytes: u64,
    },
    /// What will compute was chosen among several.
    Chosen {
        /// What, and why: one line.
        what: String,
        /// Whether there is a device that it could not be.
        is_fallback: bool,
    },
    /// Weights were bound to the backend.
    Bound {
        /// So many bytes.
        n_done: u64,
        /// Of so many in the file.
        n_bytes: u64,
    },
}

/// A loaded model: its [`Slots`], and what is known of it.
pub struct Engine {
    slots: Box<dyn Slots>,
    geometry: Geometry,
    name: String,
    tokenizer: Option<Arc<Tokenizer>>,
    plan: Plan,
    backend: BackendKind,
    numerics: String,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("name", &self.name)
            .field("plan", &self.plan)
            .finish_non_exhaustive()
    }
}

impl Deref for Engine {
    type Target = dyn Slots;

    fn deref(&self) -> &Self::Target {
        &*self.slots
    }
}

impl DerefMut for Engine {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut *self.slots
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
        let opened = match options.backend {
            BackendKind::Reference => {
                let backend = Reference::new(&geometry);
                let (slots, plan) = load(backend, gguf, options, progress)?;
                Opened::new(BackendKind::Reference, "reference".to_owned(), slots, plan)
            }
            BackendKind::Cpu => on_cpu(&geometry, gguf, options, progress)?,
            BackendKind::Cuda | BackendKind::Wgpu if !gpu::LOADS_DRIVERS => {
                return Err(OpenError::NoGpu(gpu::LINKED_STATICALLY.to_owned()));
            }
            BackendKind::Cuda => {
                let backend = cuda(&geometry, options)?;
                let numerics = format!("cuda {}", backend.device().name);
                let (slots, plan) = load(backend, gguf, options, progress)?;
                Opened::new(BackendKind::Cuda, numerics, slots, plan)
            }
            BackendKind::Wgpu => {
                let (backend, what) = gpu::open(&geometry, true, &options.gpu)?;
                progress(LoadProgress::Chosen {
                    what: format!("running on {what}"),
                    is_fallback: false,
                });
                let options = &gpu::within_memory(options);
                let (slots, plan) = load(backend, gguf, options, progress)?;
                Opened::new(BackendKind::Wgpu, format!("wgpu {what}"), slots, plan)
            }
            BackendKind::Auto => on_the_best(&geometry, gguf, options, progress)?,
        };
        let Opened {
            backend,
            numerics,
            slots,
            plan,
        } = opened;
        Ok(Engine {
            slots,
            name: gguf
                .metadata()
                .str("general.name")
                .unwrap_or("unnamed")
                .to_owned(),
            tokenizer,
            plan,
            backend,
            numerics,
            geometry,
        })
    }

    /// Puts something between this engine and its slots, such as an observer, or what makes them fail.
    pub fn with_slots(mut self, wrap: impl FnOnce(Box<dyn Slots>) -> Box<dyn Slots>) -> Engine {
        self.slots = wrap(self.slots);
        self
    }

    /// What computes; never [`BackendKind::Auto`].
    pub fn backend(&self) -> BackendKind {
        self.backend
    }

    /// Names the kernels that compute, down to the instruction set or the device: states of equal
    /// names can be mixed, those of others may differ in their last bits.
    pub fn numerics(&self) -> &str {
        &self.numerics
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
        self.shape().longest()
    }

    /// Slots.
    pub fn n_slots(&self) -> usize {
        self.shape().n_slots()
    }

    /// Number of tokens in a slot.
    pub fn len(&self, slot: usize) -> usize {
        self.tokens(slot).len()
    }

    /// Whether a slot holds nothing.
    pub fn is_empty(&self, slot: usize) -> bool {
        self.len(slot) == 0
    }

    /// Gives all slots up and takes as many of `context` tokens. On an error they are as
    /// long as they were, and empty.
    pub fn set_context(&mut self, context: usize) -> Result<(), OpenError> {
        let limit = self.geometry.max_context;
        if context > limit {
            return Err(OpenError::ContextTooLong {
                asked: context,
                limit,
            });
        }
        let shape = SessionShape {
            capacities: vec![context; self.n_slots()],
            max_rows: self.shape().max_rows.min(context),
            ..self.shape().clone()
        };
        let memory = self.slots.session_bytes(&shape);
        let plan = self.plan.with_context(context, memory)?;
        self.slots.reopen(shape)?;
        self.plan = plan;
        Ok(())
    }
}

/// What computes, its slots, and what they take.
struct Opened {
    backend: BackendKind,
    numerics: String,
    slots: Box<dyn Slots>,
    plan: Plan,
}

impl Opened {
    fn new(backend: BackendKind, numerics: String, slots: Box<dyn Slots>, plan: Plan) -> Opened {
        Opened {
            backend,
            numerics,
            slots,
            plan,
        }
    }
}

pub(crate) fn cuda(geometry: &Geometry, options: &OpenOptions) -> Result<CudaBackend, OpenError> {
    let options = CudaOptions {
        cache: options.kernel_cache.clone(),
        timed: options.timed,
        ..CudaOptions::default()
    };
    Ok(CudaBackend::new(geometry, options)?)
}

fn on_cpu(
    geometry: &Geometry,
    gguf: &Gguf,
    options: &OpenOptions,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Opened, OpenError> {
    let cpu = CpuOptions {
        n_threads: options.n_threads,
        simd: options.simd,
    };
    let backend = CpuBackend::new(geometry, cpu).map_err(|e| OpenError::Options(e.to_string()))?;
    let path = options.simd.unwrap_or_else(SimdPath::best);
    let numerics = format!("cpu {path}");
    let (slots, plan) = load(backend, gguf, options, progress)?;
    Ok(Opened::new(BackendKind::Cpu, numerics, slots, plan))
}

/// On the device if there is one and the model fits it, or on the GPU of a given name. Says
/// which, and why not the device, unless there is none: most machines have none, and nobody
/// expects it.
fn on_the_best(
    geometry: &Geometry,
    gguf: &Gguf,
    options: &OpenOptions,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Opened, OpenError> {
    if !gpu::LOADS_DRIVERS {
        if may_have_gpu() {
            let what = format!("running on the processor: {}", gpu::LINKED_STATICALLY);
            let is_fallback = true;
            progress(LoadProgress::Chosen { what, is_fallback });
        }
        return on_cpu(geometry, gguf, options, progress);
    }
    if options.gpu.name.is_some() {
        return match on_any_gpu(geometry, gguf, options, progress) {
            Ok(opened) => Ok(opened),
            Err(error @ OpenError::Options(_)) => Err(error),
            Err(error) => {
                let what = format!("running on the processor: {error}");
                let is_fallback = true;
                progress(LoadProgress::Chosen { what, is_fallback });
                on_cpu(geometry, gguf, options, progress)
            }
        };
    }
    let why_not = match cuda(geometry, options) {
        Ok(backend) => match plan(&backend, gguf, options) {
            Ok(_) => {
                let facts = backend.device();
                let gib = facts.memory_bytes as f64 / f64::from(1u32 << 30);
                let what = format!(
                    "running on {} ({gib:.0} GiB): the model fits it",
                    facts.name
                );
                let is_fallback = false;
                progress(LoadProgress::Chosen { what, is_fallback });
                let numerics = format!("cuda {}", facts.name);
                match load(backend, gguf, options, progress) {
                    Ok((slots, plan)) => {
                        return Ok(Opened::new(BackendKind::Cuda, numerics, slots, plan));
                    }
                    Err(error) => Some(error.to_string()),
                }
            }
            Err(error) => Some(error.to_string()),
        },
        Err(OpenError::NoDevice(error)) if error.is_absent() && !may_have_gpu() => None,
        Err(OpenError::NoDevice(error)) if error.is_absent() => {
            match on_any_gpu(geometry, gguf, options, progress) {
                Ok(opened) => return Ok(opened),
                Err(OpenError::NoGpu(_)) => None,
                Err(error) => Some(error.to_string()),
            }
        }
        // What to use instead is what follows.
        Err(OpenError::NoDevice(error)) => Some(error.to_string()),
        Err(error) => Some(error.to_string()),
    };
    if let Some(error) = why_not {
        let what = format!("running on the processor: {error}");
        let is_fallback = true;
        progress(LoadProgress::Chosen { what, is_fallback });
    }
    on_cpu(geometry, gguf, options, progress)
}

/// Whether it is worth asking for a GPU: drivers that find none can be slow to say so, and
/// talk on standard error meanwhile. Linux shows one as a file.
pub(crate) fn may_have_gpu() -> bool {
    if !cfg!(target_os = "linux") {
        return true;
    }
    let nodes = std::fs::read_dir("/dev/dri")
        .into_iter()
        .flatten()
        .flatten();
    let mut names = nodes.map(|node| node.file_name());
    names.any(|name| name.to_string_lossy().starts_with("renderD"))
        || Path::new("/dev/nvidia0").exists()
}

/// On a GPU through wgpu, if there is one and the model fits it.
fn on_any_gpu(
    geometry: &Geometry,
    gguf: &Gguf,
    options: &OpenOptions,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Opened, OpenError> {
    let (backend, what) = gpu::open(geometry, false, &options.gpu)?;
    let options = &gpu::within_memory(options);
    plan(&backend, gguf, options)?;
    progress(LoadProgress::Chosen {
        what: format!("running on {what}"),
        is_fallback: false,
    });
    let (slots, plan) = load(backend, gguf, options, progress)?;
    Ok(Opened::new(
        BackendKind::Wgpu,
        format!("wgpu {what}"),
        slots,
        plan,
    ))
}

fn load<B>(
    mut backend: B,
    gguf: &Gguf,
    options: &OpenOptions,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<(Box<dyn Slots>, Plan), OpenError>
where
    B: Measured + Send + 'static,
    B::Buffer: Send,
    B::Weight: Send,
    B::Rows: Send,
{
    let geometry = backend.geometry().clone();
    let (shape, plan) = plan(&backend, gguf, options)?;
    let n_bytes = gguf.tensors().map(|t| t.n_bytes).sum();
    let mut n_done = 0;
    let mut moved = |bytes| {
        n_done += bytes;
        progress(LoadProgress::Bound { n_done, n_bytes });
    };
    let find = |name: &str| gguf.tensor(name);
    let network = Network::bind(&geometry, &mut backend, &find, &mut moved).map_err(|source| {
        OpenError::Weights {
            path: options.model.clone(),
            source,
        }
    })?;
    Ok((Box::new(Loaded::new(backend, network, shape)?), plan))
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
