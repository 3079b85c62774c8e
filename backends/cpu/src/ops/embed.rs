use ds4_model::RowsImage;

use super::each_row;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::weight::Weight;

pub(crate) fn embed(cpu: &mut CpuBackend, rows: &RowsImage, table: &Weight, streams: &mut Buffer) {
    each_row(&mut cpu.pool, rows, streams, |r, streams| {
        let (first, others) = streams.split_at_mut(table.n_in());
        table.decode(rows.token[r] as usize, first);
        for stream in others.chunks_exact_mut(first.len()) {
            stream.copy_from_slice(first);
        }
    });
}
