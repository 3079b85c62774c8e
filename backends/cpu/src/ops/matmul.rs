use ds4_model::RowsImage;

use super::set_real;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::products::{Outputs, Product, multiply_all};
use crate::weight::Weight;

pub(crate) fn matmul(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    weight: &Weight,
    x: &Buffer,
    out: &mut Buffer,
) {
    matmuls(cpu, rows, x, &mut [(weight, out)]);
}

/// Activations are quantised once, and all products are one region.
pub(crate) fn matmuls(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    x: &Buffer,
    products: &mut [(&Weight, &mut Buffer)],
) {
    set_real(rows, &mut cpu.real);
    let forms = cpu.activations.form(
        cpu.cpu,
        &mut cpu.pool,
        products.iter().map(|(weight, _)| weight.kernel()),
        x.first_rows(rows.len()),
        x.width(),
        |row| rows.slot(row).is_some(),
    );
    let products = products.iter_mut().map(|(weight, out)| Product {
        weights: weight.rows(0),
        acts: forms.of(weight.kernel()),
        out: Outputs::new(out, rows.len(), weight.n_out()),
    });
    // SAFETY: the forms are of this backend's path, and every output is a buffer of its own.
    unsafe {
        multiply_all(
            cpu.cpu,
            &mut cpu.pool,
            &mut cpu.workers,
            &cpu.real,
            products,
        )
    };
}
