//! A thin layer over the driver: the calls this backend makes, each checked, with its name in the
//! error. Nothing here knows the network.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_void};
use std::fmt;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::sys;

/// Oldest driver that has every call made here: CUDA 12.0.
const MIN_DRIVER: i32 = 12_000;
/// Driver that tells the sizes of a kernel's parameters: CUDA 12.4.
const PARAMETER_DRIVER: i32 = 12_040;
/// Driver that has the current call for the time between two events: CUDA 12.8.
const EVENT_TIME_DRIVER: i32 = 12_080;

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
    #[error("{name} has compute capability {major}.{minor}, the kernels need 8.0")]
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
        // SAFETY: loads the library by its usual names, and its initialisers are NVIDIA's.
        if !unsafe { sys::is_culib_present() } {
            return Err(DeviceError::NoDriver);
        }
        let mut driver = 0;
        let mut count = 0;
        // SAFETY: the library is there, and the calls write one integer each.
        unsafe {
            check(sys::cuDriverGetVersion(&mut driver), || {
                "cuDriverGetVersion".into()
            })?;
            if driver < MIN_DRIVER {
                return Err(DeviceError::OldDriver { found: driver });
            }
            let started = sys::cuInit(0);
            if started == sys::CUresult::CUDA_ERROR_NO_DEVICE {
                return Err(DeviceError::NoDevice { ordinal, count: 0 });
            }
            check(started, || "cuInit".into())?;
            check(sys::cuDeviceGetCount(&mut count), || {
                "cuDeviceGetCount".into()
            })?;
        }
        if ordinal >= count as usize {
            return Err(DeviceError::NoDevice {
                ordinal,
                count: count as usize,
            });
        }
        let mut device = 0;
        let mut name = [0; 256];
        // SAFETY: `ordinal` is one of the devices, and the buffer has the length that is said.
        unsafe {
            check(sys::cuDeviceGet(&mut device, ordinal as i32), || {
                "cuDeviceGet".into()
            })?;
            check(
                sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as i32 - 1, device),
                || "cuDeviceGetName".into(),
            )?;
        }
        // SAFETY: the buffer was zero, and its last byte was not given to the driver.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) };
        let name = name.to_string_lossy().into_owned();
        let attribute = |what: sys::CUdevice_attribute| -> Result<u32> {
            let mut value = 0;
            // SAFETY: a known attribute of a device that is there.
            let result = unsafe { sys::cuDeviceGetAttribute(&mut value, what, device) };
            check(result, || "cuDeviceGetAttribute".into())?;
            Ok(value.max(0) as u32)
        };
        use sys::CUdevice_attribute_enum as A;
        let major = attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        if major < 8 {
            return Err(DeviceError::OldDevice { name, major, minor });
        }
        let mut context = ptr::null_mut();
        // SAFETY: released when this value is dropped.
        let retained = unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, device) };
        check(retained, || "cuDevicePrimaryCtxRetain".into())?;
        let mut made = Context {
            device,
            context,
            number: N_CONTEXTS.fetch_add(1, Ordering::Relaxed) + 1,
            facts: DeviceFacts {
                name,
                major,
                minor,
                n_processors: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
                block_shared_bytes: attribute(
                    A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
                )?,
                memory_bytes: 0,
                bandwidth: bandwidth(
                    attribute(A::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?,
                    attribute(A::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?,
                ),
                driver,
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
        check(unsafe { sys::cuCtxSetCurrent(self.context) }, || {
            "cuCtxSetCurrent".into()
        })?;
        CURRENT.set(self.number);
        Ok(())
    }

    /// Bytes that are free, and all.
    pub(crate) fn memory(&self) -> Result<(u64, u64)> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two sizes.
        check(
            unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) },
            || "cuMemGetInfo".into(),
        )?;
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

/// Memory on the device.
pub(crate) struct Memory {
    context: Arc<Context>,
    at: sys::CUdeviceptr,
    n_bytes: usize,
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Memory({} bytes)", self.n_bytes)
    }
}

impl Memory {
    pub(crate) fn new(context: &Arc<Context>, n_bytes: usize) -> Result<Memory> {
        context.enter()?;
        let mut at = 0;
        // SAFETY: plain device memory, freed when this value is dropped.
        check(
            unsafe { sys::cuMemAlloc_v2(&mut at, n_bytes.max(1)) },
            || format!("cuMemAlloc of {n_bytes} bytes"),
        )?;
        Ok(Memory {
            context: context.clone(),
            at,
            n_bytes,
        })
    }

    /// Its address on the device.
    pub(crate) fn address(&self) -> u64 {
        self.at
    }

    pub(crate) fn n_bytes(&self) -> usize {
        self.n_bytes
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = self.context.enter();
        // SAFETY: allocated in `new`, freed once. The driver waits for work that uses it.
        let _ = unsafe { sys::cuMemFree_v2(self.at) };
    }
}

/// Page-locked memory of the host, which the device reads and writes without the processor.
pub(crate) struct Pinned {
    context: Arc<Context>,
    at: *mut u8,
    n_bytes: usize,
}

// SAFETY: the memory is owned by this value and has no thread of its own.
unsafe impl Send for Pinned {}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pinned({} bytes)", self.n_bytes)
    }
}

impl Pinned {
    pub(crate) fn new(context: &Arc<Context>, n_bytes: usize) -> Result<Pinned> {
        context.enter()?;
        let mut at = ptr::null_mut();
        // SAFETY: freed when this value is dropped.
        check(
            unsafe { sys::cuMemHostAlloc(&mut at, n_bytes.max(1), 0) },
            || format!("cuMemHostAlloc of {n_bytes} bytes"),
        )?;
        // SAFETY: at least `n_bytes` were allocated.
        unsafe { ptr::write_bytes(at.cast::<u8>(), 0, n_bytes) };
        Ok(Pinned {
            context: context.clone(),
            at: at.cast(),
            n_bytes,
        })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: allocated with this length and initialised; the device writes it only between a
        // copy and the wait for it, which the owner does before it reads.
        unsafe { std::slice::from_raw_parts(self.at, self.n_bytes) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `self` is borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.n_bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = self.context.enter();
        // SAFETY: allocated in `new`, freed once.
        let _ = unsafe { sys::cuMemFreeHost(self.at.cast()) };
    }
}

/// A queue of work.
pub(crate) struct Stream {
    context: Arc<Context>,
    stream: sys::CUstream,
}

// SAFETY: a stream may be used from any thread of its context.
unsafe impl Send for Stream {}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stream")
    }
}

/// How a kernel is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Launch {
    /// Blocks.
    pub(crate) grid: [u32; 3],
    /// Threads of a block.
    pub(crate) threads: u32,
    /// Dynamic shared memory of a block.
    pub(crate) shared_bytes: u32,
    /// Blocks of a cluster; 1 for none.
    pub(crate) cluster: u32,
    /// Whether all blocks must be on the device at once.
    pub(crate) cooperative: bool,
    /// Whether it may start before the kernel ahead of it ends (it waits for it itself).
    pub(crate) dependent: bool,
}

impl Launch {
    pub(crate) fn new(grid: [usize; 3], threads: u32) -> Launch {
        Launch {
            grid: grid.map(|n| n as u32),
            threads,
            shared_bytes: 0,
            cluster: 1,
            cooperative: false,
            dependent: false,
        }
    }

    pub(crate) fn cooperative(mut self) -> Launch {
        self.cooperative = true;
        self
    }

    pub(crate) fn shared(mut self, bytes: usize) -> Launch {
        self.shared_bytes = bytes as u32;
        self
    }
}

/// A value that a kernel takes as it is.
pub(crate) trait Argument: Copy {}

impl Argument for u64 {}
impl Argument for u32 {}
impl Argument for f32 {}

/// A pointer to an argument and its size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parameter {
    at: *mut c_void,
    n_bytes: usize,
}

/// The parameter of a value, which must live until the launch.
pub(crate) fn parameter<A: Argument>(value: &A) -> Parameter {
    Parameter {
        at: ptr::from_ref(value).cast_mut().cast(),
        n_bytes: size_of::<A>(),
    }
}

impl Stream {
    pub(crate) fn new(context: &Arc<Context>) -> Result<Stream> {
        context.enter()?;
        let mut stream = ptr::null_mut();
        let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: destroyed when this value is dropped.
        check(unsafe { sys::cuStreamCreate(&mut stream, flags) }, || {
            "cuStreamCreate".into()
        })?;
        Ok(Stream {
            context: context.clone(),
            stream,
        })
    }

    /// Waits for everything so far.
    pub(crate) fn wait(&self) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the stream lives.
        check(unsafe { sys::cuStreamSynchronize(self.stream) }, || {
            "cuStreamSynchronize".into()
        })
    }

    /// Copies pinned bytes to an address of the device.
    ///
    /// # Safety
    /// The address has room, and the bytes stay as they are until the copy is done.
    pub(crate) unsafe fn to_device(&self, to: u64, from: &[u8]) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the caller's duty.
        let copied =
            unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.as_ptr().cast(), from.len(), self.stream) };
        check(copied, || {
            format!("cuMemcpyHtoDAsync of {} bytes", from.len())
        })
    }

    /// Copies bytes of the device to pinned memory.
    ///
    /// # Safety
    /// The address has so many bytes, and nobody touches `to` until the copy is done.
    pub(crate) unsafe fn to_host(&self, to: &mut [u8], from: u64) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the caller's duty.
        let copied = unsafe {
            sys::cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), from, to.len(), self.stream)
        };
        check(copied, || {
            format!("cuMemcpyDtoHAsync of {} bytes", to.len())
        })
    }

    /// Copies bytes on the device.
    ///
    /// # Safety
    /// Both addresses have so many bytes, and they do not overlap.
    pub(crate) unsafe fn on_device(&self, to: u64, from: u64, n_bytes: usize) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the caller's duty.
        let copied = unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, n_bytes, self.stream) };
        check(copied, || format!("cuMemcpyDtoDAsync of {n_bytes} bytes"))
    }

    /// Sets memory to zero.
    pub(crate) fn clear(&self, memory: &Memory) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the whole of a live allocation.
        let set = unsafe { sys::cuMemsetD8Async(memory.at, 0, memory.n_bytes.max(1), self.stream) };
        check(set, || "cuMemsetD8Async".into())
    }

    /// Starts a kernel.
    ///
    /// # Panics
    /// When the parameters are not those of the kernel: their number or sizes.
    ///
    /// # Safety
    /// Addresses among the parameters have the bytes that the kernel touches.
    pub(crate) unsafe fn launch(
        &self,
        kernel: &Kernel,
        launch: Launch,
        parameters: &[Parameter],
    ) -> Result<()> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        self.context.enter()?;
        if let Some(sizes) = &kernel.parameters {
            let found: Vec<usize> = parameters.iter().map(|p| p.n_bytes).collect();
            assert_eq!(&found, sizes, "bytes of the parameters of {}", kernel.name);
        }
        let mut pointers: Vec<*mut c_void> = parameters.iter().map(|p| p.at).collect();
        use sys::CUlaunchAttributeID_enum as Id;
        let mut attributes = [sys::CUlaunchAttribute {
            id: Id::CU_LAUNCH_ATTRIBUTE_IGNORE,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { pad: [0; 64] },
        }; 3];
        let mut n_attributes = 0;
        if launch.cluster > 1 {
            attributes[n_attributes].id = Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
            attributes[n_attributes].value.clusterDim =
                sys::CUlaunchAttributeValue_union__bindgen_ty_1 {
                    x: launch.cluster,
                    y: 1,
                    z: 1,
                };
            n_attributes += 1;
        }
        if launch.cooperative {
            attributes[n_attributes].id = Id::CU_LAUNCH_ATTRIBUTE_COOPERATIVE;
            attributes[n_attributes].value.cooperative = 1;
            n_attributes += 1;
        }
        if launch.dependent {
            attributes[n_attributes].id = Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
            attributes[n_attributes]
                .value
                .programmaticStreamSerializationAllowed = 1;
            n_attributes += 1;
        }
        let config = sys::CUlaunchConfig {
            gridDimX: launch.grid[0],
            gridDimY: launch.grid[1],
            gridDimZ: launch.grid[2],
            blockDimX: launch.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared_bytes,
            hStream: self.stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: n_attributes as u32,
        };
        // SAFETY: the parameters are the kernel's by number and size, and the driver copies them
        // before it returns; what their addresses point to is the caller's duty.
        let started = unsafe {
            sys::cuLaunchKernelEx(
                &config,
                kernel.function,
                pointers.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        check(started, || {
            format!("cuLaunchKernelEx ({}, {launch:?})", kernel.name)
        })
    }

    /// Begins to record instead of running.
    pub(crate) fn begin_capture(&self) -> Result<()> {
        self.context.enter()?;
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream lives.
        check(
            unsafe { sys::cuStreamBeginCapture_v2(self.stream, mode) },
            || "cuStreamBeginCapture".into(),
        )
    }

    /// Ends a recording.
    pub(crate) fn end_capture(&self) -> Result<Graph> {
        self.context.enter()?;
        let mut graph = ptr::null_mut();
        // SAFETY: the stream is capturing; an invalid capture gives an error and no graph.
        check(
            unsafe { sys::cuStreamEndCapture(self.stream, &mut graph) },
            || "cuStreamEndCapture".into(),
        )?;
        let mut executable = ptr::null_mut();
        // SAFETY: the graph was just made, and is destroyed below whatever comes of it.
        let made = unsafe { sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0) };
        // SAFETY: an executable graph does not need the graph it was made from.
        let _ = unsafe { sys::cuGraphDestroy(graph) };
        check(made, || "cuGraphInstantiate".into())?;
        Ok(Graph {
            context: self.context.clone(),
            executable,
        })
    }

    /// Runs a recording.
    pub(crate) fn replay(&self, graph: &Graph) -> Result<()> {
        self.context.enter()?;
        // SAFETY: both live; what its kernels touch is kept by whoever recorded it.
        check(
            unsafe { sys::cuGraphLaunch(graph.executable, self.stream) },
            || "cuGraphLaunch".into(),
        )
    }

    /// Marks this place.
    pub(crate) fn record(&self, event: &Event) -> Result<()> {
        self.context.enter()?;
        // SAFETY: both live.
        check(
            unsafe { sys::cuEventRecord(event.event, self.stream) },
            || "cuEventRecord".into(),
        )
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.context.enter();
        // SAFETY: made in `new`, destroyed once; the driver finishes what is queued.
        let _ = unsafe { sys::cuStreamDestroy_v2(self.stream) };
    }
}

/// A place in a stream.
pub(crate) struct Event {
    context: Arc<Context>,
    event: sys::CUevent,
}

// SAFETY: an event may be used from any thread of its context.
unsafe impl Send for Event {}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Event")
    }
}

impl Event {
    /// An event; only a `timed` one can be used with [`Event::milliseconds_since`].
    pub(crate) fn new(context: &Arc<Context>, timed: bool) -> Result<Event> {
        context.enter()?;
        let flags = if timed {
            sys::CUevent_flags_enum::CU_EVENT_DEFAULT
        } else {
            sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING
        };
        let mut event = ptr::null_mut();
        // SAFETY: destroyed when this value is dropped.
        check(
            unsafe { sys::cuEventCreate(&mut event, flags as u32) },
            || "cuEventCreate".into(),
        )?;
        Ok(Event {
            context: context.clone(),
            event,
        })
    }

    /// Waits until everything before it is done.
    pub(crate) fn wait(&self) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the event lives.
        check(unsafe { sys::cuEventSynchronize(self.event) }, || {
            "cuEventSynchronize".into()
        })
    }

    /// Time since an earlier one; `None` when the driver is too old to say. Both were waited for.
    pub(crate) fn milliseconds_since(&self, start: &Event) -> Result<Option<f32>> {
        if self.context.facts.driver < EVENT_TIME_DRIVER {
            return Ok(None);
        }
        self.context.enter()?;
        let mut ms = 0.0;
        // SAFETY: both live and were recorded.
        check(
            unsafe { sys::cuEventElapsedTime_v2(&mut ms, start.event, self.event) },
            || "cuEventElapsedTime".into(),
        )?;
        Ok(Some(ms))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let _ = self.context.enter();
        // SAFETY: made in `new`, destroyed once.
        let _ = unsafe { sys::cuEventDestroy_v2(self.event) };
    }
}

/// A recorded step.
pub(crate) struct Graph {
    context: Arc<Context>,
    executable: sys::CUgraphExec,
}

// SAFETY: a graph may be launched from any thread of its context.
unsafe impl Send for Graph {}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Graph")
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let _ = self.context.enter();
        // SAFETY: made in `end_capture`, destroyed once.
        let _ = unsafe { sys::cuGraphExecDestroy(self.executable) };
    }
}

/// Loaded machine code.
pub(crate) struct Module {
    context: Arc<Context>,
    module: sys::CUmodule,
}

// SAFETY: a module may be used from any thread of its context.
unsafe impl Send for Module {}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Module")
    }
}

impl Module {
    /// Loads a cubin, or PTX that ends with a zero.
    pub(crate) fn new(context: &Arc<Context>, image: &[u8], name: &str) -> Result<Module> {
        context.enter()?;
        let mut module = ptr::null_mut();
        // SAFETY: a cubin carries its own length, PTX ends with a zero, and the driver checks both.
        check(
            unsafe { sys::cuModuleLoadData(&mut module, image.as_ptr().cast()) },
            || format!("cuModuleLoadData ({name})"),
        )?;
        Ok(Module {
            context: context.clone(),
            module,
        })
    }

    /// A kernel by name, with as much shared memory as a block can have.
    pub(crate) fn kernel(&self, name: &str) -> Result<Kernel> {
        self.context.enter()?;
        let mut function = ptr::null_mut();
        let c_name = CString::new(name).expect("a name without zeros");
        // SAFETY: the module lives, and the kernel is used only beside it.
        check(
            unsafe { sys::cuModuleGetFunction(&mut function, self.module, c_name.as_ptr()) },
            || format!("cuModuleGetFunction ({name})"),
        )?;
        let mut static_bytes = 0;
        use sys::CUfunction_attribute_enum as A;
        // SAFETY: a kernel of a live module.
        let asked = unsafe {
            sys::cuFuncGetAttribute(
                &mut static_bytes,
                A::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES,
                function,
            )
        };
        check(asked, || format!("cuFuncGetAttribute ({name})"))?;
        let dynamic = self.context.facts.block_shared_bytes as i32 - static_bytes;
        // SAFETY: as above.
        let set = unsafe {
            sys::cuFuncSetAttribute(
                function,
                A::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                dynamic.max(0),
            )
        };
        check(set, || format!("cuFuncSetAttribute ({name})"))?;
        // SAFETY: as above; not portable means more than 8 blocks, which the device checks.
        let set = unsafe {
            sys::cuFuncSetAttribute(
                function,
                A::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED,
                1,
            )
        };
        if self.context.facts.major >= 9 {
            check(set, || format!("cuFuncSetAttribute ({name})"))?;
        }
        Ok(Kernel {
            name: name.to_owned(),
            parameters: parameter_sizes(&self.context, function),
            function,
        })
    }
}

/// Sizes of a kernel's parameters, where the driver says them.
fn parameter_sizes(context: &Context, function: sys::CUfunction) -> Option<Vec<usize>> {
    if context.facts.driver < PARAMETER_DRIVER {
        return None;
    }
    let mut sizes = Vec::new();
    loop {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: a kernel of a live module; past the last parameter it returns an error.
        let found =
            unsafe { sys::cuFuncGetParamInfo(function, sizes.len(), &mut offset, &mut size) };
        if found != sys::CUresult::CUDA_SUCCESS {
            return Some(sizes);
        }
        sizes.push(size);
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let _ = self.context.enter();
        // SAFETY: loaded in `new`, unloaded once, by the owner of its kernels.
        let _ = unsafe { sys::cuModuleUnload(self.module) };
    }
}

/// A kernel of a module, which the owner of the module keeps beside it.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) name: String,
    function: sys::CUfunction,
    parameters: Option<Vec<usize>>,
}

// SAFETY: a handle of the driver, usable from any thread of its context.
unsafe impl Send for Kernel {}
// SAFETY: as above; nothing in it changes.
unsafe impl Sync for Kernel {}
