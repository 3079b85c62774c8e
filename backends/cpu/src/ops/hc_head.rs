use ds4_model::RowsImage;
use ds4_model::weights::HyperConnection;

use super::elementwise::{inverse_rms, weighted_sum};
use super::{each_row, set_real, sigmoid};
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::products::{Outputs, Product, multiply_all};
use crate::weight::Weight;

pub(crate) fn hc_head(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    streams: &Buffer,
    hc: &HyperConnection<Weight>,
    h: &mut Buffer,
) {
    set_real(rows, &mut cpu.real);
    let (kernel, width) = (hc.fn_.kernel(), h.width());
    let forms = cpu.activations.form(
        cpu.cpu,
        &mut cpu.pool,
        std::iter::once(kernel),
        streams.first_rows(rows.len()),
        streams.width(),
        |row| rows.slot(row).is_some(),
    );
    // The few products of a row wait in the first channels of its output.
    let product = Product {
        weights: hc.fn_.rows(0),
        acts: forms.of(kernel),
        out: Outputs::new(h, rows.len(), width),
    };
    let product = std::iter::once(product);
    assert!(hc.fn_.n_out() <= width);
    // SAFETY: the form is of this backend's path, and a row of the output has the room.
    unsafe { multiply_all(cpu.cpu, &mut cpu.pool, &mut cpu.workers, &cpu.real, product) };

    let (geometry, path) = (&cpu.geometry, cpu.cpu);
    let (base, scale) = (hc.base.vector(), hc.scale.vector());
    each_row(&mut cpu.pool, rows, h, |r, h| {
        let streams = streams.row(r);
        let inv = inverse_rms(path, streams, geometry.rms_eps);
        let mut weights = [0.0; super::MAX_STREAMS];
        for (j, weight) in weights[..geometry.n_hc].iter_mut().enumerate() {
            *weight = sigmoid(h[j] * inv * scale[0] + base[j]) + geometry.hc_eps;
        }
        weighted_sum(path, streams, &weights[..geometry.n_hc], h);
    });
}
