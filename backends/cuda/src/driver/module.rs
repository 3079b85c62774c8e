//! Machine code and its kernels.

use std::ffi::CString;
use std::fmt;
use std::ptr;
use std::sync::{Arc, OnceLock};

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
            tells_parameters: self.context.facts.driver >= PARAMETER_DRIVER,
            is_checked: OnceLock::new(),
            function,
        })
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
    /// Whether the driver says the sizes of parameters.
    tells_parameters: bool,
    /// Set when the parameters of a launch were compared with the kernel's.
    is_checked: OnceLock<()>,
}

impl Kernel {
    /// Compares the sizes of parameters with the kernel's, at its first launch. The driver calls a
    /// question for a parameter beyond the last an error, which tools that watch its calls report: only
    /// builds with debug assertions ask it.
    ///
    /// # Panics
    /// When they differ.
    pub(super) fn check_parameters(&self, found: &[usize]) {
        if !self.tells_parameters {
            return;
        }
        self.is_checked.get_or_init(|| {
            let size = |index| {
                let (mut offset, mut size) = (0, 0);
                // SAFETY: a kernel of a live module; past the last parameter it returns an error.
                let told = unsafe {
                    sys::cuFuncGetParamInfo(self.function, index, &mut offset, &mut size)
                };
                (told == sys::CUresult::CUDA_SUCCESS).then_some(size)
            };
            let asked = found.len() + usize::from(cfg!(debug_assertions));
            let sizes: Vec<usize> = (0..asked).map_while(size).collect();
            assert_eq!(found, sizes, "bytes of the parameters of {}", self.name);
        });
    }
}

// SAFETY: a handle of the driver, usable from any thread of its context.
unsafe impl Send for Kernel {}
// SAFETY: as above; nothing in it changes.
unsafe impl Sync for Kernel {}
