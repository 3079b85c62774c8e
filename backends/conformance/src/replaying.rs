//! A backend that records and replays, as a device does, on top of one that runs its
//! ops at once.
//!
//! On [`Recording::Record`] an op becomes an entry of a list and computes nothing;
//! `launch` runs the list. A key that was launched once is replayed: its list runs
//! again on what the buffers and rows hold by then. Rows are padded to powers of two.
//! A step can be made to fail, as a device would.

use std::cell::{Ref, RefCell, RefMut};
use std::collections::HashMap;
use std::rc::Rc;

use ds4_formats::{GgmlType, Tensor};
use ds4_model::operands::*;
use ds4_model::weights::{HyperConnection, Requirement};
use ds4_model::{Backend, Geometry, RopeTable, RowsImage, SessionShape};

/// Number of a buffer, or of the numbers of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle(usize);

/// What the lists work on.
#[derive(Debug)]
struct Memory<B: Backend> {
    /// `None` while an op that wants several in one place has them.
    buffers: Vec<RefCell<Option<B::Buffer>>>,
    rows: Vec<B::Rows>,
}

impl<B: Backend> Memory<B> {
    fn get(&self, handle: Handle) -> Ref<'_, B::Buffer> {
        Ref::map(self.buffers[handle.0].borrow(), |buffer| {
            buffer.as_ref().expect("a buffer that is not lent")
        })
    }

    fn get_mut(&self, handle: Handle) -> RefMut<'_, B::Buffer> {
        RefMut::map(self.buffers[handle.0].borrow_mut(), |buffer| {
            buffer.as_mut().expect("a buffer that is not lent")
        })
    }

    fn take(&self, handle: Handle) -> B::Buffer {
        let buffer = self.buffers[handle.0].borrow_mut().take();
        buffer.expect("a buffer that is not lent")
    }

    fn put(&self, handle: Handle, buffer: B::Buffer) {
        *self.buffers[handle.0].borrow_mut() = Some(buffer);
    }

    fn routes(&self, experts: Handle, weights: Handle) -> Routes<B::Buffer> {
        Routes {
            experts: self.take(experts),
            weights: self.take(weights),
        }
    }

    fn return_routes(&self, experts: Handle, weights: Handle, routes: Routes<B::Buffer>) {
        self.put(experts, routes.experts);
        self.put(weights, routes.weights);
    }

    fn rows(&self, handle: Handle) -> &B::Rows {
        &self.rows[handle.0]
    }
}

type Op<B> = Box<dyn Fn(&mut B, &Memory<B>)>;

/// See the [module](self).
pub struct Replaying<B: Backend> {
    inner: B,
    memory: Memory<B>,
    recordings: HashMap<StepKey, Rc<Vec<Op<B>>>>,
    /// The step that was begun.
    step: Option<(StepKey, Option<Vec<Op<B>>>)>,
    launched: bool,
    /// Ops called since the last `begin`.
    pub n_ops: usize,
    /// Steps that were replayed.
    pub n_replays: usize,
    /// Steps until one fails at `wait`.
    pub fails_in: Option<usize>,
}

impl<B: Backend> Replaying<B> {
    /// Records for `inner`.
    pub fn new(inner: B) -> Replaying<B> {
        Replaying {
            inner,
            memory: Memory {
                buffers: Vec::new(),
                rows: Vec::new(),
            },
            recordings: HashMap::new(),
            step: None,
            launched: false,
            n_ops: 0,
            n_replays: 0,
            fails_in: None,
        }
    }

    fn record(&mut self, op: impl Fn(&mut B, &Memory<B>) + 'static) {
        self.n_ops += 1;
        match &mut self.step {
            Some((_, Some(ops))) => ops.push(Box::new(op)),
            Some((key, None)) => panic!("an op of a replayed step, {key:?}"),
            None => panic!("an op outside a step"),
        }
    }
}

/// The owned form of a hyper-connection.
fn owned<W: Clone>(hc: &HyperConnection<W>) -> HyperConnection<W> {
    HyperConnection {
        fn_: hc.fn_.clone(),
        base: hc.base.clone(),
        scale: hc.scale.clone(),
    }
}

impl<B> Backend for Replaying<B>
where
    B: Backend<Weight: Clone + 'static> + 'static,
{
    type Buffer = Handle;
    type Weight = B::Weight;
    type Rows = Handle;

    fn geometry(&self) -> &Geometry {
        self.inner.geometry()
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn row_class(&self, n_rows: usize) -> usize {
        n_rows.next_power_of_two()
    }

    fn memory_bytes(&self) -> Option<u64> {
        self.inner.memory_bytes()
    }

    fn weight_bytes(&self, need: &Requirement, ty: GgmlType) -> u64 {
        self.inner.weight_bytes(need, ty)
    }

    fn workspace_bytes(&self, shape: &SessionShape) -> u64 {
        self.inner.workspace_bytes(shape)
    }

    fn upload(&mut self, need: &Requirement, tensor: Tensor) -> Result<B::Weight, BackendError> {
        self.inner.upload(need, tensor)
    }

    fn alloc(&mut self, element: ElementType, shape: Shape) -> Result<Handle, BackendError> {
        let buffer = self.inner.alloc(element, shape)?;
        self.memory.buffers.push(RefCell::new(Some(buffer)));
        Ok(Handle(self.memory.buffers.len() - 1))
    }

    fn alloc_rows(&mut self, capacity: usize) -> Result<Handle, BackendError> {
        self.memory.rows.push(self.inner.alloc_rows(capacity)?);
        Ok(Handle(self.memory.rows.len() - 1))
    }

    fn write_rows(&mut self, rows: &mut Handle, image: &RowsImage) {
        assert!(!self.launched, "rows of a step that runs");
        self.inner.write_rows(&mut self.memory.rows[rows.0], image);
    }

    fn write_many(&mut self, parts: &mut [WritePart<'_, Handle>]) -> Result<(), BackendError> {
        assert!(!self.launched, "a write while a step runs");
        for WritePart { buffer, pieces } in parts {
            let mut buffer = self.memory.get_mut(**buffer);
            let pieces = std::mem::take(pieces);
            self.inner.write_many(&mut [WritePart {
                buffer: &mut *buffer,
                pieces,
            }])?;
        }
        Ok(())
    }

    fn read_many(&mut self, parts: &mut [ReadPart<'_, Handle>]) -> Result<(), BackendError> {
        assert!(!self.launched, "a read while a step runs");
        for ReadPart { buffer, at, bytes } in parts {
            let buffer = self.memory.get(**buffer);
            self.inner.read(&buffer, *at, bytes)?;
        }
        Ok(())
    }

    fn copy_rows(&mut self, buffer: &mut Handle, from: Place, to: Place, n_rows: usize) {
        let mut buffer = self.memory.get_mut(*buffer);
        self.inner.copy_rows(&mut buffer, from, to, n_rows);
    }

    fn begin(&mut self, key: &StepKey) -> Recording {
        assert!(self.step.is_none(), "a step was begun and not launched");
        self.n_ops = 0;
        let (recording, ops) = match self.recordings.contains_key(key) {
            true => (Recording::Replay, None),
            false => (Recording::Record, Some(Vec::new())),
        };
        self.step = Some((*key, ops));
        recording
    }

    fn launch(&mut self) -> Result<(), BackendError> {
        let (key, ops) = self.step.take().expect("a step was begun");
        match ops {
            Some(ops) => {
                self.recordings.insert(key, Rc::new(ops));
            }
            None => self.n_replays += 1,
        }
        for op in self.recordings[&key].clone().iter() {
            op(&mut self.inner, &self.memory);
        }
        self.launched = true;
        Ok(())
    }

    fn wait(&mut self) -> Result<(), BackendError> {
        assert!(self.launched, "no step was launched");
        self.launched = false;
        if let Some(left) = &mut self.fails_in {
            *left -= 1;
            if *left == 0 {
                self.fails_in = None;
                return Err(BackendError::Device("the step was made to fail".to_owned()));
            }
        }
        Ok(())
    }

    fn end_session(&mut self, session: u64) {
        self.recordings.retain(|key, _| key.session != session);
    }

    fn embed(&mut self, rows: &Handle, table: &B::Weight, streams: &mut Handle) {
        let (rows, streams) = (*rows, *streams);
        let table = table.clone();
        self.record(move |b, m| {
            b.embed(m.rows(rows), &table, &mut m.get_mut(streams));
        });
    }

    fn hc_gates(
        &mut self,
        rows: &Handle,
        streams: &Handle,
        hc: &HyperConnection<B::Weight>,
        gates: &mut Handle,
    ) {
        let (rows, streams, hc, gates) = (*rows, *streams, owned(hc), *gates);
        self.record(move |b, m| {
            b.hc_gates(m.rows(rows), &m.get(streams), &hc, &mut m.get_mut(gates));
        });
    }

    fn hc_head(
        &mut self,
        rows: &Handle,
        streams: &Handle,
        hc: &HyperConnection<B::Weight>,
        h: &mut Handle,
    ) {
        let (rows, streams, hc, h) = (*rows, *streams, owned(hc), *h);
        self.record(move |b, m| {
            b.hc_head(m.rows(rows), &m.get(streams), &hc, &mut m.get_mut(h));
        });
    }

    fn hc_pre(&mut self, rows: &Handle, streams: &Handle, gates: &Handle, x: &mut Handle) {
        let (rows, x) = (*rows, *x);
        let streams = *streams;
        let gates = *gates;
        self.record(move |b, m| {
            b.hc_pre(
                m.rows(rows),
                &m.get(streams),
                &m.get(gates),
                &mut m.get_mut(x),
            );
        });
    }

    fn hc_post(&mut self, rows: &Handle, y: &Handle, gates: &Handle, streams: &mut Handle) {
        let (rows, streams) = (*rows, *streams);
        let y = *y;
        let gates = *gates;
        self.record(move |b, m| {
            b.hc_post(
                m.rows(rows),
                &m.get(y),
                &m.get(gates),
                &mut m.get_mut(streams),
            );
        });
    }

    fn tap(&mut self, rows: &Handle, streams: &Handle, at: usize, taps: &mut Handle) {
        let (rows, taps) = (*rows, *taps);
        let streams = *streams;
        self.record(move |b, m| {
            b.tap(m.rows(rows), &m.get(streams), at, &mut m.get_mut(taps));
        });
    }

    fn choose(&mut self, rows: &Handle, logits: &Handle, choice: &mut Choice<Handle>) {
        let (rows, logits) = (*rows, *logits);
        let choice = [choice.ids, choice.values, choice.lse];
        self.record(move |b, m| {
            // The inner op wants three buffers in one place: they are lent to it.
            let [ids, values, lse] = choice;
            let mut choice = Choice {
                ids: m.take(ids),
                values: m.take(values),
                lse: m.take(lse),
            };
            b.choose(m.rows(rows), &m.get(logits), &mut choice);
            m.put(ids, choice.ids);
            m.put(values, choice.values);
            m.put(lse, choice.lse);
        });
    }

    fn select_rows(&mut self, rows: &Handle, x: &Handle, out: &mut Handle) {
        let (rows, out) = (*rows, *out);
        let x = *x;
        self.record(move |b, m| {
            b.select_rows(m.rows(rows), &m.get(x), &mut m.get_mut(out));
        });
    }

    fn rms_norm(&mut self, rows: &Handle, weight: &B::Weight, x: &mut Handle) {
        let (rows, x) = (*rows, *x);
        let weight = weight.clone();
        self.record(move |b, m| {
            b.rms_norm(m.rows(rows), &weight, &mut m.get_mut(x));
        });
    }

    fn matmul(&mut self, rows: &Handle, weight: &B::Weight, x: &Handle, out: &mut Handle) {
        let (rows, out) = (*rows, *out);
        let weight = weight.clone();
        let x = *x;
        self.record(move |b, m| {
            b.matmul(m.rows(rows), &weight, &m.get(x), &mut m.get_mut(out));
        });
    }

    fn matmul_grouped(&mut self, rows: &Handle, weight: &B::Weight, x: &Handle, out: &mut Handle) {
        let (rows, out) = (*rows, *out);
        let weight = weight.clone();
        let x = *x;
        self.record(move |b, m| {
            b.matmul_grouped(m.rows(rows), &weight, &m.get(x), &mut m.get_mut(out));
        });
    }

    fn add(&mut self, rows: &Handle, x: &Handle, out: &mut Handle) {
        let (rows, out) = (*rows, *out);
        let x = *x;
        self.record(move |b, m| {
            b.add(m.rows(rows), &m.get(x), &mut m.get_mut(out));
        });
    }

    fn head_norm(&mut self, rows: &Handle, head_dim: usize, x: &mut Handle) {
        let (rows, x) = (*rows, *x);
        self.record(move |b, m| {
            b.head_norm(m.rows(rows), head_dim, &mut m.get_mut(x));
        });
    }

    fn rope(
        &mut self,
        rows: &Handle,
        table: RopeTable,
        rotation: Rotation,
        head_dim: usize,
        x: &mut Handle,
    ) {
        let (rows, x) = (*rows, *x);
        self.record(move |b, m| {
            b.rope(m.rows(rows), table, rotation, head_dim, &mut m.get_mut(x));
        });
    }

    fn kv_round(&mut self, rows: &Handle, x: &mut Handle) {
        let (rows, x) = (*rows, *x);
        self.record(move |b, m| {
            b.kv_round(m.rows(rows), &mut m.get_mut(x));
        });
    }

    fn index_round(&mut self, rows: &Handle, x: &mut Handle) {
        let (rows, x) = (*rows, *x);
        self.record(move |b, m| {
            b.index_round(m.rows(rows), &mut m.get_mut(x));
        });
    }

    fn store_window(&mut self, rows: &Handle, kv: &Handle, window: &mut Handle) {
        let (rows, window) = (*rows, *window);
        let kv = *kv;
        self.record(move |b, m| {
            b.store_window(m.rows(rows), &m.get(kv), &mut m.get_mut(window));
        });
    }

    fn add_position_bias(
        &mut self,
        rows: &Handle,
        ape: &B::Weight,
        ratio: usize,
        gate: &mut Handle,
    ) {
        let (rows, gate) = (*rows, *gate);
        let ape = ape.clone();
        self.record(move |b, m| {
            b.add_position_bias(m.rows(rows), &ape, ratio, &mut m.get_mut(gate));
        });
    }

    fn pool(&mut self, rows: &Handle, inputs: Pool<'_, Handle>, pooled: &mut Handle) {
        let (rows, kind, pooled) = (*rows, inputs.kind, *pooled);
        let (kv, gate, frontier) = (*inputs.kv, *inputs.gate, *inputs.frontier);
        self.record(move |b, m| {
            b.pool(
                m.rows(rows),
                Pool {
                    kind,
                    kv: &*m.get(kv),
                    gate: &*m.get(gate),
                    frontier: &*m.get(frontier),
                },
                &mut m.get_mut(pooled),
            );
        });
    }

    fn store_compressed(
        &mut self,
        rows: &Handle,
        ratio: usize,
        pooled: &Handle,
        cache: &mut Handle,
    ) {
        let (rows, cache) = (*rows, *cache);
        let pooled = *pooled;
        self.record(move |b, m| {
            b.store_compressed(m.rows(rows), ratio, &m.get(pooled), &mut m.get_mut(cache));
        });
    }

    fn store_frontier(&mut self, rows: &Handle, kv: &Handle, gate: &Handle, frontier: &mut Handle) {
        let (rows, frontier) = (*rows, *frontier);
        let kv = *kv;
        let gate = *gate;
        self.record(move |b, m| {
            b.store_frontier(
                m.rows(rows),
                &m.get(kv),
                &m.get(gate),
                &mut m.get_mut(frontier),
            );
        });
    }

    fn index_scores(
        &mut self,
        rows: &Handle,
        inputs: IndexScores<'_, Handle>,
        scores: &mut Handle,
    ) {
        let (rows, tile, scores) = (*rows, inputs.tile, *scores);
        let (queries, weights, cache) = (*inputs.queries, *inputs.weights, *inputs.cache);
        self.record(move |b, m| {
            b.index_scores(
                m.rows(rows),
                IndexScores {
                    tile: tile.clone(),
                    queries: &*m.get(queries),
                    weights: &*m.get(weights),
                    cache: &*m.get(cache),
                },
                &mut m.get_mut(scores),
            );
        });
    }

    fn top_k(&mut self, rows: &Handle, tile: ScoreTile, scores: &Handle, selected: &mut Handle) {
        let (rows, scores, selected) = (*rows, *scores, *selected);
        self.record(move |b, m| {
            let selected = &mut m.get_mut(selected);
            b.top_k(m.rows(rows), tile.clone(), &m.get(scores), selected);
        });
    }

    fn attend(&mut self, rows: &Handle, inputs: Attend<'_, Handle, B::Weight>, out: &mut Handle) {
        let (rows, sinks, out) = (*rows, inputs.sinks.clone(), *out);
        let (q, kv, ring) = (*inputs.q, *inputs.kv, *inputs.ring);
        let compressed = match inputs.compressed {
            CompressedRows::None => None,
            CompressedRows::All { cache, ratio } => Some((*cache, ratio, None)),
            CompressedRows::Selected {
                cache,
                ratio,
                selected,
            } => Some((*cache, ratio, Some(*selected))),
        };
        self.record(move |b, m| {
            let cache = compressed.map(|(cache, ..)| m.get(cache));
            let selected = compressed.and_then(|(.., selected)| Some(m.get(selected?)));
            let (cache, selected) = (cache.as_deref(), selected.as_deref());
            let compressed = match (cache, selected, compressed) {
                (Some(cache), Some(selected), Some((_, ratio, _))) => CompressedRows::Selected {
                    cache,
                    ratio,
                    selected,
                },
                (Some(cache), None, Some((_, ratio, _))) => CompressedRows::All { cache, ratio },
                _ => CompressedRows::None,
            };
            b.attend(
                m.rows(rows),
                Attend {
                    q: &*m.get(q),
                    kv: &*m.get(kv),
                    ring: &*m.get(ring),
                    compressed,
                    sinks: &sinks,
                },
                &mut m.get_mut(out),
            );
        });
    }

    fn router_scores(&mut self, rows: &Handle, scores: &mut Handle) {
        let (rows, scores) = (*rows, *scores);
        self.record(move |b, m| {
            b.router_scores(m.rows(rows), &mut m.get_mut(scores));
        });
    }

    fn route_hash(
        &mut self,
        rows: &Handle,
        ids: &B::Weight,
        scores: &Handle,
        routes: &mut Routes<Handle>,
    ) {
        let (rows, ids, scores) = (*rows, ids.clone(), *scores);
        let (experts, weights) = (routes.experts, routes.weights);
        self.record(move |b, m| {
            let mut routes = m.routes(experts, weights);
            b.route_hash(m.rows(rows), &ids, &m.get(scores), &mut routes);
            m.return_routes(experts, weights, routes);
        });
    }

    fn route_top_k(
        &mut self,
        rows: &Handle,
        bias: &B::Weight,
        scores: &Handle,
        routes: &mut Routes<Handle>,
    ) {
        let (rows, bias, scores) = (*rows, bias.clone(), *scores);
        let (experts, weights) = (routes.experts, routes.weights);
        self.record(move |b, m| {
            let mut routes = m.routes(experts, weights);
            b.route_top_k(m.rows(rows), &bias, &m.get(scores), &mut routes);
            m.return_routes(experts, weights, routes);
        });
    }

    fn experts_gate_up(
        &mut self,
        rows: &Handle,
        inputs: ExpertsGateUp<'_, Handle, B::Weight>,
        hidden: &mut Handle,
    ) {
        let (rows, clamp, x, hidden) = (*rows, inputs.clamp, *inputs.x, *hidden);
        let (gate, up) = (inputs.gate.clone(), inputs.up.clone());
        let (experts, weights) = (inputs.routes.experts, inputs.routes.weights);
        self.record(move |b, m| {
            let routes = m.routes(experts, weights);
            b.experts_gate_up(
                m.rows(rows),
                ExpertsGateUp {
                    gate: &gate,
                    up: &up,
                    clamp,
                    x: &*m.get(x),
                    routes: &routes,
                },
                &mut m.get_mut(hidden),
            );
            m.return_routes(experts, weights, routes);
        });
    }

    fn experts_down(
        &mut self,
        rows: &Handle,
        down: &B::Weight,
        hidden: &Handle,
        routes: &Routes<Handle>,
        out: &mut Handle,
    ) {
        let (rows, down, hidden, out) = (*rows, down.clone(), *hidden, *out);
        let (experts, weights) = (routes.experts, routes.weights);
        self.record(move |b, m| {
            let routes = m.routes(experts, weights);
            let out = &mut m.get_mut(out);
            b.experts_down(m.rows(rows), &down, &m.get(hidden), &routes, out);
            m.return_routes(experts, weights, routes);
        });
    }

    fn gate_up(
        &mut self,
        rows: &Handle,
        inputs: GateUp<'_, Handle, B::Weight>,
        hidden: &mut Handle,
    ) {
        let (rows, clamp, x, hidden) = (*rows, inputs.clamp, *inputs.x, *hidden);
        let (gate, up) = (inputs.gate.clone(), inputs.up.clone());
        self.record(move |b, m| {
            b.gate_up(
                m.rows(rows),
                GateUp {
                    gate: &gate,
                    up: &up,
                    clamp,
                    x: &*m.get(x),
                },
                &mut m.get_mut(hidden),
            );
        });
    }
}
