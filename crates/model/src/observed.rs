//! `Observed`: a backend watched from outside, so that the mathematics carries
//! no dumps and no timers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ds4_formats::{GgmlType, Tensor};

use crate::backend::Backend;
use crate::geometry::Geometry;
use crate::operands::*;
use crate::rope::RopeTable;
use crate::rows::RowsImage;
use crate::session::SessionShape;
use crate::unfused::{delegate_memory, primitive_ops};
use crate::weights::{HyperConnection, Requirement};

/// What watches the ops of a backend.
pub trait Observer<B: Backend> {
    /// Called before an op is recorded.
    fn before(&mut self, op: &'static str) {
        let _ = op;
    }

    /// Called after an op was recorded, with the first buffer it writes;
    /// `None` for ops that write none or choose experts.
    fn after(&mut self, backend: &mut B, op: &'static str, out: Option<&B::Buffer>);

    /// Called after an op that chose experts was recorded, before [`Observer::after`].
    fn routed(&mut self, backend: &mut B, routes: &Routes<B::Buffer>) {
        let _ = (backend, routes);
    }
}

/// Hands every op to `inner`, telling `observer`. The parts of a layer
/// ([`Backend::attention`], [`Backend::experts`], [`Backend::turn`]) are taken apart by
/// their default bodies, so that their ops are seen.
#[derive(Debug)]
pub struct Observed<B, O> {
    /// The backend.
    pub inner: B,
    /// What watches it.
    pub observer: O,
}

macro_rules! observe {
    ($(fn $op:ident(rows: $rt:ty $(, $arg:ident: $at:ty)*; $out:ident: $ot:ty);)*) => {
        $(fn $op(&mut self, rows: $rt $(, $arg: $at)*, $out: $ot) {
            self.observer.before(stringify!($op));
            self.inner.$op(rows $(, $arg)*, $out);
            let routes: Option<&Routes<B::Buffer>> = observe!(@routes $op $out);
            if let Some(routes) = routes {
                self.observer.routed(&mut self.inner, routes);
            }
            let written = observe!(@written $op $out);
            self.observer.after(&mut self.inner, stringify!($op), written);
        })*
    };
    (@routes route_hash $out:ident) => { Some(&*$out) };
    (@routes route_top_k $out:ident) => { Some(&*$out) };
    (@routes $op:ident $out:ident) => { None };
    (@written route_hash $out:ident) => { Some(&$out.weights) };
    (@written route_top_k $out:ident) => { Some(&$out.weights) };
    (@written choose $out:ident) => { Some(&$out.values) };
    (@written $op:ident $out:ident) => { Some(&*$out) };
}

impl<B: Backend, O: Observer<B>> Backend for Observed<B, O> {
    delegate_memory!(inner);
    primitive_ops!(observe);

    fn hc_pre_norm(
        &mut self,
        rows: &Self::Rows,
        streams: &Self::Buffer,
        entry: Entry<'_, Self::Weight>,
        gates: &mut Self::Buffer,
        x: &mut Self::Buffer,
    ) {
        self.observer.before("hc_pre_norm");
        self.inner.hc_pre_norm(rows, streams, entry, gates, x);
        self.observer.after(&mut self.inner, "hc_pre_norm", Some(x));
    }

    fn matmuls(
        &mut self,
        rows: &Self::Rows,
        x: &Self::Buffer,
        products: &mut [(&Self::Weight, &mut Self::Buffer)],
    ) {
        self.observer.before("matmuls");
        self.inner.matmuls(rows, x, products);
        let first = products.first().map(|(_, out)| &**out);
        self.observer.after(&mut self.inner, "matmuls", first);
    }

    fn q_norm_rope(&mut self, rows: &Self::Rows, table: RopeTable, q: &mut Self::Buffer) {
        self.observer.before("q_norm_rope");
        self.inner.q_norm_rope(rows, table, q);
        self.observer.after(&mut self.inner, "q_norm_rope", Some(q));
    }

    fn kv_norm_rope(
        &mut self,
        rows: &Self::Rows,
        norm: &Self::Weight,
        table: RopeTable,
        rounded: bool,
        kv: &mut Self::Buffer,
    ) {
        self.observer.before("kv_norm_rope");
        self.inner.kv_norm_rope(rows, norm, table, rounded, kv);
        self.observer
            .after(&mut self.inner, "kv_norm_rope", Some(kv));
    }

    fn compress(&mut self, rows: &Self::Rows, c: Compress<'_, Self::Buffer, Self::Weight>) {
        self.observer.before("compress");
        let operands = Compress {
            gate: &mut *c.gate,
            pooled: &mut *c.pooled,
            frontier: &mut *c.frontier,
            cache: &mut *c.cache,
            ..c
        };
        self.inner.compress(rows, operands);
        self.observer
            .after(&mut self.inner, "compress", Some(c.pooled));
    }

    fn index_select(&mut self, rows: &Self::Rows, s: IndexSelect<'_, Self::Buffer>) {
        self.observer.before("index_select");
        let operands = IndexSelect {
            scores: &mut *s.scores,
            selected: &mut *s.selected,
            ..s
        };
        self.inner.index_select(rows, operands);
        self.observer
            .after(&mut self.inner, "index_select", Some(s.selected));
    }
}

/// Time spent in every op, by the wall clock of a backend whose ops run when
/// they are called.
#[derive(Debug, Default)]
pub struct OpTimes {
    started: Option<Instant>,
    /// Op name to (calls, time).
    pub by_op: BTreeMap<&'static str, (u64, Duration)>,
}

impl<B: Backend> Observer<B> for OpTimes {
    fn before(&mut self, _op: &'static str) {
        self.started = Some(Instant::now());
    }

    fn after(&mut self, _backend: &mut B, op: &'static str, _out: Option<&B::Buffer>) {
        if let Some(started) = self.started.take() {
            let entry = self.by_op.entry(op).or_default();
            entry.0 += 1;
            entry.1 += started.elapsed();
        }
    }
}
