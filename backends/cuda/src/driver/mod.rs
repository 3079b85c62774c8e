//! A thin layer over the driver: the calls this backend makes, each checked, with its name in the
//! error. Nothing here knows the network.

mod find;
mod memory;
mod module;
mod stream;

use std::cell::Cell;
use std::ffi::CStr;
use std::fmt;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::sys;

pub(crate) use memory::{Memory, Pinned};
pub(crate) use module::{Kernel, Module};
pub(crate) use stream::{Argument, Event, Graph, Launch, Parameter, Stream, parameter};

/// Oldest driver that has every call made here: CUDA 12.0.
const MIN_DRIVER: i32 = 12_000;
/// Oldest major compute capability that the kernels are compiled for.
const MIN_CAPABILITY: u32 = 8;

/// A call of the driver that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {name} ({text})")]
pub struct DriverError {
    /// The call, such as `cuLaunchKernel (rms_norm)`.
    pub call: String,
    /// The driver's name of the error.
    pub name: String,
    /// The driver's words.
    pub text: String,
    /// Whether there was no memory.
    pub out_of_memory: bool,
    /// Whether nothing on the device can be used any more.
    pub lost: bool,
}

/// Whether a failure ends the context: faults of kernels and of the device itself.
fn is_lost(result: sys::CUresult) -> bool {
    use sys::cudaError_enum as E;
    matches!(
        result,
        E::CUDA_ERROR_ILLEGAL_ADDRESS
            | E::CUDA_ERROR_LAUNCH_TIMEOUT
            | E::CUDA_ERROR_ASSERT
            | E::CUDA_ERROR_HARDWARE_STACK_ERROR
            | E::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | E::CUDA_ERROR_MISALIGNED_ADDRESS
            | E::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | E::CUDA_ERROR_INVALID_PC
            | E::CUDA_ERROR_LAUNCH_FAILED
            | E::CUDA_ERROR_ECC_UNCORRECTABLE
            | E::CUDA_ERROR_NVLINK_UNCORRECTABLE
            | E::CUDA_ERROR_DEVICE_UNAVAILABLE
            | E::CUDA_ERROR_CONTEXT_IS_DESTROYED
    )
}

/// Why there is no device to use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The driver's library is not there.
    #[error("the NVIDIA driver is not installed (libcuda was not found)")]
    NoDriver,
    /// The driver is too old.
    #[error(
        "the NVIDIA driver supports CUDA {}.{}, this program needs {}.{}: update the driver",
        found / 1000, found % 1000 / 10, MIN_DRIVER / 1000, MIN_DRIVER % 1000 / 10
    )]
    OldDriver {
        /// Version it supports, 1000 times the major number plus 10 times the minor.
        found: i32,
    },
    /// No device, or not this one.
    #[error("there is no CUDA device {ordinal}: the driver sees {count}")]
    NoDevice {
        /// The number asked for.
        ordinal: usize,
        /// Devices there are.
        count: usize,
    },
    /// The device is older than the kernels.
    #[error(
        "{name} has compute capability {major}.{minor}, the kernels need {}.0",
        MIN_CAPABILITY
    )]
    OldDevice {
        /// Its name.
        name: String,
        /// Its capability.
        major: u32,
        /// Its capability.
        minor: u32,
    },
    /// A call failed.
    #[error(transparent)]
    Driver(#[from] DriverError),
}

type Result<T> = std::result::Result<T, DriverError>;

fn check(result: sys::CUresult, call: impl FnOnce() -> String) -> Result<()> {
    if result == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut name = ptr::null();
    let mut text = ptr::null();
    // SAFETY: both calls write a pointer to a constant string of the driver, or leave null.
    unsafe {
        let _ = sys::cuGetErrorName(result, &mut name);
        let _ = sys::cuGetErrorString(result, &mut text);
    }
    let words = |p: *const std::ffi::c_char| {
        if p.is_null() {
            "unknown error".to_owned()
        } else {
            // SAFETY: a constant string of the driver, ended by a zero.
            unsafe { CStr::from_ptr(p) }.to_string_lossy().into_owned()
        }
    };
    Err(DriverError {
        call: call(),
        name: words(name),
        text: words(text),
        out_of_memory: result == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY,
        lost: is_lost(result),
    })
}

/// What is known of a device.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceFacts {
    /// Its name.
    pub name: String,
    /// Compute capability.
    pub major: u32,
    /// Compute capability.
    pub minor: u32,
    /// Multiprocessors.
    pub n_processors: u32,
    /// Most bytes of shared memory that a block can ask for.
    pub block_shared_bytes: u32,
    /// All its memory.
    pub memory_bytes: u64,
    /// Bytes a second of its memory by clock and width of the bus, where the driver says them.
    pub bandwidth: Option<f64>,
    /// CUDA version that the driver supports, 1000 times the major number plus 10 times the minor.
    pub driver: i32,
}

/// Two transfers a clock (in kHz) of the whole bus (in bits).
fn bandwidth(clock_khz: u32, bus_bits: u32) -> Option<f64> {
    let bytes = 2.0 * f64::from(clock_khz) * 1e3 * f64::from(bus_bits) / 8.0;
    (bytes > 0.0).then_some(bytes)
}

/// A device's primary context.
pub(crate) struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
    number: u64,
    pub(crate) facts: DeviceFacts,
}

// SAFETY: a context may be used from any thread that makes it current, which `Context::enter` does
// before every call that needs one.
unsafe impl Send for Context {}
// SAFETY: as above; the driver locks what threads share.
unsafe impl Sync for Context {}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Context").field(&self.facts.name).finish()
    }
}

thread_local! {
    /// Number of the context that is current in this thread, so that it is set only when it changes.
    static CURRENT: Cell<u64> = const { Cell::new(0) };
}

/// Number of the last context made: a handle of the driver may come again.
static N_CONTEXTS: AtomicU64 = AtomicU64::new(0);

impl Context {
    /// The context of a device, by number.
    pub(crate) fn new(ordinal: usize) -> std::result::Result<Arc<Context>, DeviceError> {
        let found = find::find(&find::Nvidia, ordinal)?;
        let device = find::handle(ordinal)?;
        let attribute = |what| find::attribute(device, what);
        use sys::CUdevice_attribute_enum as A;
        let mut context = ptr::null_mut();
        // SAFETY: released when this value is dropped.
        let retained = unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, device) };
        check(retained, || "cuDevicePrimaryCtxRetain".into())?;
        let mut made = Context {
            device,
            context,
            number: N_CONTEXTS.fetch_add(1, Ordering::Relaxed) + 1,
            facts: DeviceFacts {
                name: found.name,
                major: found.major,
                minor: found.minor,
                n_processors: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
                block_shared_bytes: attribute(
                    A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
                )?,
                memory_bytes: 0,
                bandwidth: bandwidth(
                    attribute(A::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?,
                    attribute(A::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?,
                ),
                driver: found.driver,
            },
        };
        made.facts.memory_bytes = made.memory()?.1;
        Ok(Arc::new(made))
    }

    /// Makes it current in this thread.
    pub(crate) fn enter(&self) -> Result<()> {
        if CURRENT.get() == self.number {
            return Ok(());
        }
        // SAFETY: the context lives as long as `self`.
        let result = unsafe { sys::cuCtxSetCurrent(self.context) };
        check(result, || "cuCtxSetCurrent".into())?;
        CURRENT.set(self.number);
        Ok(())
    }

    /// Bytes that are free, and all.
    pub(crate) fn memory(&self) -> Result<(u64, u64)> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two sizes.
        let result = unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) };
        check(result, || "cuMemGetInfo".into())?;
        Ok((free as u64, total as u64))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        CURRENT.set(0);
        // SAFETY: retained once in `new`. A lost device reports an error that nobody can act on.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}
