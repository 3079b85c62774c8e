use ds4_model::RowsImage;

use super::each_row;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;

pub(crate) fn hc_post(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    y: &Buffer,
    gates: &Buffer,
    streams: &mut Buffer,
) {
    let (n, n_embd) = (cpu.geometry.n_hc, cpu.geometry.n_embd);
    each_row(&mut cpu.pool, rows, streams, |r, streams| {
        let (post, comb) = gates.row(r)[n..].split_at(n);
        let y = y.row(r);
        let mut old = [0.0; 16];
        for c in 0..n_embd {
            for j in 0..n {
                old[j] = streams[j * n_embd + c];
            }
            for k in 0..n {
                let mixed: f32 = (0..n).map(|j| comb[j * n + k] * old[j]).sum();
                streams[k * n_embd + c] = post[k] * y[c] + mixed;
            }
        }
    });
}
