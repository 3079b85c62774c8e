use ds4_model::{Routes, RowsImage};

use super::real;
use super::route_hash::mixing_weights;
use super::top_k::largest;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::weight::Weight;

pub(crate) fn route_top_k(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    bias: &Weight,
    scores: &Buffer,
    routes: &mut Routes<Buffer>,
) {
    let k = routes.experts.width();
    for r in real(rows) {
        let biased: Vec<f32> = scores
            .row(r)
            .iter()
            .zip(bias.vector())
            .map(|(s, b)| s + b)
            .collect();
        let out = routes.experts.index(0, r);
        for (out, e) in routes.experts.ids_mut()[out]
            .iter_mut()
            .zip(largest(&biased, k))
        {
            *out = e;
        }
        mixing_weights(cpu.geometry.expert_scale, scores.row(r), routes, r);
    }
}
