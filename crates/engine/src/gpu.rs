//! Any GPU through wgpu: Metal on macOS, Vulkan elsewhere. Builds for macOS and Windows have it;
//! others have it with the feature `wgpu`.

use ds4_model::Geometry;

use crate::memory::gpu_bytes;
use crate::plan::{GpuOptions, OpenError, OpenOptions};

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
    use super::{Geometry, GpuOptions, OpenError};
    use crate::slots::Measured;
    use ds4_wgpu::{Gpu, Lack, WgpuBackend, WgpuError, WgpuOptions};

    /// The backend of this build.
    pub(crate) type GpuBackend = WgpuBackend;

    impl Measured for GpuBackend {}

    /// The best GPU of this machine, or the one of that name, and what it can do. One that the
    /// processor plays is taken when it was `asked` for and there is no other.
    pub(crate) fn open(
        geometry: &Geometry,
        asked: bool,
        gpu: &GpuOptions,
    ) -> Result<(GpuBackend, String), OpenError> {
        let lacks: Result<Vec<Lack>, String> = gpu.lacks.iter().map(|text| text.parse()).collect();
        let options = WgpuOptions {
            adapter: gpu.name.clone(),
            allow_processor: asked || gpu.name.is_some(),
            lacks: lacks.map_err(OpenError::Options)?,
            ..WgpuOptions::default()
        };
        let gpu = Gpu::open(&options).map_err(|error| match error {
            WgpuError::NoAdapter { .. } => OpenError::NoGpu(error.to_string()),
            unfit => OpenError::UnfitGpu(unfit.to_string()),
        })?;
        let what = gpu.capabilities().to_string();
        Ok((WgpuBackend::new(&gpu, geometry), what))
    }
}

#[cfg(not(any(feature = "wgpu", target_os = "macos", windows)))]
mod there {
    use super::{Geometry, GpuOptions, OpenError};

    /// Stands for a backend that this build does not have.
    pub(crate) type GpuBackend = ds4_model::Reference;

    /// There is none.
    pub(crate) fn open(
        _: &Geometry,
        _: bool,
        _: &GpuOptions,
    ) -> Result<(GpuBackend, String), OpenError> {
        Err(OpenError::NoGpu(
            "this build has no wgpu backend: build it with --features wgpu, or compute with \
             --backend cpu"
                .to_owned(),
        ))
    }
}

pub(crate) use there::open;
