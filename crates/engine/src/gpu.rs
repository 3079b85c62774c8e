//! Any GPU through wgpu: Metal on macOS, Vulkan elsewhere. Builds for macOS and Windows have it;
//! others have it with the feature `wgpu`.

use ds4_model::Geometry;

use crate::memory::gpu_bytes;
use crate::plan::{OpenError, OpenOptions};

/// Whether this program can load drivers: one that is linked statically cannot load libraries that
/// were made for a system of another kind than it was built on.
pub(crate) const LOADS_DRIVERS: bool =
    !cfg!(all(target_os = "linux", target_feature = "crt-static"));

/// Why no driver is loaded.
pub(crate) const LINKED_STATICALLY: &str = "this program is linked statically and loads no drivers of GPUs: build it without that, with \
     `cargo install --path crates/cli --locked --features full`, or compute with --backend cpu";

/// The options with the memory that a GPU may take of the machine's own, where there is such a limit.
pub(crate) fn within_memory(options: &OpenOptions) -> OpenOptions {
    OpenOptions {
        memory_bytes: options.memory_bytes.or_else(gpu_bytes),
        ..options.clone()
    }
}

#[cfg(any(feature = "wgpu", target_os = "macos", windows))]
mod there {
    use super::{Geometry, OpenError};
    use crate::slots::Measured;
    use ds4_wgpu::{Gpu, WgpuBackend, WgpuOptions};

    /// The backend of this build.
    pub(crate) type GpuBackend = WgpuBackend;

    impl Measured for GpuBackend {}

    /// The best GPU of this machine, and what it can do. One that the processor plays is taken
    /// when it was `asked` for and there is no other.
    pub(crate) fn open(
        geometry: &Geometry,
        asked: bool,
    ) -> Result<(GpuBackend, String), OpenError> {
        let options = WgpuOptions {
            allow_processor: asked,
            ..WgpuOptions::default()
        };
        let gpu = Gpu::open(&options).map_err(|error| OpenError::NoGpu(error.to_string()))?;
        let what = gpu.capabilities().to_string();
        Ok((WgpuBackend::new(&gpu, geometry), what))
    }
}

#[cfg(not(any(feature = "wgpu", target_os = "macos", windows)))]
mod there {
    use super::{Geometry, OpenError};

    /// Stands for a backend that this build does not have.
    pub(crate) type GpuBackend = ds4_model::Reference;

    /// There is none.
    pub(crate) fn open(_: &Geometry, _: bool) -> Result<(GpuBackend, String), OpenError> {
        Err(OpenError::NoGpu(
            "this build has no wgpu backend: build it with --features wgpu, or compute with \
             --backend cpu"
                .to_owned(),
        ))
    }
}

pub(crate) use there::open;
