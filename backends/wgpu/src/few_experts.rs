//! Steps of few rows: the experts.

use ds4_model::Routes;
use ds4_model::weights::Router;

use crate::backend::{Rows, WgpuBackend};
use crate::kernels::Specialisation;
use crate::memory::Buffer;
use crate::weight::Weight;

/// Where the experts of a hidden layer come from.
#[derive(Clone, Copy)]
pub(crate) enum Routing<'a> {
    /// The shared expert's layer.
    Shared,
    /// Routes that are there.
    Given(&'a Routes<Buffer>),
    /// The router's products; the routes are left for what follows.
    Here(&'a Router<Weight>, &'a Buffer, &'a Routes<Buffer>),
}

impl WgpuBackend {
    /// The hidden layer of the routed experts, or of the shared one, with its codes if they are
    /// wanted. Whether it was done: both matrices must be of one kind.
    pub(crate) fn record_gate_up_few(
        &mut self,
        rows: &Rows,
        gate: &Weight,
        up: &Weight,
        clamp: f32,
        x: &Buffer,
        routing: Routing<'_>,
        hidden: &Buffer,
        quantised: bool,
    ) -> bool {
        let integer = self.is_integer(gate);
        if gate.stored != up.stored
            || integer != self.is_integer(up)
            || !self.takes(gate, x)
            || (quantised && !gate.n_out.is_multiple_of(32))
            || (matches!(routing, Routing::Shared) && gate.parts.len() > 1)
        {
            return false;
        }
        let routed = !matches!(routing, Routing::Shared);
        let k = match routing {
            Routing::Shared => 1,
            Routing::Given(routes) | Routing::Here(_, _, routes) => routes.experts.width(),
        };
        let x_codes = self.codes(x);
        let hidden_codes = self.codes(hidden);
        let unit = gate.stored.unit(integer);
        let lanes = self.gpu.capabilities.workgroup_lanes;
        let (lanes, per): (usize, usize) = match (routed, lanes) {
            (false, _) if self.wide(rows.n()) => (1024, 1),
            (false, 512..) => (512, 2),
            // The experts of a row are workgroups enough.
            _ => (256, 2),
        };
        let local = integer && unit == 64 && gate.n_in <= 8192;
        let what = Specialisation::of("gate_up_few")
            .integer(integer)
            .decoding("gate", gate.stored)
            .decoding("up", up.stored)
            .with("WG", lanes)
            .with("PER", per)
            .with("LOCAL", local)
            .with("X_LOCAL", gate.n_in / 16)
            .with("ROUTED", routed)
            .with("ROUTES", matches!(routing, Routing::Here(..)))
            .with("QUANTISED", quantised);
        let what = match routing {
            Routing::Here(router, products, _) => what
                .with("HASHED", matches!(router, Router::Hash(_)))
                .with("KEYS_EACH", self.keys_each(products))
                .with("N_EXPERTS", products.width()),
            _ => what,
        };
        let what = self.steps(what, gate.n_in, unit);
        let x_bound = if integer {
            x_codes.codes.whole()
        } else {
            x.bind()
        };
        let unused = x_codes.scales.whole();
        let routing_bound = match routing {
            Routing::Shared => vec![(7, unused), (8, unused)],
            Routing::Given(routes) => {
                vec![(7, routes.experts.bind()), (8, routes.weights.bind())]
            }
            Routing::Here(router, products, routes) => {
                let (Router::Hash(choice) | Router::TopK(choice)) = router;
                vec![
                    (7, products.bind()),
                    (8, choice.elements()),
                    (12, routes.experts.bind()),
                    (13, routes.weights.bind()),
                ]
            }
        };
        for (gate_part, up_part) in gate.parts.iter().zip(&up.parts) {
            let mut bound = vec![
                (0, rows.bind()),
                (1, gate_part.q()),
                (2, gate_part.s()),
                (3, up_part.q()),
                (4, up_part.s()),
                (5, x_bound),
                (6, x_codes.scales.whole()),
                (9, hidden.bind()),
                (10, hidden_codes.codes.whole()),
                (11, hidden_codes.scales.whole()),
            ];
            bound.extend(&routing_bound);
            self.record(
                &what,
                &bound,
                &[
                    rows.n(),
                    gate.n_in as u32,
                    gate.n_out as u32,
                    k as u32,
                    gate_part.lo as u32,
                    gate_part.hi as u32,
                    clamp.to_bits(),
                    gate.strides.0,
                    gate.strides.1,
                    up.strides.0,
                    up.strides.1,
                    self.geometry.expert_scale.to_bits(),
                ],
                [gate.n_out.div_ceil(32) as u32, rows.n() * k as u32, 1],
            );
        }
        true
    }

    /// Keys of a lane where a subgroup has all experts' in registers, or 0.
    fn keys_each(&self, products: &Buffer) -> usize {
        match products.width() == 8 * self.fixed_subgroup() {
            true => 8,
            false => 0,
        }
    }

    /// Routes of a few rows from the router's products.
    pub(crate) fn record_route_few(
        &mut self,
        rows: &Rows,
        router: &Router<Weight>,
        products: &Buffer,
        routes: &Routes<Buffer>,
    ) {
        let (Router::Hash(choice) | Router::TopK(choice)) = router;
        let what = Specialisation::of("route_few")
            .with("WG", 256usize)
            .with("HASHED", matches!(router, Router::Hash(_)))
            .with("KEYS_EACH", self.keys_each(products))
            .with("SUBGROUP", self.fixed_subgroup())
            .with("N_EXPERTS", products.width());
        self.record(
            &what,
            &[
                (0, rows.bind()),
                (7, products.bind()),
                (8, choice.elements()),
                (12, routes.experts.bind()),
                (13, routes.weights.bind()),
            ],
            &[
                rows.n(),
                routes.experts.width() as u32,
                self.geometry.expert_scale.to_bits(),
            ],
            [rows.n(), 1, 1],
        );
    }

    /// The experts' output, with that of the shared expert if it is given as its matrix and its
    /// hidden values. The codes of all hidden values are there. Whether it was done.
    pub(crate) fn record_experts_down_few(
        &mut self,
        rows: &Rows,
        down: &Weight,
        hidden: &Buffer,
        routes: &Routes<Buffer>,
        shared: Option<(&Weight, &Buffer)>,
        out: &Buffer,
    ) -> bool {
        let integer = self.is_integer(down);
        let fits = shared.is_none_or(|(weight, hidden)| {
            self.takes(weight, hidden)
                && self.is_integer(weight) == integer
                && weight.parts.len() == 1
                && down.parts.len() == 1
        });
        if !fits || !self.takes(down, hidden) {
            return false;
        }
        let codes = self.codes(hidden);
        let mut what = Specialisation::of("experts_down_few")
            .integer(integer)
            .decoding("w", down.stored);
        if let Some((weight, _)) = shared {
            what = what.decoding("shared", weight.stored);
        }
        // Both products go in whole turns of the subgroup, or neither does.
        let mut steps = self.n_steps(down.n_in, down.stored.unit(integer));
        let mut shared_steps = 0;
        if let Some((weight, _)) = shared {
            shared_steps = self.n_steps(weight.n_in, weight.stored.unit(integer));
            if steps == 0 || shared_steps == 0 {
                (steps, shared_steps) = (0, 0);
            }
        }
        let k = routes.experts.width();
        let unit = down.stored.unit(integer);
        let local = integer && unit == 64 && k * down.n_in <= 12_288;
        let lanes: usize = match self.gpu.capabilities.workgroup_lanes {
            512.. => 512,
            _ => 256,
        };
        let halves = match steps > 0 && k.is_multiple_of(2) && shared_steps.is_multiple_of(2) {
            true => 2,
            false => 1,
        };
        let what = what
            .with("WG", lanes)
            .with("WG_ROWS", 8usize)
            .with("LOCAL", local)
            .with("X_LOCAL", k * down.n_in / 16)
            .with("K_USED", k)
            .with("HALVES", halves)
            .with("EXPERTS_EACH", k / halves)
            .with("SHARED_EACH", shared_steps / halves)
            .with("PARTED", down.parts.len() > 1)
            .with("SHARED", shared.is_some())
            .with("STEPS", steps)
            .with("SUBGROUP", self.fixed_subgroup());
        for (i, part) in down.parts.iter().enumerate() {
            let x_bound = match integer {
                true => codes.codes.whole(),
                false => hidden.bind(),
            };
            let mut bound = vec![
                (0, rows.bind()),
                (1, part.q()),
                (2, part.s()),
                (3, x_bound),
                (4, codes.scales.whole()),
                (5, routes.experts.bind()),
                (6, out.bind()),
            ];
            let shared = shared.map(|(weight, hidden)| (weight, hidden, self.codes(hidden)));
            if let Some((weight, hidden, codes)) = &shared {
                let part = &weight.parts[0];
                bound.extend([
                    (7, part.q()),
                    (8, part.s()),
                    (
                        9,
                        match integer {
                            true => codes.codes.whole(),
                            false => hidden.bind(),
                        },
                    ),
                    (10, codes.scales.whole()),
                ]);
            }
            let (shared_strides, shared_in) = shared
                .as_ref()
                .map_or(((0, 0), 0), |(weight, ..)| (weight.strides, weight.n_in));
            let words = [
                rows.n(),
                down.n_in as u32,
                down.n_out as u32,
                part.lo as u32,
                part.hi as u32,
                u32::from(i == 0),
                down.strides.0,
                down.strides.1,
                shared_strides.0,
                shared_strides.1,
                shared_in as u32,
            ];
            let groups = [down.n_out.div_ceil(8) as u32, rows.n(), 1];
            self.record(&what, &bound, &words, groups);
            if down.parts.len() == 1 {
                self.note_last(rows, &what, &bound, &words, out, down.n_out);
            }
        }
        true
    }

    /// The router's scores, choice and weights from its products.
    pub(crate) fn record_router(
        &mut self,
        rows: &Rows,
        router: &Router<Weight>,
        products: &Buffer,
        routes: &Routes<Buffer>,
    ) {
        let (hashed, choice) = match router {
            Router::Hash(ids) => (true, ids),
            Router::TopK(bias) => (false, bias),
        };
        let words = [
            rows.n(),
            routes.experts.width() as u32,
            self.geometry.expert_scale.to_bits(),
        ];
        self.record(
            &Specialisation::of("route")
                .with("N_EXPERTS", products.width())
                .with("HASHED", hashed),
            &[
                (0, rows.bind()),
                (1, choice.elements()),
                (2, products.bind()),
                (3, routes.experts.bind()),
                (4, routes.weights.bind()),
            ],
            &words,
            [rows.n(), 1, 1],
        );
    }
}
