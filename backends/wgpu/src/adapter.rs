//! The adapter: which one is taken, and what it can do.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use ds4_model::BackendError;

use crate::kernels::{Kernels, Specialisation};
use crate::lack::{self, Lack};
use crate::self_check;

/// How a GPU is chosen and used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WgpuOptions {
    /// Part of the adapter's name, in any case; `None` for the best one.
    pub adapter: Option<String>,
    /// Whether an adapter that runs on the processor may be taken: for tests.
    pub allow_processor: bool,
    /// Whether only what every adapter has is used: no subgroups, halves or cooperative matrices.
    pub plain: bool,
    /// Most bytes of one binding, when it is to be less than the adapter's.
    pub max_binding_bytes: Option<u64>,
    /// Most bytes of one binding of a weight, when it is to be less: for tests.
    pub max_weight_bytes: Option<u64>,
    /// Whether shaders check their indices: slower, for tests.
    pub checked: bool,
    /// Whether an adapter's matrices of 8 x 8 are used. A network on those that plain code plays was
    /// wrong, and why is not known.
    pub matrices_8: bool,
    /// The size of cooperative matrices that plain code plays, 8 or 16: for tests.
    pub played_matrices: Option<u32>,
    /// Whether a turn after a product of one row is part of it: no card has been timed with that.
    pub joins_turns: bool,
    /// What the adapter is taken not to have, or to have less of.
    pub lacks: Vec<Lack>,
}

/// Why there is no GPU to work with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WgpuError {
    /// No adapter fits.
    #[error(
        "no GPU was found through {}: {found}; the CPU backend runs without one",
        APIS
    )]
    NoAdapter {
        /// What there is instead.
        found: String,
    },
    /// The adapter lacks something that every kernel needs.
    #[error(
        "{adapter} has no {lacking}, which this backend needs; the CPU backend runs without it"
    )]
    Feature {
        /// The adapter.
        adapter: String,
        /// What it lacks.
        lacking: String,
    },
    /// A limit of the adapter is below what every kernel needs.
    #[error(
        "{adapter} has {has} {what}, of which this backend needs {needs}; the CPU backend runs without them"
    )]
    Limit {
        /// The adapter.
        adapter: String,
        /// What there is too little of.
        what: &'static str,
        /// What the adapter has.
        has: u64,
        /// What is needed.
        needs: u64,
    },
    /// The driver did not open the device.
    #[error("{adapter} could not be opened: {reason}")]
    Device {
        /// The adapter.
        adapter: String,
        /// The driver's words.
        reason: String,
    },
}

const APIS: &str = if cfg!(target_os = "macos") {
    "Metal"
} else {
    "Vulkan (its loader and a driver must be installed)"
};

/// What an adapter can do, as far as the kernels differ by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Name of the adapter.
    pub name: String,
    /// Driver and its version.
    pub driver: String,
    /// The API it is reached through.
    pub api: String,
    /// Lanes of a subgroup, least and most; `None` without subgroup operations.
    pub subgroup: Option<(u32, u32)>,
    /// Whether shaders compute in f16.
    pub f16: bool,
    /// Whether four products of 8-bit integers are one instruction.
    pub integer_dot: bool,
    /// Whether there are cooperative matrices of 16 x 16 x 16, f16 times f16 into f32.
    pub cooperative_16: bool,
    /// Whether attention may go on those matrices.
    pub matrix_attention: bool,
    /// Whether there are cooperative matrices of 8 x 8 x 8, f16 times f16 into f32, and they are used.
    pub cooperative_8: bool,
    /// Whether plain code plays those matrices.
    pub played: bool,
    /// Whether the device shares the processor's memory.
    pub unified: bool,
    /// Bytes of the device's own memory, where it has some and the driver says how much.
    pub memory_bytes: Option<u64>,
    /// Most bytes of one binding.
    pub max_binding_bytes: u64,
    /// Most bytes of one binding of a weight.
    pub max_weight_bytes: u64,
    /// Most bytes of one buffer.
    pub max_buffer_bytes: u64,
    /// Bytes of workgroup memory.
    pub workgroup_bytes: u32,
    /// Lanes of a workgroup.
    pub workgroup_lanes: u32,
    /// Storage buffers of one kernel.
    pub storage_buffers: u32,
    /// Whether passes can be timed from inside.
    pub timestamps: bool,
    /// Forms of products that gave wrong results when the device was opened, which are not used.
    pub turned_off: Vec<String>,
}

impl Capabilities {
    /// Whether kernels on matrices of 16 by 16, which stand on subgroups of 32, are used.
    pub(crate) fn matrices_16(&self) -> bool {
        self.cooperative_16 && self.f16 && self.teams_of_32()
    }

    /// Whether kernels on matrices of 8 by 8 are used.
    pub(crate) fn matrices_8(&self) -> bool {
        self.cooperative_8 && self.f16 && self.teams_of_32()
    }

    /// Matrices belong to subgroups of 32 lanes; played ones do not.
    fn teams_of_32(&self) -> bool {
        self.played || self.subgroup == Some((32, 32))
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {})", self.name, self.api, self.driver)?;
        match self.subgroup {
            Some((least, most)) if least == most => write!(f, "; subgroups of {least}")?,
            Some((least, most)) => write!(f, "; subgroups of {least} to {most}")?,
            None => write!(f, "; no subgroups")?,
        }
        for (has, what) in [
            (self.f16, "f16"),
            (self.integer_dot, "integer dot products"),
            (self.cooperative_16, "16x16 matrices"),
            (self.cooperative_8, "8x8 matrices"),
            (self.played, "which plain code plays"),
            (self.unified, "unified memory"),
        ] {
            if has {
                write!(f, ", {what}")?;
            }
        }
        if let Some(n_bytes) = self.memory_bytes {
            write!(f, "; {:.1} GiB", n_bytes as f64 / f64::from(1u32 << 30))?;
        }
        write!(f, "; bindings up to {} MiB", self.max_binding_bytes >> 20)?;
        if !self.turned_off.is_empty() {
            write!(
                f,
                "; not used, because wrong: {}",
                self.turned_off.join(", ")
            )?;
        }
        Ok(())
    }
}

/// An open device, shared by every backend that runs on it.
pub struct Gpu {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) capabilities: Capabilities,
    pub(crate) kernels: Mutex<Kernels>,
    pub(crate) failure: Arc<Mutex<Option<Failure>>>,
    pub(crate) checked: bool,
    pub(crate) plain: bool,
    pub(crate) joins_turns: bool,
}

/// The first error that no call returned; that the device is lost comes before any other.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) text: String,
    pub(crate) is_lost: bool,
}

pub(crate) fn note(failure: &Mutex<Option<Failure>>, text: String, is_lost: bool) {
    let mut there = locked(failure);
    if there.as_ref().is_none_or(|there| is_lost && !there.is_lost) {
        *there = Some(Failure { text, is_lost });
    }
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Every open device, to be lost.
static OPEN: Mutex<Vec<Weak<Gpu>>> = Mutex::new(Vec::new());

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gpu({})", self.capabilities)
    }
}

fn backends() -> wgpu::Backends {
    wgpu::Backends::METAL | wgpu::Backends::VULKAN
}

fn instance() -> wgpu::Instance {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = backends();
    descriptor.flags = wgpu::InstanceFlags::empty();
    wgpu::Instance::new(descriptor)
}

/// Discrete adapters before integrated ones, and those on the processor last.
fn rank(info: &wgpu::AdapterInfo) -> u32 {
    match info.device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    }
}

impl Gpu {
    /// Opens the adapter that `options` ask for.
    ///
    /// # Errors
    /// There is none, it lacks a feature that every kernel needs, or its driver refuses.
    pub fn open(options: &WgpuOptions) -> Result<Arc<Gpu>, WgpuError> {
        let adapter = choose(options)?;
        let info = adapter.get_info();
        let mut features = adapter.features();
        let mut limits = adapter.limits();
        let mut memory_bytes = lack::own_memory(&adapter, &info);
        for lack in &options.lacks {
            lack.apply(&mut features, &mut limits, &mut memory_bytes);
        }
        lack::check(&info.name, features, &limits)?;
        let needed = lack::NEEDED;
        let matrices = adapter.cooperative_matrix_properties();
        let cooperative = |size: u32| {
            matrices.iter().any(|m| {
                (m.m_size, m.n_size, m.k_size) == (size, size, size)
                    && m.ab_type == wgpu::CooperativeScalarType::F16
                    && m.cr_type == wgpu::CooperativeScalarType::F32
            })
        };
        let mut wanted = wgpu::Features::TIMESTAMP_QUERY
            | wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES
            | wgpu::Features::MAPPABLE_PRIMARY_BUFFERS;
        if !options.plain {
            wanted |= wgpu::Features::SUBGROUP
                | wgpu::Features::SHADER_F16
                | wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
        }
        let taken = needed | (wanted & features);
        // SAFETY: of the experimental features only cooperative matrices are used, in shapes that
        // the adapter lists.
        let experimental_features = unsafe { wgpu::ExperimentalFeatures::enabled() };
        let opened = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("ds4"),
            required_features: taken,
            required_limits: limits,
            experimental_features,
            memory_hints: wgpu::MemoryHints::Performance,
            trace: wgpu::Trace::Off,
        }));
        let (device, queue) = opened.map_err(|error| WgpuError::Device {
            adapter: info.name.clone(),
            reason: error.to_string(),
        })?;
        let failure = Arc::new(Mutex::new(None));
        let uncaptured = Arc::clone(&failure);
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            note(&uncaptured, error.to_string(), false);
        }));
        let lost = Arc::clone(&failure);
        let name = info.name.clone();
        device.set_device_lost_callback(move |_, message| {
            note(&lost, format!("{name}: {message}"), true);
        });
        let limits = device.limits();
        let has = |feature| taken.contains(feature);
        let has_matrices = has(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX);
        let plays = |size| options.played_matrices == Some(size);
        let is_metal = info.backend == wgpu::Backend::Metal;
        let capabilities = Capabilities {
            driver: format!("{} {}", info.driver, info.driver_info)
                .trim()
                .to_owned(),
            api: format!("{:?}", info.backend),
            subgroup: has(wgpu::Features::SUBGROUP)
                .then_some((info.subgroup_min_size, info.subgroup_max_size)),
            f16: has(wgpu::Features::SHADER_F16),
            // Apple's GPUs have none, and the translation to scalar products is slower than floats.
            integer_dot: !options.plain && !is_metal && !options.lacks.contains(&Lack::Integers),
            cooperative_16: plays(16) || (has_matrices && cooperative(16)),
            matrix_attention: true,
            cooperative_8: plays(8) || (options.matrices_8 && has_matrices && cooperative(8)),
            played: options.played_matrices.is_some(),
            unified: is_metal || info.device_type == wgpu::DeviceType::IntegratedGpu,
            memory_bytes,
            max_binding_bytes: options
                .max_binding_bytes
                .unwrap_or(u64::MAX)
                .min(limits.max_storage_buffer_binding_size),
            max_weight_bytes: options
                .max_weight_bytes
                .or(options.max_binding_bytes)
                .unwrap_or(u64::MAX)
                .min(limits.max_storage_buffer_binding_size),
            max_buffer_bytes: limits.max_buffer_size,
            workgroup_bytes: limits.max_compute_workgroup_storage_size,
            workgroup_lanes: limits.max_compute_invocations_per_workgroup,
            storage_buffers: limits.max_storage_buffers_per_shader_stage,
            turned_off: Vec::new(),
            timestamps: has(wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES),
            name: info.name,
        };
        let mut gpu = Arc::new(Gpu {
            kernels: Mutex::new(Kernels::new(&device)),
            device,
            queue,
            capabilities,
            failure,
            checked: options.checked,
            plain: options.plain,
            joins_turns: options.joins_turns,
        });
        if !options.plain {
            let off = self_check::turn_off_what_fails(&mut gpu);
            if let Some(gpu) = Arc::get_mut(&mut gpu) {
                gpu.capabilities.turned_off = off;
                // What a wrong form left behind is no failure of what is used.
                locked(&gpu.failure).take_if(|failure| !failure.is_lost);
            }
        }
        let mut open = locked(&OPEN);
        open.retain(|gpu| gpu.strong_count() > 0);
        open.push(Arc::downgrade(&gpu));
        Ok(gpu)
    }

    /// Takes the device away, as a driver does that gives it up: what is asked of it afterwards says
    /// that it is lost.
    pub fn lose(&self) {
        let text = format!("{}: it was taken away", self.capabilities.name);
        note(&self.failure, text, true);
        self.device.destroy();
    }

    /// Takes every open device of this process away, for tests of what stands on one.
    pub fn lose_every_device() {
        let open: Vec<Arc<Gpu>> = locked(&OPEN).iter().filter_map(Weak::upgrade).collect();
        for gpu in open {
            gpu.lose();
        }
    }

    /// Compiles a kernel in a specialisation without running it.
    ///
    /// # Errors
    /// The adapter's limits or its driver refuse it.
    pub fn compile(&self, what: &Specialisation) -> Result<(), BackendError> {
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        locked(&self.kernels).kernel(self, what);
        match pollster::block_on(scope.pop()) {
            Some(error) => Err(BackendError::Device(format!("{}: {error}", what.name()))),
            None => Ok(()),
        }
    }

    /// What the adapter can do.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }
}

fn choose(options: &WgpuOptions) -> Result<wgpu::Adapter, WgpuError> {
    let mut adapters = pollster::block_on(instance().enumerate_adapters(backends()));
    adapters.sort_by_key(|adapter| rank(&adapter.get_info()));
    let names: Vec<String> = adapters
        .iter()
        .map(|adapter| adapter.get_info().name)
        .collect();
    adapters
        .into_iter()
        .find(|adapter| {
            let info = adapter.get_info();
            let named = options.adapter.as_ref().is_none_or(|part| {
                info.name
                    .to_lowercase()
                    .contains(part.to_lowercase().as_str())
            });
            named && (options.allow_processor || info.device_type != wgpu::DeviceType::Cpu)
        })
        .ok_or_else(|| WgpuError::NoAdapter {
            found: if names.is_empty() {
                "there is no adapter".to_owned()
            } else {
                format!("there is only {}", names.join(", "))
            },
        })
}
