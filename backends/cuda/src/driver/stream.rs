//! Streams, what is queued in them, events, and recordings.

use std::ffi::c_void;
use std::fmt;
use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys;

use super::{Context, Kernel, Memory, Result, check};

/// Driver that has the current call for the time between two events: CUDA 12.8.
const EVENT_TIME_DRIVER: i32 = 12_080;

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
        let result = unsafe { sys::cuStreamCreate(&mut stream, flags) };
        check(result, || "cuStreamCreate".into())?;
        Ok(Stream {
            context: context.clone(),
            stream,
        })
    }

    /// Waits for everything so far.
    pub(crate) fn wait(&self) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the stream lives.
        let result = unsafe { sys::cuStreamSynchronize(self.stream) };
        check(result, || "cuStreamSynchronize".into())
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
        let sizes: Vec<usize> = parameters.iter().map(|p| p.n_bytes).collect();
        kernel.check_parameters(&sizes);
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
        let result = unsafe { sys::cuStreamBeginCapture_v2(self.stream, mode) };
        check(result, || "cuStreamBeginCapture".into())
    }

    /// Ends a recording.
    pub(crate) fn end_capture(&self) -> Result<Graph> {
        self.context.enter()?;
        let mut graph = ptr::null_mut();
        // SAFETY: the stream is capturing; an invalid capture gives an error and no graph.
        let result = unsafe { sys::cuStreamEndCapture(self.stream, &mut graph) };
        check(result, || "cuStreamEndCapture".into())?;
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
        let result = unsafe { sys::cuGraphLaunch(graph.executable, self.stream) };
        check(result, || "cuGraphLaunch".into())
    }

    /// Marks this place.
    pub(crate) fn record(&self, event: &Event) -> Result<()> {
        self.context.enter()?;
        // SAFETY: both live.
        let result = unsafe { sys::cuEventRecord(event.event, self.stream) };
        check(result, || "cuEventRecord".into())
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
        let result = unsafe { sys::cuEventCreate(&mut event, flags as u32) };
        check(result, || "cuEventCreate".into())?;
        Ok(Event {
            context: context.clone(),
            event,
        })
    }

    /// Waits until everything before it is done.
    pub(crate) fn wait(&self) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the event lives.
        let result = unsafe { sys::cuEventSynchronize(self.event) };
        check(result, || "cuEventSynchronize".into())
    }

    /// Time since an earlier one; `None` when the driver is too old to say. Both were waited for.
    pub(crate) fn milliseconds_since(&self, start: &Event) -> Result<Option<f32>> {
        if self.context.facts.driver < EVENT_TIME_DRIVER {
            return Ok(None);
        }
        self.context.enter()?;
        let mut ms = 0.0;
        // SAFETY: both live and were recorded.
        let result = unsafe { sys::cuEventElapsedTime_v2(&mut ms, start.event, self.event) };
        check(result, || "cuEventElapsedTime".into())?;
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
