//! A turn that becomes part of the product before it: the workgroups that make a sublayer's result for one
//! row put it into the streams as well, which saves a stage.

use ds4_model::weights::HyperConnection;

use crate::backend::{Rows, WgpuBackend};
use crate::bound::{Bound, Held};
use crate::kernels::Specialisation;
use crate::memory::Buffer;
use crate::weight::Weight;

/// Rows of the result of a workgroup that does so.
pub(crate) const JOINED_ROWS: usize = 32;

/// The product of one row that was recorded last.
#[derive(Debug)]
pub(crate) struct Last {
    what: Specialisation,
    bound: Vec<(u32, Held)>,
    words: Vec<u32>,
    out: u64,
    n_out: usize,
}

impl WgpuBackend {
    /// Notes the product that was just recorded, whole and of one row, whose result is `out`.
    pub(crate) fn note_last(
        &mut self,
        rows: &Rows,
        what: &Specialisation,
        bound: &[(u32, Bound<'_>)],
        words: &[u32],
        out: &Buffer,
        n_out: usize,
    ) {
        if rows.n() == 1 && self.gpu.joins_turns {
            self.last = Some(Last {
                what: what.clone(),
                bound: bound.iter().map(|(n, b)| (*n, b.held())).collect(),
                words: words.to_vec(),
                out: out.memory.id,
                n_out,
            });
        }
    }

    /// Makes the first half of a turn, `hc_post` and partial sums of the next gates, part of the product
    /// that made `y`, if that was recorded last. Whether it was done.
    pub(crate) fn join_turn(
        &mut self,
        rows: &Rows,
        y: &Buffer,
        streams: &Buffer,
        hc: &HyperConnection<Weight>,
        gates: &Buffer,
    ) -> bool {
        let n_embd = self.geometry.n_embd;
        let Some(last) = self.last.take() else {
            return false;
        };
        let fits = rows.n() == 1
            && last.out == y.memory.id
            && last.n_out == n_embd
            && n_embd.is_multiple_of(JOINED_ROWS)
            && hc.fn_.strides.0 as usize == 2 * n_embd
            && self.fences.is_empty();
        if !fits {
            return false;
        }
        self.recording.dispatches.pop();
        let lanes: usize = match self.gpu.capabilities.workgroup_lanes {
            _ if self.wide(1) => 1024,
            512.. => 512,
            _ => 256,
        };
        let mut what = last.what.with("TURN", true);
        what.set("WG", lanes);
        what.set("WG_ROWS", JOINED_ROWS);
        if what.kernel == "gemv" {
            what.set("PER", if self.wide(1) { 1usize } else { 2 });
        } else {
            // A subgroup has all experts of an output.
            let halves = what.number("HALVES").unwrap_or(1);
            for each in ["EXPERTS_EACH", "SHARED_EACH"] {
                let n = what.number(each).unwrap_or(0) * halves;
                what.set(each, n as usize);
            }
            what.set("HALVES", 1usize);
        }
        let part = &hc.fn_.parts[0];
        let sums = std::sync::Arc::clone(&self.turn_sums);
        let mut bound: Vec<(u32, Bound<'_>)> =
            last.bound.iter().map(|(n, b)| (*n, b.bound())).collect();
        bound.extend([
            (11, gates.bind()),
            (12, part.q()),
            (13, streams.bind()),
            (14, sums.whole()),
        ]);
        let n_groups = (n_embd / JOINED_ROWS) as u32;
        self.record(&what, &bound, &last.words, [n_groups, 1, 1]);
        true
    }
}
