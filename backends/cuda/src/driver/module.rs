//! Machine code and its kernels.

use std::ffi::CString;
use std::fmt;
use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys;

use super::{Context, Result, check};

/// Driver that tells the sizes of a kernel's parameters: CUDA 12.4.
const PARAMETER_DRIVER: i32 = 12_040;

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
        let result = unsafe { sys::cuModuleLoadData(&mut module, image.as_ptr().cast()) };
        check(result, || format!("cuModuleLoadData ({name})"))?;
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
        let result =
            unsafe { sys::cuModuleGetFunction(&mut function, self.module, c_name.as_ptr()) };
        check(result, || format!("cuModuleGetFunction ({name})"))?;
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
    pub(super) function: sys::CUfunction,
    pub(super) parameters: Option<Vec<usize>>,
}

// SAFETY: a handle of the driver, usable from any thread of its context.
unsafe impl Send for Kernel {}
// SAFETY: as above; nothing in it changes.
unsafe impl Sync for Kernel {}
