//! A backend without a model, for what asks whether it computes right.

use ds4_cpu::{CpuBackend, CpuOptions, SimdPath};
use ds4_model::{Backend, Geometry, Reference};

use crate::engine::{cuda, may_have_gpu};
use crate::gpu;
use crate::plan::{BackendKind, OpenError, OpenOptions};

/// What is done with a backend, whichever it is.
pub trait BackendTask {
    /// What comes of it.
    type Output;

    /// Does it. `make` opens the backend for a geometry; `kind` is never [`BackendKind::Auto`],
    /// and `name` says what computes.
    fn run<B: Backend>(
        self,
        kind: BackendKind,
        name: &str,
        make: &dyn Fn(&Geometry) -> Result<B, OpenError>,
    ) -> Self::Output;
}

/// Does something with the backend that the options choose; where they leave it open, with the one
/// that a model would run on if it fits.
///
/// # Errors
/// There is no such backend here.
pub fn on_backend<T: BackendTask>(options: &OpenOptions, task: T) -> Result<T::Output, OpenError> {
    let flash = Geometry::flash();
    match options.backend {
        BackendKind::Reference => {
            let make = |g: &Geometry| Ok(Reference::new(g));
            Ok(task.run(BackendKind::Reference, "reference", &make))
        }
        BackendKind::Cpu => on_cpu(options, task),
        BackendKind::Cuda | BackendKind::Wgpu if !gpu::LOADS_DRIVERS => {
            Err(OpenError::NoGpu(gpu::LINKED_STATICALLY.to_owned()))
        }
        BackendKind::Cuda => on_cuda(options, task),
        BackendKind::Wgpu => {
            let (_, what) = gpu::open(&flash, true, &options.gpu)?;
            let make = |g: &Geometry| Ok(gpu::open(g, true, &options.gpu)?.0);
            Ok(task.run(BackendKind::Wgpu, &what, &make))
        }
        BackendKind::Auto if !gpu::LOADS_DRIVERS => on_cpu(options, task),
        BackendKind::Auto if options.gpu.name.is_some() => on_any_gpu(options, task),
        BackendKind::Auto => match cuda(&flash, options) {
            Ok(_) => on_cuda(options, task),
            Err(_) if !may_have_gpu() => on_cpu(options, task),
            Err(_) => on_any_gpu(options, task),
        },
    }
}

/// On a GPU through wgpu, if there is one that can be used.
fn on_any_gpu<T: BackendTask>(options: &OpenOptions, task: T) -> Result<T::Output, OpenError> {
    match gpu::open(&Geometry::flash(), false, &options.gpu) {
        Ok((_, what)) => {
            let make = |g: &Geometry| Ok(gpu::open(g, false, &options.gpu)?.0);
            Ok(task.run(BackendKind::Wgpu, &what, &make))
        }
        Err(error @ OpenError::Options(_)) => Err(error),
        Err(_) => on_cpu(options, task),
    }
}

fn on_cpu<T: BackendTask>(options: &OpenOptions, task: T) -> Result<T::Output, OpenError> {
    let cpu = CpuOptions {
        n_threads: options.n_threads,
        simd: options.simd,
    };
    let make = |g: &Geometry| {
        let backend = CpuBackend::new(g, cpu);
        backend.map_err(|error| OpenError::Options(error.to_string()))
    };
    // What cannot be opened is said before anything is done.
    make(&Geometry::flash())?;
    let path = options.simd.unwrap_or_else(SimdPath::best);
    Ok(task.run(BackendKind::Cpu, &format!("cpu {path}"), &make))
}

fn on_cuda<T: BackendTask>(options: &OpenOptions, task: T) -> Result<T::Output, OpenError> {
    let name = cuda(&Geometry::flash(), options)?.device().name.clone();
    let make = |g: &Geometry| cuda(g, options);
    Ok(task.run(BackendKind::Cuda, &name, &make))
}
