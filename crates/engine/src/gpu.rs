//! Any GPU through wgpu: Metal on macOS, Vulkan elsewhere. Builds for macOS and Windows have it;
//! others have it with the feature `wgpu`.

use ds4_model::Geometry;

use crate::plan::OpenError;

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
