use ds4_model::RowsImage;

use super::each_row;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::simd::{Simd, SimdExt, dispatch, map};

pub(crate) fn router_scores(cpu: &mut CpuBackend, rows: &RowsImage, scores: &mut Buffer) {
    let path = cpu.cpu;
    each_row(&mut cpu.pool, rows, scores, |_, scores| {
        dispatch!(path, root_softplus(scores: &mut [f32]));
    });
}

/// `sqrt(ln(1 + e^x))`, the logarithm as `max(x, 0) + ln(1 + e^-|x|)`, which cannot overflow.
#[inline(always)]
fn root_softplus<S: Simd>(s: S, x: &mut [f32]) {
    map!(s, x, |x| {
        let tail = s.ln_1p_unit(s.exp(s.sub(s.zero(), s.abs(x))));
        s.sqrt(s.add(s.max(x, s.zero()), tail))
    });
}
