//! Steps of many rows: the host side of the kernels that prefill runs, in tiles of rows.

use std::sync::Arc;

use ds4_model::Routes;

use crate::backend::{Rows, WgpuBackend};
use crate::kernels::Specialisation;
use crate::memory::{Allocation, Buffer};
use crate::record::MAX_GROUPS;
use crate::weight::{Stored, Weight};

/// Pairs of one expert in a tile.
const PAIR_TILE: usize = 64;

/// What a step of many rows needs beside the session's buffers.
#[derive(Clone, Debug)]
pub(crate) struct ManyWorkspace {
    /// Rows it is made for.
    pub(crate) n_rows: usize,
    order: Arc<Allocation>,
    tiles: Arc<Allocation>,
    /// Outputs of experts by pair, f32 `[n_rows * n_experts_used, n_embd]`.
    pairs: Arc<Allocation>,
    /// The input of products in f16, where matrices take that: the widest of a step's rows.
    halves: Arc<Allocation>,
    halves_bytes: u64,
}

/// Bytes of the widest input of products of `n_rows` rows in f16.
fn halves_bytes(g: &ds4_model::Geometry, n_rows: usize) -> u64 {
    let pairs = g.n_experts_used * g.expert_dim;
    let widest = (g.n_heads * g.head_dim).max(pairs).max(g.n_embd);
    (2 * n_rows * widest.next_multiple_of(8)) as u64
}

/// Bytes of the workspace of `n_rows` rows.
pub(crate) fn workspace_bytes(g: &ds4_model::Geometry, n_rows: usize) -> u64 {
    let n_pairs = n_rows * g.n_experts_used;
    let tiles = 1 + 3 * (n_pairs / PAIR_TILE + g.n_experts);
    (4 * (n_pairs + tiles + n_pairs * g.n_embd)) as u64 + halves_bytes(g, n_rows)
}

impl ManyWorkspace {
    pub(crate) fn new(
        gpu: &crate::adapter::Gpu,
        g: &ds4_model::Geometry,
        n_rows: usize,
    ) -> Result<ManyWorkspace, ds4_model::BackendError> {
        let n_pairs = n_rows * g.n_experts_used;
        let tiles = 1 + 3 * (n_pairs / PAIR_TILE + g.n_experts);
        let make = |what: &str, n: usize| Allocation::new(gpu, what, 4 * n as u64).map(Arc::new);
        let halves_bytes = match gpu.capabilities.matrices_16() {
            true => halves_bytes(g, n_rows),
            false => 16,
        };
        Ok(ManyWorkspace {
            n_rows,
            halves: Allocation::new(gpu, "inputs in f16", halves_bytes).map(Arc::new)?,
            halves_bytes,
            order: make("order of pairs", n_pairs)?,
            tiles: make("tiles of pairs", tiles)?,
            pairs: make("outputs of pairs", n_pairs * g.n_embd)?,
        })
    }
}

/// One product of many rows.
struct Gemm<'a> {
    mode: usize,
    a: &'a Weight,
    b: &'a Weight,
    group_out: usize,
    x: &'a Buffer,
    limit: f32,
    k: usize,
}

impl WgpuBackend {
    /// The size of cooperative matrices for products with this weight; 0 for f32.
    fn matrix_size(&self, weight: &Weight) -> usize {
        let c = &self.gpu.capabilities;
        // Weights in f32 are there for their accuracy, and narrow products are those of small models,
        // whose logits are compared to the last digits.
        let fits = !weight.precise
            && weight.stored != Stored::F32
            && weight.n_in >= 256
            && weight.n_in.is_multiple_of(32);
        match (fits, c.matrices_16(), c.matrices_8()) {
            (true, true, _) => 16,
            (true, false, true) => 8,
            _ => 0,
        }
    }

    /// Columns that `gemm_half` takes at a time for this product, if it takes it: types that it
    /// decodes, whole turns, and room for `n` elements of x in f16.
    fn half_columns(&self, g: &Gemm<'_>, n: usize) -> Option<usize> {
        let c = &self.gpu.capabilities;
        let step = match g.a.stored {
            Stored::Q8_0 | Stored::F16 => 32,
            Stored::Q2K | Stored::Iq2Xxs => 64,
            _ => return None,
        };
        // What the tiles, the stage and the tables of the kernel take.
        let columns = if matches!(g.mode, 0 | 3) {
            128
        } else {
            PAIR_TILE
        };
        let tiles = (128 + columns) * (step + 8) * 2 + 4096 + 16;
        let tables = if g.a.stored == Stored::Iq2Xxs {
            4096 + 128
        } else {
            0
        };
        let room = self.many.as_ref().map_or(0, |many| many.halves_bytes);
        let fits = self.matrix_size(g.a).min(self.matrix_size(g.b)) == 16
            && g.a.stored == g.b.stored
            && g.a.n_in.is_multiple_of(step)
            && g.x.width().is_multiple_of(4)
            && 2 * n as u64 <= room
            && c.workgroup_bytes as usize >= tiles + tables;
        fits.then_some(step)
    }

    /// `gemm_half` for this product.
    fn gemm_half(
        &self,
        g: &Gemm<'_>,
        step: usize,
        columns: usize,
        n_rows: usize,
    ) -> Specialisation {
        let unit = match g.a.stored {
            Stored::Q8_0 => 16,
            Stored::F16 => 8,
            _ => 64,
        };
        Specialisation::of("gemm_half")
            .decoding("a", g.a.stored)
            .decoding("b", g.b.stored)
            .with("MODE", g.mode)
            .with("MATRIX", 16usize)
            .with(
                "DIRECT",
                g.mode == 0
                    && n_rows.is_multiple_of(columns)
                    && g.a
                        .parts
                        .iter()
                        .all(|part| (part.hi - part.lo).is_multiple_of(128)),
            )
            .with("BN", columns)
            .with("BK", step)
            .with("N_TILES", columns / 32)
            .with("W_EACH", step / unit)
            .with("X_EACH", columns * step / 4 / 128)
    }

    /// `n` elements of a buffer in f16, in the workspace of many rows.
    fn record_halves(&mut self, rows: &Rows, x: &Buffer, n: usize) -> Arc<Allocation> {
        let many = self.many.clone().expect("the workspace of many rows");
        if self.halved != Some(x.memory.id) {
            self.halved = Some(x.memory.id);
            let n_vectors = (n / 4) as u32;
            self.record(
                &Specialisation::of("halves"),
                &[(1, x.bind()), (2, many.halves.whole())],
                &[rows.n(), n_vectors],
                [n_vectors.div_ceil(256).min(MAX_GROUPS), 1, 1],
            );
        }
        many.halves
    }

    fn gemm(&self, g: &Gemm<'_>, matrix: usize, columns: usize) -> Specialisation {
        let (m_tiles, n_tiles) = match matrix {
            0 => (0, 0),
            size => (32 / size, columns / 2 / size),
        };
        Specialisation::of("gemm")
            .decoding("a", g.a.stored)
            .decoding("b", g.b.stored)
            .with("MODE", g.mode)
            .with("BN", columns)
            .with("MATRIX", matrix)
            .with("M_TILES", m_tiles)
            .with("N_TILES", n_tiles)
            .with("N_BLOCKS", columns / 32)
    }

    /// Whether tiles of the weight's rows do not cross its groups.
    fn tiles_groups(&self, weight: &Weight, group_out: usize) -> bool {
        let tile = if self.matrix_size(weight) > 0 {
            128
        } else {
            64
        };
        group_out == weight.n_out || (group_out.is_multiple_of(tile) && weight.parts.len() == 1)
    }

    /// `out = W x`. Whether it was done.
    pub(crate) fn record_gemm(
        &mut self,
        rows: &Rows,
        weight: &Weight,
        group_out: usize,
        x: &Buffer,
        out: &Buffer,
    ) -> bool {
        if self.plain
            || !weight.n_in.is_multiple_of(8)
            || !x.width().is_multiple_of(4)
            || !self.tiles_groups(weight, group_out)
        {
            return false;
        }
        let gemm = Gemm {
            mode: 0,
            a: weight,
            b: weight,
            group_out,
            x,
            limit: 0.0,
            k: 1,
        };
        self.record_dense(rows, &gemm, out);
        true
    }

    /// The shared expert's hidden layer. Whether it was done.
    pub(crate) fn record_gate_up_dense(
        &mut self,
        rows: &Rows,
        gate: &Weight,
        up: &Weight,
        limit: f32,
        x: &Buffer,
        hidden: &Buffer,
    ) -> bool {
        let fits = !self.plain
            && gate.n_in.is_multiple_of(8)
            && x.width().is_multiple_of(4)
            && gate.parts.len() == 1
            && up.parts.len() == 1;
        if fits {
            let gemm = Gemm {
                mode: 3,
                a: gate,
                b: up,
                group_out: gate.n_out,
                x,
                limit,
                k: 1,
            };
            self.record_dense(rows, &gemm, hidden);
        }
        fits
    }

    fn record_dense(&mut self, rows: &Rows, gemm: &Gemm<'_>, out: &Buffer) {
        let matrix = self.matrix_size(gemm.a).min(self.matrix_size(gemm.b));
        // The f32 form has a fixed tile.
        let columns = if matrix > 0 { 128 } else { 64 };
        let n = rows.n() as usize * gemm.x.width();
        let halves = self
            .half_columns(gemm, n)
            .map(|step| (step, self.record_halves(rows, gemm.x, n)));
        let what = match &halves {
            Some((step, _)) => self.gemm_half(gemm, *step, columns, rows.n() as usize),
            None => self.gemm(gemm, matrix, columns),
        };
        let x = halves
            .as_ref()
            .map_or(gemm.x.bind(), |(_, halves)| halves.whole());
        let tile = if matrix > 0 { 128 } else { 64 };
        let tile = if gemm.mode == 3 { tile / 2 } else { tile };
        let (a, b) = (gemm.a, gemm.b);
        for (a_part, b_part) in a.parts.iter().zip(&b.parts) {
            let n_out = a_part.hi - a_part.lo;
            self.record(
                &what,
                &[
                    (0, rows.bind()),
                    (1, a_part.q()),
                    (2, a_part.s()),
                    (3, b_part.q()),
                    (4, b_part.s()),
                    (5, x),
                    (6, rows.bind()),
                    (7, rows.bind()),
                    (8, rows.bind()),
                    (9, out.bind()),
                ],
                &[
                    rows.n(),
                    a.n_in as u32,
                    n_out as u32,
                    a_part.lo as u32,
                    a_part.hi as u32,
                    gemm.group_out as u32,
                    gemm.x.width() as u32,
                    out.width() as u32,
                    1,
                    gemm.limit.to_bits(),
                    a.strides.0,
                    a.strides.1,
                    b.strides.0,
                    b.strides.1,
                ],
                [
                    n_out.div_ceil(tile) as u32,
                    rows.n().div_ceil(columns as u32),
                    1,
                ],
            );
        }
    }

    /// Whether the routed experts of these rows go by tiles of pairs.
    pub(crate) fn tiles_pairs(&self, rows: &Rows, weights: [&Weight; 3]) -> bool {
        let ready = self.many.as_ref().map_or(0, |many| many.n_rows);
        !self.plain
            && rows.n() as usize <= ready
            && self.geometry.n_experts <= 1024
            && weights.iter().all(|w| w.n_in.is_multiple_of(8))
    }

    /// The tiles of pairs of a step, which its experts' products read.
    pub(crate) fn record_sort_pairs(&mut self, rows: &Rows, routes: &Routes<Buffer>) {
        let many = self.many.clone().expect("the workspace of many rows");
        let k = routes.experts.width();
        let n_experts = self.geometry.n_experts;
        self.record(
            &Specialisation::of("sort_pairs")
                .with("N_EXPERTS", n_experts)
                .with("TILE", PAIR_TILE),
            &[
                (0, rows.bind()),
                (1, routes.experts.bind()),
                (2, many.order.whole()),
                (3, many.tiles.whole()),
            ],
            &[rows.n(), k as u32],
            [1, 1, 1],
        );
    }

    fn record_pairs(
        &mut self,
        rows: &Rows,
        gemm: &Gemm<'_>,
        routes: &Routes<Buffer>,
        out: crate::bound::Bound<'_>,
        out_width: usize,
    ) {
        let many = self.many.clone().expect("the workspace of many rows");
        let matrix = self.matrix_size(gemm.a).min(self.matrix_size(gemm.b));
        let n = match gemm.mode {
            1 => rows.n() as usize * gemm.x.width(),
            _ => rows.n() as usize * gemm.k * gemm.a.n_in,
        };
        let halves = self
            .half_columns(gemm, n)
            .map(|step| (step, self.record_halves(rows, gemm.x, n)));
        let what = match &halves {
            Some((step, _)) => self.gemm_half(gemm, *step, PAIR_TILE, 1),
            None => self.gemm(gemm, matrix, PAIR_TILE),
        };
        let x = halves
            .as_ref()
            .map_or(gemm.x.bind(), |(_, halves)| halves.whole());
        let tile = if matrix > 0 { 128 } else { 64 };
        let tile = if gemm.mode == 1 { tile / 2 } else { tile };
        let n_pairs = rows.n() as usize * gemm.k;
        let n_tiles = n_pairs / PAIR_TILE + self.geometry.n_experts.min(n_pairs);
        let (a, b) = (gemm.a, gemm.b);
        for (a_part, b_part) in a.parts.iter().zip(&b.parts) {
            self.record(
                &what,
                &[
                    (0, rows.bind()),
                    (1, a_part.q()),
                    (2, a_part.s()),
                    (3, b_part.q()),
                    (4, b_part.s()),
                    (5, x),
                    (6, many.order.whole()),
                    (7, many.tiles.whole()),
                    (8, routes.weights.bind()),
                    (9, out),
                ],
                &[
                    rows.n(),
                    a.n_in as u32,
                    a.n_out as u32,
                    a_part.lo as u32,
                    a_part.hi as u32,
                    a.n_out as u32,
                    a.n_in as u32,
                    out_width as u32,
                    gemm.k as u32,
                    gemm.limit.to_bits(),
                    a.strides.0,
                    a.strides.1,
                    b.strides.0,
                    b.strides.1,
                ],
                [a.n_out.div_ceil(tile) as u32, n_tiles as u32, 1],
            );
        }
    }

    /// The hidden layer of the routed experts, after `record_sort_pairs`.
    pub(crate) fn record_gate_up_pairs(
        &mut self,
        rows: &Rows,
        gate: &Weight,
        up: &Weight,
        limit: f32,
        x: &Buffer,
        routes: &Routes<Buffer>,
        hidden: &Buffer,
    ) {
        let gemm = Gemm {
            mode: 1,
            a: gate,
            b: up,
            group_out: gate.n_out,
            x,
            limit,
            k: routes.experts.width(),
        };
        self.record_pairs(rows, &gemm, routes, hidden.bind(), gate.n_out);
    }

    /// The output of the routed experts, after `record_sort_pairs`.
    pub(crate) fn record_down_pairs(
        &mut self,
        rows: &Rows,
        down: &Weight,
        hidden: &Buffer,
        routes: &Routes<Buffer>,
        out: &Buffer,
    ) {
        let many = self.many.clone().expect("the workspace of many rows");
        let k = routes.experts.width();
        let gemm = Gemm {
            mode: 2,
            a: down,
            b: down,
            group_out: down.n_out,
            x: hidden,
            limit: 0.0,
            k,
        };
        self.record_pairs(rows, &gemm, routes, many.pairs.whole(), down.n_out);
        let width = out.width();
        self.record(
            &Specialisation::of("add_pairs"),
            &[(0, rows.bind()), (1, many.pairs.whole()), (2, out.bind())],
            &[rows.n(), width as u32, k as u32],
            [width.div_ceil(64) as u32, rows.n(), 1],
        );
    }
}
