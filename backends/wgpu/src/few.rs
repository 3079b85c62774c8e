//! Steps of few rows: the host side of the kernels that decoding runs, on subgroups and 8-bit codes.

use std::sync::Arc;

use ds4_model::weights::{Compressor, HyperConnection};
use ds4_model::{Entry, RopeTable};

use crate::backend::{Rows, WgpuBackend};
use crate::joined::JOINED_ROWS;
use crate::kernels::Specialisation;
use crate::memory::{Allocation, Buffer};
use crate::weight::Weight;

/// Rows up to which a step is decoding.
pub(crate) const FEW_ROWS: u32 = 8;

/// 8-bit codes of the first rows of a buffer, their scales, and sums of squares, one for 32 values.
#[derive(Debug)]
pub(crate) struct Codes {
    pub(crate) codes: Allocation,
    pub(crate) scales: Allocation,
    pub(crate) squares: Allocation,
}

/// A product of few rows.
pub(crate) struct Product<'a> {
    pub(crate) weight: &'a Weight,
    /// Rows of the weight that share a block of the channels of `x`.
    pub(crate) group_out: usize,
    pub(crate) x: &'a Buffer,
    /// Whether `x` is yet to be divided by the root of its mean square, whose sums lie beside it.
    pub(crate) normed: bool,
    pub(crate) out: &'a Buffer,
    /// Whether 8-bit codes of the result are wanted.
    pub(crate) quantised: bool,
    /// A norm's weight for the result; its sums of squares are then left beside it.
    pub(crate) norm: Option<&'a Weight>,
    /// Whether the result is queries of the indexer, to be rotated by this table and rounded.
    pub(crate) index: Option<(RopeTable, bool)>,
}

/// Operands of a compressor.
pub(crate) struct FewCompress<'a> {
    pub(crate) compressor: &'a Compressor<Weight>,
    pub(crate) rounded: bool,
    pub(crate) kv: &'a Buffer,
    pub(crate) gate: &'a Buffer,
    pub(crate) frontier: &'a Buffer,
    pub(crate) cache: &'a Buffer,
}

impl<'a> Product<'a> {
    pub(crate) fn of(weight: &'a Weight, x: &'a Buffer, out: &'a Buffer) -> Product<'a> {
        Product {
            weight,
            group_out: weight.n_out,
            x,
            normed: false,
            out,
            quantised: false,
            norm: None,
            index: None,
        }
    }
}

impl WgpuBackend {
    /// Whether a step of these rows takes the kernels of this module.
    pub(crate) fn is_few(&self, rows: &Rows) -> bool {
        !self.plain && rows.n() <= FEW_ROWS && self.gpu.capabilities.subgroup.is_some()
    }

    /// Whether products with this weight are those of 8-bit codes.
    pub(crate) fn is_integer(&self, weight: &Weight) -> bool {
        self.gpu.capabilities.integer_dot && !weight.precise && !weight.stored.is_float()
    }

    /// Whether `record_product` takes this weight with this input.
    pub(crate) fn takes(&self, weight: &Weight, x: &Buffer) -> bool {
        let whole = if self.is_integer(weight) { 32 } else { 8 };
        weight.n_in.is_multiple_of(whole) && x.width().is_multiple_of(whole)
    }

    /// The codes beside a buffer, made when they are first asked for.
    pub(crate) fn codes(&mut self, of: &Buffer) -> Arc<Codes> {
        if let Some(codes) = self.codes.get(&of.memory.id) {
            return Arc::clone(codes);
        }
        let n = of.shape.n_rows.min(FEW_ROWS as usize) * of.width();
        let make = |n_bytes: usize| {
            // A few kilobytes: when there is no memory for them, the step fails with the device.
            Allocation::unchecked(&self.gpu, "8-bit codes", n_bytes as u64)
        };
        let codes = Arc::new(Codes {
            codes: make(n),
            scales: make(n / 8),
            squares: make(n / 8),
        });
        self.codes.insert(of.memory.id, Arc::clone(&codes));
        codes
    }

    /// Whether a workgroup may have a subgroup for each of 32 results.
    pub(crate) fn wide(&self, n_rows: u32) -> bool {
        let c = &self.gpu.capabilities;
        n_rows <= 2 && c.subgroup == Some((32, 32)) && c.workgroup_lanes >= 1024
    }

    /// Turns of a subgroup over `n_in` elements in units of `unit`, where its size is one number and
    /// the turns are whole; 0 elsewhere.
    pub(crate) fn n_steps(&self, n_in: usize, unit: usize) -> usize {
        let fixed = self.fixed_subgroup();
        let units = n_in / unit;
        if fixed > 0 && units.is_multiple_of(fixed) {
            units / fixed
        } else {
            0
        }
    }

    /// Lanes of a subgroup where that is one number, or 0.
    pub(crate) fn fixed_subgroup(&self) -> usize {
        match self.gpu.capabilities.subgroup {
            Some((least, most)) if least == most => least as usize,
            _ => 0,
        }
    }

    /// The constants of loops over `n_in` elements in units of `unit`.
    pub(crate) fn steps(&self, what: Specialisation, n_in: usize, unit: usize) -> Specialisation {
        what.with("STEPS", self.n_steps(n_in, unit))
            .with("SUBGROUP", self.fixed_subgroup())
    }

    /// The codes of `x`, where products could want them.
    pub(crate) fn record_quantise(&mut self, rows: &Rows, x: &Buffer) {
        if !self.gpu.capabilities.integer_dot || !x.width().is_multiple_of(32) {
            return;
        }
        let codes = self.codes(x);
        let width = x.width();
        self.record(
            &Specialisation::of("quantise"),
            &[
                (0, rows.bind()),
                (1, x.bind()),
                (2, codes.codes.whole()),
                (3, codes.scales.whole()),
            ],
            &[rows.n(), width as u32],
            [width.div_ceil(128) as u32, rows.n(), 1],
        );
    }

    /// Records a product; the codes of its input are there if it wants them.
    pub(crate) fn record_product(&mut self, rows: &Rows, product: &Product<'_>) {
        let Product {
            weight,
            group_out,
            x,
            normed,
            out,
            quantised,
            norm,
            index,
        } = *product;
        let integer = self.is_integer(weight);
        let x_codes = self.codes(x);
        let out_codes = self.codes(out);
        let n_rows = rows.n().next_power_of_two().min(FEW_ROWS);
        // A workgroup of 32 results for blocks of codes has a subgroup for each where it can, so that
        // more loads are under way. One row of weights a subgroup streams best; several rows of x
        // share the loads of two.
        let wide = self.wide(n_rows);
        let lanes = if self.gpu.capabilities.workgroup_lanes >= 512 {
            512
        } else {
            256
        };
        let g = &self.geometry;
        let (lanes, per, wg_rows): (usize, usize, usize) = match (quantised, n_rows) {
            _ if index.is_some() && wide => (1024, 1, g.index_dim),
            _ if index.is_some() => (lanes, 2, g.index_dim),
            (true, _) if wide => (1024, 1, 32),
            (true, _) => (lanes, 2, 32),
            (false, 1 | 2) => (256, 1, 8),
            (false, _) if weight.n_out <= 8192 => (256, 1, 8),
            (false, _) => (256, 2, 16),
        };
        let unit = weight.stored.unit(integer);
        let what = Specialisation::of("gemv")
            .integer(integer)
            .decoding("w", weight.stored)
            .with("ROWS", n_rows as usize)
            .with("WG", lanes)
            .with("PER", per)
            .with("WG_ROWS", wg_rows)
            .with("NORMED", normed)
            .with("QUANTISED", quantised)
            .with("WEIGHTED", norm.is_some())
            .with("INDEXED", index.is_some());
        let what = match index {
            Some((_, rounded)) => what.with("ROUNDED", rounded),
            None => what,
        };
        let (half_dim, table) = (
            (g.rope_dim / 2) as u32,
            index.map_or(RopeTable::Plain, |i| i.0) as u32,
        );
        let hadamard = (g.index_dim as f32).powf(-0.5).to_bits();
        let steps = self.n_steps(weight.n_in, unit);
        let unroll = match (n_rows, steps) {
            (1 | 2, _) | (_, 0) => steps,
            _ => [4, 2, 1]
                .into_iter()
                .find(|n| steps.is_multiple_of(*n))
                .unwrap_or(1),
        };
        let what = self.steps(what, weight.n_in, unit).with("UNROLL", unroll);
        let n_squares = x.width() / 32;
        let x_bound = if integer {
            x_codes.codes.whole()
        } else {
            x.bind()
        };
        for part in &weight.parts {
            let n_out = part.hi - part.lo;
            let n_groups = n_out.div_ceil(wg_rows) as u32;
            let bound = [
                (0, rows.bind()),
                (1, part.q()),
                (2, part.s()),
                (3, x_bound),
                (4, x_codes.scales.whole()),
                (5, x_codes.squares.whole()),
                (6, norm.map_or(x_codes.scales.whole(), Weight::elements)),
                (7, out.bind()),
                (8, out_codes.codes.whole()),
                (9, out_codes.scales.whole()),
                (10, out_codes.squares.whole()),
            ];
            let words = [
                rows.n(),
                0,
                weight.n_in as u32,
                n_out as u32,
                part.lo as u32,
                group_out as u32,
                x.width() as u32,
                out.width() as u32,
                n_squares as u32,
                x.width() as u32,
                self.geometry.rms_eps.to_bits(),
                weight.strides.0,
                weight.strides.1,
                half_dim,
                table,
                hadamard,
            ];
            let groups = [n_groups.min(65_535), n_groups.div_ceil(65_535), 1];
            self.record(&what, &bound, &words, groups);
            if weight.parts.len() == 1 && !normed && !quantised && index.is_none() {
                self.note_last(rows, &what, &bound, &words, out, weight.n_out);
            }
        }
    }

    /// Whether the kernels of a turn take these streams.
    fn turns(&self, rows: &Rows, hc: &HyperConnection<Weight>) -> bool {
        let g = &self.geometry;
        self.gpu.capabilities.subgroup.is_some()
            && rows.n() as usize <= self.turn_rows
            && g.n_hc == 4
            && g.n_embd.is_multiple_of(32)
            && hc.fn_.stored == crate::weight::Stored::F16
            && hc.fn_.parts.len() == 1
    }

    /// `hc_post` when there is a `y`, then `hc_pre_norm`. The codes of `x` are there afterwards, in
    /// a step of few rows. Whether it was done.
    pub(crate) fn record_turn(
        &mut self,
        rows: &Rows,
        y: Option<&Buffer>,
        streams: &Buffer,
        entry: Entry<'_, Weight>,
        gates: &Buffer,
        x: &Buffer,
    ) -> bool {
        let hc = entry.hc;
        if !self.turns(rows, hc) {
            return false;
        }
        let few = self.is_few(rows);
        let g = self.geometry.clone();
        let sums = Arc::clone(&self.turn_sums);
        let joined = y.is_some_and(|y| self.join_turn(rows, y, streams, hc, gates));
        let n_parts = g.n_embd.div_ceil(if joined { JOINED_ROWS } else { 64 }) as u32;
        if !joined {
            let part = &hc.fn_.parts[0];
            self.record(
                &Specialisation::of("turn_a").with("POST", y.is_some()),
                &[
                    (0, rows.bind()),
                    (1, y.unwrap_or(x).bind()),
                    (2, gates.bind()),
                    (3, part.q()),
                    (4, streams.bind()),
                    (5, sums.whole()),
                ],
                &[rows.n(), g.n_embd as u32, n_parts, hc.fn_.strides.0],
                [n_parts, rows.n(), 1],
            );
        }
        let codes = self.codes(x);
        let numbers = [
            rows.n(),
            g.n_embd as u32,
            n_parts,
            g.rms_eps.to_bits(),
            g.hc_eps.to_bits(),
        ];
        self.record(
            &Specialisation::of("turn_b").with("QUANTISED", few),
            &[
                (0, rows.bind()),
                (1, sums.whole()),
                (2, hc.base.elements()),
                (3, hc.scale.elements()),
                (4, entry.norm.elements()),
                (5, streams.bind()),
                (6, x.bind()),
                (7, codes.codes.whole()),
                (8, codes.scales.whole()),
            ],
            &numbers,
            [g.n_embd.div_ceil(256) as u32, rows.n(), 1],
        );
        let mut numbers = numbers.to_vec();
        numbers.push(g.n_sinkhorn as u32);
        // The gates are wanted at the next turn: beside the products of `x`, which they wait for.
        if few {
            self.fence(x);
        }
        self.record(
            &Specialisation::of("turn_gates"),
            &[
                (0, rows.bind()),
                (1, sums.whole()),
                (2, hc.base.elements()),
                (3, hc.scale.elements()),
                (4, gates.bind()),
            ],
            &numbers,
            [rows.n(), 1, 1],
        );
        true
    }

    pub(crate) fn record_q_norm_rope(&mut self, rows: &Rows, table: RopeTable, q: &Buffer) {
        let g = &self.geometry;
        let words = [
            rows.n(),
            g.head_dim as u32,
            g.n_heads as u32,
            (g.rope_dim / 2) as u32,
            table as u32,
            g.rms_eps.to_bits(),
        ];
        let n_heads = g.n_heads as u32;
        self.record(
            &Specialisation::of("q_norm_rope"),
            &[(0, rows.bind()), (1, q.bind())],
            &words,
            [n_heads, rows.n(), 1],
        );
    }

    pub(crate) fn record_iq_rope_round(&mut self, rows: &Rows, table: RopeTable, iq: &Buffer) {
        let g = &self.geometry;
        let words = [
            rows.n(),
            g.n_index_heads as u32,
            (g.rope_dim / 2) as u32,
            table as u32,
            (g.index_dim as f32).powf(-0.5).to_bits(),
        ];
        let (dim, n_heads) = (g.index_dim, g.n_index_heads as u32);
        self.record(
            &Specialisation::of("iq_rope_round").with("INDEX_DIM", dim),
            &[(0, rows.bind()), (1, iq.bind())],
            &words,
            [n_heads, rows.n(), 1],
        );
    }

    /// Window rows, in place or from `raw`; with a ring they are stored too.
    pub(crate) fn record_kv_norm_rope(
        &mut self,
        rows: &Rows,
        norm: &Weight,
        table: RopeTable,
        rounded: bool,
        raw: Option<&Buffer>,
        kv: &Buffer,
        ring: Option<&Buffer>,
    ) {
        let g = &self.geometry;
        let what = Specialisation::of("kv_norm_rope")
            .with("APART", raw.is_some())
            .with("ROW_DIM", g.head_dim)
            .with("ROUNDING", usize::from(rounded))
            .with("STORED", ring.is_some())
            .with("BF16", ring.is_some_and(Buffer::is_bf16));
        let words = [
            rows.n(),
            (g.rope_dim / 2) as u32,
            table as u32,
            g.rms_eps.to_bits(),
            0,
            ring.map_or(1, |ring| ring.shape.n_rows as u32),
        ];
        let unused = Arc::clone(&self.unused);
        let mut bound = vec![
            (0, rows.bind()),
            (1, norm.elements()),
            (2, kv.bind()),
            (3, ring.map_or(unused.whole(), Buffer::bind)),
        ];
        bound.extend(raw.map(|raw| (4, raw.bind())));
        self.record(&what, &bound, &words, [rows.n(), 1, 1]);
    }

    /// The compressor of a step so short that its rows overwrite none that they pool. Whether it
    /// was done.
    pub(crate) fn record_compress(&mut self, rows: &Rows, c: &FewCompress<'_>) -> bool {
        let kind = c.compressor.kind;
        let n_ring = c.frontier.shape.n_rows;
        if rows.n() as usize > n_ring.saturating_sub(kind.n_pooled()) {
            return false;
        }
        let g = &self.geometry;
        let ratio = kind.ratio().expect("a compressed layer");
        let row_dim = c.compressor.row_dim;
        let rounding = match (c.rounded, c.compressor.index) {
            (false, _) => 0usize,
            (true, false) => 1,
            (true, true) => 2,
        };
        let what = Specialisation::of("compress")
            .with("ROW_DIM", row_dim)
            .with("ROUNDING", rounding)
            .with("BF16", c.cache.is_bf16());
        let words = [
            rows.n(),
            (g.rope_dim / 2) as u32,
            RopeTable::start_of(ratio) as u32,
            g.rms_eps.to_bits(),
            (row_dim as f32).powf(-0.5).to_bits(),
            c.kv.width() as u32,
            ratio as u32,
            kind.n_pooled() as u32,
            n_ring as u32,
        ];
        self.record(
            &what,
            &[
                (0, rows.bind()),
                (1, c.compressor.norm.elements()),
                (2, c.compressor.ape.elements()),
                (3, c.kv.bind()),
                (4, c.gate.bind()),
                (5, c.frontier.bind()),
                (6, c.cache.bind()),
            ],
            &words,
            [rows.n(), 1, 1],
        );
        true
    }
}
