//! Plain Rust: the scalar path, and what the other paths do not have by hand.
//!
//! Everything is `#[inline(always)]`, so that code compiled for an instruction set is vectorised
//! with it.

mod dots;
mod unpack;

pub(crate) use dots::*;
pub(crate) use unpack::*;

/// Makes `kernel(ty)`, the kernels of a path that takes codes in natural order: for each type how
/// it is unpacked, and the [`Inner`] loop and instructions that all share.
macro_rules! natural_kernels {
    (
        inner = $inner:ty; $(#[$features:meta])*
        blocks of 32 { $($ty32:ident = $name32:ident($unpack32:ty),)* }
        blocks of 256 { $($ty256:ident = $name256:ident($unpack256:ty),)* }
    ) => {
        $crate::kernels::portable::natural_kernels!(@entries [$(#[$features])*] [row_dots_32 $inner] $($name32($unpack32))*);
        $crate::kernels::portable::natural_kernels!(@entries [$(#[$features])*] [row_dots_256 $inner] $($name256($unpack256))*);

        /// The kernel of a blocked type.
        pub(crate) fn kernel(ty: ds4_formats::GgmlType) -> Option<$crate::kernels::Kernel> {
            use $crate::kernels::{Form, Kernel, Order, RowDots};
            let (form, row_dots): (Form, RowDots) = match ty {
                $(ds4_formats::GgmlType::$ty32 => (Form::Q8(Order::Natural), $name32),)*
                $(ds4_formats::GgmlType::$ty256 => (Form::Q8K(Order::Natural), $name256),)*
                _ => return None,
            };
            Some(Kernel { form, step: 4, row_dots, panel: None })
        }
    };
    (@entries $features:tt $body:tt $($name:ident($unpack:ty))*) => {
        $($crate::kernels::portable::natural_kernels!(@entry $features $body $name $unpack);)*
    };
    (@entry [$(#[$features:meta])*] [$body:ident $inner:ty] $name:ident $unpack:ty) => {
        /// # Safety
        /// As [`crate::kernels::RowDots`].
        $(#[$features])*
        unsafe fn $name(
            _: $crate::path::Cpu,
            job: &$crate::kernels::Job<'_>,
            scratch: &mut $crate::kernels::Scratch,
        ) {
            // SAFETY: the caller's promise; the instructions are enabled here.
            unsafe { $crate::kernels::portable::$body::<$unpack, $inner>(job, scratch) }
        }
    };
}
pub(crate) use natural_kernels;
