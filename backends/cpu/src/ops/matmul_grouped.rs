use ds4_model::RowsImage;

use super::set_real;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::products::{Outputs, Product, multiply_all};
use crate::weight::Weight;

pub(crate) fn matmul_grouped(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    weight: &Weight,
    x: &Buffer,
    out: &mut Buffer,
) {
    let geometry = &cpu.geometry;
    let (n_groups, group_dim) = (geometry.n_out_groups, geometry.group_dim());
    let out_rank = geometry.out_rank;
    set_real(rows, &mut cpu.real);
    let forms = cpu.activations.form(
        cpu.cpu,
        &mut cpu.pool,
        std::iter::once(weight.kernel()),
        x.first_rows(rows.len()),
        group_dim,
        |i| rows.slot(i / n_groups).is_some(),
    );
    let acts = forms.of(weight.kernel());
    let outputs = Outputs::new(out, rows.len(), n_groups * out_rank);
    let products = (0..n_groups).map(|group| Product {
        weights: weight.rows(0).part(group * out_rank, out_rank),
        acts: acts.every(n_groups, group),
        out: outputs.from(group * out_rank),
    });
    // SAFETY: the forms are of this backend's path, and groups own different columns.
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
