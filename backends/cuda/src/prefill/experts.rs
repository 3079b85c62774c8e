//! The experts sublayer.

use super::*;

/// Which kernels multiply routed experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ExpertsPath {
    /// Bytes of weights on integer tensor cores, 16 pairs of an expert at a time.
    Few,
    /// Halves of weights on the asynchronous tensor cores of compute capability 9.0.
    Wgmma,
    /// Halves of weights on the tensor cores of every device.
    Many,
}

impl ExpertsPath {
    fn of(device: Device, n_rows: usize) -> ExpertsPath {
        if n_rows <= FEW_ROWS && device.shared_kb > 99 {
            ExpertsPath::Few
        } else if device.has_wgmma {
            ExpertsPath::Wgmma
        } else {
            ExpertsPath::Many
        }
    }

    /// Pairs of a tile.
    fn tokens(self, device: Device) -> usize {
        match self {
            ExpertsPath::Few => FEW_TOKENS,
            ExpertsPath::Wgmma => 64,
            ExpertsPath::Many => device.by_shared(32, 64, 64),
        }
    }
}

fn experts_fit(layer: &Layer<Weight>) -> bool {
    let shared = [
        &layer.ffn_gate_shexp,
        &layer.ffn_up_shexp,
        &layer.ffn_down_shexp,
    ];
    shared.into_iter().all(is_q8)
        && is_f16(&layer.ffn_gate_inp)
        && layer.ffn_gate_exps.layout == Layout::Iq2Gate
        && layer.ffn_up_exps.layout == Layout::Iq2Up
        && layer.ffn_gate_exps.address() == layer.ffn_up_exps.address()
        && layer.ffn_down_exps.layout == Layout::Q2k
}

impl CudaBackend {
    /// The experts sublayer; `None` when the kernels do not take it.
    pub(crate) fn fast_experts(
        &mut self,
        rows: &Rows,
        sublayer: &mut ExpertsSublayer<'_, Buffer, Weight>,
    ) -> Option<()> {
        let (layer, s) = (sublayer.layer, &mut *sublayer.scratch);
        let n_rows = rows.n_rows();
        let at = self.places(n_rows)?;
        if !self.options.fast.experts || !experts_fit(layer) {
            return None;
        }
        let input = self.input_halves(&s.x, n_rows, &at);
        self.dense_f16(input, &[to_f32(&layer.ffn_gate_inp, &s.router)]);
        self.router_scores(rows, &mut s.router);
        match &layer.router {
            Router::Hash(ids) => self.route_hash(rows, ids, &s.router, &mut s.routes),
            Router::TopK(bias) => self.route_top_k(rows, bias, &s.router, &mut s.routes),
        }

        // The shared expert.
        let mut up = to_f32(&layer.ffn_up_shexp, &s.shared_hidden);
        up.out = at.up;
        let pieces = [to_f32(&layer.ffn_gate_shexp, &s.shared_hidden), up];
        self.dense_q8(input, &pieces, at.panel);
        self.rows_half(
            "gate_half",
            RowsHalf {
                x: s.shared_hidden.address(),
                x2: at.up,
                weight: 0,
                out: at.gate,
                low: 0,
                n_rows: n(n_rows),
                width: n(EXPERT_DIM),
                order: 0,
                clamp: layer.shared_clamp,
            },
        );
        let hidden = Input {
            x: at.gate,
            x_low: 0,
            ld_x: EXPERT_DIM,
            k: EXPERT_DIM,
            ..input
        };
        self.dense_q8(
            hidden,
            &[to_f32(&layer.ffn_down_shexp, &s.shared_y)],
            at.panel,
        );

        // The routed ones.
        let device = self.shapes();
        let path = ExpertsPath::of(device, n_rows);
        let tokens = path.tokens(device);
        let args = ExpertsArgs {
            slot: rows.view().slot(),
            experts: s.routes.experts.address(),
            weights: s.routes.weights.address(),
            x: at.x_experts,
            gate_up: layer.ffn_gate_exps.table(),
            down: layer.ffn_down_exps.table(),
            lists: at.lists,
            counts: at.counts,
            tiles: at.tiles,
            hidden: at.routed_hidden,
            part: at.part,
            shared: s.shared_y.address(),
            y: s.y.address(),
            n_rows: n(n_rows),
            tokens: n(tokens),
            clamp: layer.expert_clamp,
            pad: 0,
            x_f32: s.x.address(),
            x_codes: at.x_codes,
            x_scale: at.x_scale,
            hidden_sums: at.hidden_sums,
            hidden_scale: at.hidden_scale,
        };
        let file = unit("prefill/experts.cu");
        let parameters = [p(&args)];
        self.run(
            &file,
            "experts_group",
            Launch::new([N_EXPERTS, 1, 1], 256),
            &parameters,
        );
        self.run(
            &file,
            "experts_tiles",
            Launch::new([1, 1, 1], 256),
            &parameters,
        );
        let tiles = max_tiles(n_rows, tokens);
        let products = match path {
            ExpertsPath::Few => {
                let file = unit("prefill/experts_few.cu");
                let launch = Launch::new([n_rows, 1, 1], 512);
                self.run(&file, "experts_few_codes", launch, &parameters);
                let stages = device.by_shared(0, 2, 4);
                let x = tokens * 576;
                let gate_up = 2048 + 32_768 + stages * (8 * 4480 + x);
                let down = 2048 + tokens * 272 + stages * (16 * 2688 + x);
                [
                    (file, "experts_few_gate_up", 8, 512, gate_up),
                    (
                        unit("prefill/experts_few.cu"),
                        "experts_few_down",
                        8,
                        512,
                        down,
                    ),
                ]
            }
            ExpertsPath::Wgmma => {
                let x = tokens * 512;
                let gate_up = 1024 + 2 * (8 * 4480 + x) + 32_768;
                let down = 1024 + 2 * (16 * 2688 + x);
                let file = || unit("prefill/experts_wgmma.cu");
                [
                    (file(), "experts_wgmma_gate_up", 8, 512, gate_up),
                    (file(), "experts_wgmma_down", 8, 512, down),
                ]
            }
            ExpertsPath::Many => {
                let x = tokens * 528;
                let gate_up = 1024 + 8192 + 2 * (4 * 4480 + x);
                let down = 1024 + 2 * (8 * 2688 + x);
                let file = || unit("prefill/experts.cu");
                [
                    (file(), "experts_gate_up_many", 16, 256, gate_up),
                    (file(), "experts_down_many", 16, 256, down),
                ]
            }
        };
        for (file, name, blocks, threads, shared) in products {
            let launch = Launch::new([blocks, tiles, 1], threads).shared(shared);
            self.run(&file, name, launch, &parameters);
        }
        self.run(
            &file,
            "experts_sum",
            Launch::new([n_rows, 1, 1], 256),
            &parameters,
        );
        Some(())
    }
}
