//! Products of rows with matrices.

use super::*;

/// A matrix and where its product goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) w: u64,
    pub(super) out: u64,
    /// Rows of all groups.
    pub(super) n_out: usize,
    pub(super) ld_out: usize,
    pub(super) kind: u32,
}

/// The rows that are multiplied.
#[derive(Clone, Copy, Debug)]
pub(super) struct Input {
    pub(super) x: u64,
    pub(super) x_low: u64,
    pub(super) n_rows: usize,
    pub(super) ld_x: usize,
    pub(super) k: usize,
    pub(super) n_groups: usize,
}

pub(super) fn to_f32(weight: &Weight, out: &Buffer) -> Piece {
    Piece {
        w: weight.address(),
        out: out.address(),
        n_out: weight.n_out,
        ld_out: out.width(),
        kind: STORE_F32,
    }
}

pub(super) fn is_q8(weight: &Weight) -> bool {
    weight.layout == Layout::Q8
}

pub(super) fn is_f16(weight: &Weight) -> bool {
    weight.layout == Layout::Raw && weight.ty == GgmlType::F16
}

impl CudaBackend {
    /// Products with Q8 matrices in halves.
    pub(super) fn dense_q8(&mut self, input: Input, pieces: &[Piece], panel: u64) {
        if input.n_rows <= SKINNY_ROWS {
            return self.skinny("q8", input, pieces);
        }
        let mut expanded = Vec::with_capacity(pieces.len());
        let mut at = panel;
        for piece in pieces {
            let args = Expand {
                w: piece.w,
                out: at,
                out_low: 0,
                n_out: n(piece.n_out),
                n_in: n(input.k),
            };
            let records = piece.n_out / 16 * (input.k / 256);
            self.run(
                &unit("prefill/matrix.cu"),
                "expand_q8",
                Launch::new([records.div_ceil(8), 1, 1], 256),
                &[p(&args)],
            );
            expanded.push(Piece { w: at, ..*piece });
            at += (2 * piece.n_out * input.k) as u64;
        }
        self.gemm(input, &expanded, 1);
    }

    /// Products with f16 matrices at f32 accuracy of the rows.
    pub(super) fn dense_f16(&mut self, input: Input, pieces: &[Piece]) {
        if input.n_rows <= SKINNY_ROWS {
            self.skinny("f16", input, pieces);
        } else {
            self.gemm(input, pieces, 2);
        }
    }

    pub(super) fn skinny(&mut self, kind: &str, input: Input, pieces: &[Piece]) {
        let kw = (input.k / 256).min(8);
        let blocks = |piece: &Piece, t: usize| piece.n_out.div_ceil(16 * t * (8 / kw));
        let all = |t| pieces.iter().map(|piece| blocks(piece, t)).sum::<usize>();
        let t = if input.n_rows <= 32 && all(2) >= 200 {
            2
        } else {
            1
        };
        let name = match (kind, input.n_rows, t) {
            ("q8", 0..=16, 2) => "skinny_q8_16_2",
            ("q8", 0..=16, _) => "skinny_q8_16_1",
            ("q8", 17..=32, 2) => "skinny_q8_32_2",
            ("q8", 17..=32, _) => "skinny_q8_32_1",
            ("q8", ..) => "skinny_q8_64_1",
            (_, 0..=16, 2) => "skinny_f16_16_2",
            (_, 0..=16, _) => "skinny_f16_16_1",
            (_, 17..=32, 2) => "skinny_f16_32_2",
            (_, 17..=32, _) => "skinny_f16_32_1",
            _ => "skinny_f16_64_1",
        };
        let none = SkinnyPiece {
            w: 0,
            out: 0,
            n_out: 0,
            ld_out: 0,
            first_block: 0,
            kind: 0,
        };
        let mut args = Skinny {
            x: input.x,
            x_low: input.x_low,
            n_rows: n(input.n_rows),
            ld_x: n(input.ld_x),
            k: n(input.k),
            n_groups: n(input.n_groups),
            n_pieces: n(pieces.len()),
            pad: 0,
            pieces: [none; MAX_PIECES],
        };
        let mut first = 0;
        for (to, piece) in args.pieces.iter_mut().zip(pieces) {
            *to = SkinnyPiece {
                w: piece.w,
                out: piece.out,
                n_out: n(piece.n_out),
                ld_out: n(piece.ld_out),
                first_block: n(first),
                kind: piece.kind,
            };
            first += blocks(piece, t);
        }
        self.run(
            &unit("prefill/matrix.cu"),
            name,
            Launch::new([first, 1, 1], 256),
            &[p(&args)],
        );
    }

    pub(super) fn gemm(&mut self, input: Input, pieces: &[Piece], n_passes: u32) {
        let device = self.shapes();
        let row_blocks = input.n_rows.div_ceil(128);
        let tiles = |bn: usize| {
            let of = |piece: &Piece| (piece.n_out / input.n_groups).div_ceil(bn);
            pieces.iter().map(of).sum::<usize>()
        };
        let blocks = |bn: usize| row_blocks * tiles(bn) * input.n_groups;
        let bn = [256, 128]
            .into_iter()
            .find(|bn| blocks(*bn) >= 120)
            .unwrap_or(64);
        let (name, stages) = match (bn, device.has_wgmma) {
            (256, true) => ("gemm_wgmma_256", 4),
            (128, true) => ("gemm_wgmma_128", 6),
            (256, false) => ("gemm_256", device.by_shared(2, 3, 4)),
            (128, false) => ("gemm_128", device.by_shared(3, 4, 5)),
            _ => ("gemm_64", device.by_shared(2, 3, 4)),
        };
        let none = GemmPiece {
            w: 0,
            w_low: 0,
            out: 0,
            n_out: 0,
            ld_out: 0,
            first_tile: 0,
            kind: 0,
        };
        let mut args = Gemm {
            x: input.x,
            x_low: input.x_low,
            n_rows: n(input.n_rows),
            ld_x: n(input.ld_x),
            k: n(input.k),
            n_passes,
            n_pieces: n(pieces.len()),
            pad: 0,
            pieces: [none; MAX_PIECES],
        };
        let mut first = 0;
        for (to, piece) in args.pieces.iter_mut().zip(pieces) {
            let n_out = piece.n_out / input.n_groups;
            *to = GemmPiece {
                w: piece.w,
                w_low: 0,
                out: piece.out,
                n_out: n(n_out),
                ld_out: n(piece.ld_out),
                first_tile: n(first),
                kind: piece.kind,
            };
            first += n_out.div_ceil(bn);
        }
        self.run(
            &unit("prefill/gemm.cu"),
            name,
            Launch::new([row_blocks, first, input.n_groups], 256).shared(stages * (128 + bn) * 128),
            &[p(&args)],
        );
    }

    pub(super) fn rows_half(&mut self, name: &'static str, args: RowsHalf) {
        let grid = match name {
            "norm_half" => args.n_rows as usize,
            _ => (args.n_rows as usize * args.width as usize).div_ceil(2048),
        };
        self.run(
            &unit("prefill/rows.cu"),
            name,
            Launch::new([grid, 1, 1], 256),
            &[p(&args)],
        );
    }

    /// A product of a Q8 matrix with rows of f32, for outputs: in turns of as many rows as the
    /// products take that stream the weights.
    pub(crate) fn fast_matmul(
        &mut self,
        rows: &Rows,
        weight: &Weight,
        x: &Buffer,
        out: &Buffer,
    ) -> Option<()> {
        let (n_rows, width) = (rows.n_rows(), x.width());
        let at = self.places(n_rows)?;
        let is_streamed =
            width == N_EMBD && weight.n_in == N_EMBD && weight.n_out.is_multiple_of(128);
        if !is_streamed || !is_q8(weight) {
            return None;
        }
        self.forget_halves();
        let mut input = self.input_halves(x, n_rows, &at);
        self.forget_halves();
        for start in (0..n_rows).step_by(SKINNY_ROWS) {
            input.n_rows = SKINNY_ROWS.min(n_rows - start);
            input.x = at.x + (2 * start * width) as u64;
            let mut piece = to_f32(weight, out);
            piece.out += (4 * start * out.width()) as u64;
            self.skinny("q8", input, &[piece]);
        }
        Some(())
    }
}
