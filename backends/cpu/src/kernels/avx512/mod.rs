//! AVX-512 with VNNI, VBMI and GFNI.
//!
//! `vpdpbusd` multiplies unsigned by signed bytes, so weight codes are made unsigned: by an offset
//! that the negated sums of the activations take back exactly (blocks of 256), or by moving their
//! signs to the activations (blocks of 32).
//!
//! Every function below an entry point is `#[inline(always)]` and becomes part of the entry point,
//! which is the one that enables the instructions.

mod block256;
mod block32;
mod constants;
mod iq;
mod k_quants;
mod panel32;

use ds4_formats::GgmlType;

use super::{Form, Job, Kernel, Order, Panel, RowDots, Scratch};
use crate::path::Cpu;
use block32::{Iq4Nl, Mxfp4, Q8_0};
use block256::Portable;
use iq::{Iq2Xxs, Iq4Xs};
use k_quants::{Q2K, Q3K, Q4K, Q5K, Q6K};

/// Entry points: functions that enable the instructions of this path.
macro_rules! entries {
    ($($name:ident = $body:path;)*) => {
        $(
            /// # Safety
            /// As [`super::RowDots`].
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,gfni,avx2,fma,f16c")]
            unsafe fn $name(_: Cpu, job: &Job<'_>, scratch: &mut Scratch) {
                // SAFETY: the caller's promise; the instructions are enabled here.
                unsafe { $body(job, scratch) }
            }
        )*
    };
}

entries! {
    q8_0 = block32::row_dots::<Q8_0>;
    iq4_nl = block32::row_dots::<Iq4Nl>;
    mxfp4 = block32::row_dots::<Mxfp4>;
    q8_0_panel = panel32::row_dots::<Q8_0>;
    iq4_nl_panel = panel32::row_dots::<Iq4Nl>;
    mxfp4_panel = panel32::row_dots::<Mxfp4>;
    q2_k = block256::row_dots::<Q2K>;
    q3_k = block256::row_dots::<Q3K>;
    q4_k = block256::row_dots::<Q4K>;
    q5_k = block256::row_dots::<Q5K>;
    q6_k = block256::row_dots::<Q6K>;
    iq2_xxs = block256::row_dots::<Iq2Xxs>;
    iq4_xs = block256::row_dots::<Iq4Xs>;
    iq2_xs = block256::row_dots::<Portable<super::portable::Iq2Xs>>;
    iq2_s = block256::row_dots::<Portable<super::portable::Iq2S>>;
    iq3_xxs = block256::row_dots::<Portable<super::portable::Iq3Xxs>>;
    iq3_s = block256::row_dots::<Portable<super::portable::Iq3S>>;
    iq1_s = block256::row_dots::<Portable<super::portable::Iq1S>>;
    iq1_m = block256::row_dots::<Portable<super::portable::Iq1M>>;
}

/// Activation rows from which a panel of weights is worth unpacking.
const PANEL_ROWS: usize = 3;

/// The kernel of a blocked type.
pub(crate) fn kernel(ty: GgmlType) -> Option<Kernel> {
    let q8 = |row_dots: RowDots, panel: RowDots| {
        Some(Kernel {
            form: Form::Q8(Order::Pairs),
            step: 32,
            row_dots,
            panel: Some(Panel {
                min_rows: PANEL_ROWS,
                row_dots: panel,
            }),
        })
    };
    let q8k = |row_dots: RowDots| {
        Some(Kernel {
            form: Form::Q8K(Order::Planes),
            step: 4,
            row_dots,
            panel: None,
        })
    };
    match ty {
        GgmlType::Q8_0 => q8(q8_0, q8_0_panel),
        GgmlType::IQ4_NL => q8(iq4_nl, iq4_nl_panel),
        GgmlType::MXFP4 => q8(mxfp4, mxfp4_panel),
        GgmlType::Q2_K => q8k(q2_k),
        GgmlType::Q3_K => q8k(q3_k),
        GgmlType::Q4_K => q8k(q4_k),
        GgmlType::Q5_K => q8k(q5_k),
        GgmlType::Q6_K => q8k(q6_k),
        GgmlType::IQ2_XXS => q8k(iq2_xxs),
        GgmlType::IQ4_XS => q8k(iq4_xs),
        GgmlType::IQ2_XS => q8k(iq2_xs),
        GgmlType::IQ2_S => q8k(iq2_s),
        GgmlType::IQ3_XXS => q8k(iq3_xxs),
        GgmlType::IQ3_S => q8k(iq3_s),
        GgmlType::IQ1_S => q8k(iq1_s),
        GgmlType::IQ1_M => q8k(iq1_m),
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 | GgmlType::I32 => None,
    }
}
