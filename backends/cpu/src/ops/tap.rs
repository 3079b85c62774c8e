use ds4_model::RowsImage;

use super::real;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;

pub(crate) fn tap(
    cpu: &CpuBackend,
    rows: &RowsImage,
    streams: &Buffer,
    at: usize,
    taps: &mut Buffer,
) {
    let (n, n_hc) = (cpu.geometry.n_embd, cpu.geometry.n_hc);
    for r in real(rows) {
        let streams = streams.row(r);
        let first = taps.index(0, r).start + at * n;
        for (i, out) in taps.floats_mut()[first..][..n].iter_mut().enumerate() {
            let sum: f32 = (0..n_hc).map(|j| streams[j * n + i]).sum();
            *out = sum / n_hc as f32;
        }
    }
}
