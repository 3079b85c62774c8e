//! Steps of one to four rows of the published geometry as one kernel; `kernels/decode/step.h` says what
//! it takes. Such a step is recorded by noting what its ops are given: the kernel computes all of them.

use std::collections::HashMap;

use ds4_formats::GgmlType;
use ds4_model::weights::{HyperConnection, Layer, Router};
use ds4_model::{
    AttentionSublayer, BackendError, Geometry, LayerKind, Pass, Requirement, StepKey, WeightRole,
};

use crate::backend::CudaBackend;
use crate::buffer::{Buffer, Rows};
use crate::driver::{Argument, Context, Launch, Memory, parameter as p};
use crate::error::{self, out_of_memory};
use crate::kernels::Unit;
use crate::prefill;
use crate::weight::{Layout, Weight};

/// Blocks that wait for each other, each with a multiprocessor of its own.
const BLOCKS: usize = 132;
const THREADS: u32 = 640;
/// Rows of the largest step.
const MAX_ROWS: usize = 4;
/// Vocabulary that the kernel is compiled for unless told.
const N_VOCAB: usize = 129_280;
const PHASES_PER_LAYER: u32 = 13;
/// Copies in flight of each of a block's two producer warps.
const IN_FLIGHT: u32 = 2;

macro_rules! structs {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $ty:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, Default)]
            #[repr(C)]
            struct $name {
                $($field: $ty,)*
            }
        )*
    };
}

structs! {
    /// `Ds4DecodeLayer`.
    DecodeLayer {
        kind: u64,
        fn_attn: u64,
        fn_ffn: u64,
        base_attn: u64,
        scale_attn: u64,
        norm_attn: u64,
        base_ffn: u64,
        scale_ffn: u64,
        norm_ffn: u64,
        q_a: u64,
        kv: u64,
        q_b: u64,
        q_a_norm: u64,
        kv_norm: u64,
        sinks: u64,
        out_a: u64,
        out_b: u64,
        comp_kv: u64,
        comp_gate: u64,
        comp_ape: u64,
        comp_norm: u64,
        index_kv: u64,
        index_gate: u64,
        index_proj: u64,
        index_q_b: u64,
        index_ape: u64,
        index_norm: u64,
        router: u64,
        bias: u64,
        ids: u64,
        gate_up: u64,
        down: u64,
        shared_gate: u64,
        shared_up: u64,
        shared_down: u64,
        expert_clamp: f32,
        shared_clamp: f32,
    }
    /// `Ds4DecodeCache`.
    DecodeCache {
        window: u64,
        rows: u64,
        frontier: u64,
        index_rows: u64,
        index_frontier: u64,
        window_rows: u32,
        frontier_rows: u32,
    }
    /// `Ds4Step`.
    DecodeStep {
        layers: u64,
        caches: u64,
        token: u64,
        position: u64,
        slot: u64,
        base: u64,
        angles: u64,
        embedding: u64,
        head_fn: u64,
        head_base: u64,
        head_scale: u64,
        head_norm: u64,
        output: u64,
        logits: u64,
        workspace: u64,
        score_stride: u32,
        n_layers: u32,
        n_csa: u32,
        selects: u32,
        head: u32,
        first: u32,
        end: u32,
        in_flight: u32,
    }
}

impl Argument for DecodeStep {}

fn bytes_of<T: Copy>(values: &[T]) -> Vec<u8> {
    // SAFETY: the two structs that come here are of u64, u32 and f32 without gaps.
    unsafe {
        std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)).to_vec()
    }
}

const _: () = assert!(size_of::<DecodeLayer>() == 35 * 8 + 8);
const _: () = assert!(size_of::<DecodeCache>() == 5 * 8 + 8);

/// Dynamic shared memory of a block.
fn shared_bytes(n_rows: usize) -> usize {
    219_648 + 880 * n_rows
}

/// What blocks exchange, then scores.
fn workspace_bytes_of(n_rows: usize, stride: usize) -> usize {
    4096 + n_rows * 2_583_296 + n_rows * stride * 4
}

/// Bytes of the workspaces for a session whose longest slot has so many tokens.
pub(crate) fn workspace_bytes(geometry: &Geometry, n_tokens: usize) -> u64 {
    let stride = score_stride(n_tokens / 4);
    let logits = MAX_ROWS * geometry.n_vocab * 4;
    let workspaces: usize = [1, 2, 4]
        .map(|n| 2 * workspace_bytes_of(n, stride))
        .iter()
        .sum();
    (logits + workspaces) as u64
}

fn score_stride(n_index_rows: usize) -> usize {
    n_index_rows.next_multiple_of(64).max(64)
}

/// The state of recording such steps.
#[derive(Debug)]
pub(crate) struct Decoder {
    /// Whether the weights that were uploaded are all in the forms that the kernel takes.
    fits: bool,
    /// Sessions that were seen, and whether they take taps, which the kernel does not.
    sessions: HashMap<u64, bool>,
    /// Arrays of layers and of caches, by session.
    tables: HashMap<u64, (Memory, Memory)>,
    /// By rows and whether it selects.
    workspaces: HashMap<(usize, bool), (Memory, usize)>,
    /// Logits of all rows, from which those of the outputs are taken.
    logits: Option<Memory>,
    /// The step that is being noted.
    noted: Option<Noted>,
}

/// What the ops of a step were given.
#[derive(Debug)]
struct Noted {
    key: StepKey,
    layers: Vec<DecodeLayer>,
    caches: Vec<DecodeCache>,
    n_csa: u32,
    n_index_rows: usize,
    step: DecodeStep,
}

impl Decoder {
    pub(crate) fn new() -> Decoder {
        Decoder {
            fits: true,
            sessions: HashMap::new(),
            tables: HashMap::new(),
            workspaces: HashMap::new(),
            logits: None,
            noted: None,
        }
    }

    /// Takes note of a weight's form.
    pub(crate) fn see_weight(&mut self, need: &Requirement, layout: Layout, ty: GgmlType) {
        let is_index_query = need.name.ends_with("indexer.attn_q_b.weight");
        self.fits &= match need.role {
            WeightRole::Matrix if is_index_query => layout == Layout::Raw && ty == GgmlType::F16,
            WeightRole::Matrix => layout == Layout::Q8,
            WeightRole::PreciseMatrix if need.name.contains("hc_") => layout == Layout::Hc,
            WeightRole::PreciseMatrix | WeightRole::Embedding => {
                layout == Layout::Raw && ty == GgmlType::F16
            }
            WeightRole::Experts => {
                matches!(layout, Layout::Iq2Gate | Layout::Iq2Up | Layout::Q2k)
            }
            WeightRole::Vector | WeightRole::Ids => true,
        };
    }

    pub(crate) fn end_session(&mut self, session: u64) {
        self.sessions.remove(&session);
        self.tables.remove(&session);
    }
}

/// Whether the kernel runs on a device: blocks that are all resident, instructions and shared memory.
fn runs_on(context: &Context) -> bool {
    let facts = &context.facts;
    facts.major == 9
        && facts.n_processors as usize >= BLOCKS
        && facts.block_shared_bytes as usize >= shared_bytes(MAX_ROWS)
}

fn layer_of(layer: &Layer<Weight>) -> DecodeLayer {
    let address = |weight: &Weight| weight.address();
    let mut out = DecodeLayer {
        kind: match layer.kind {
            LayerKind::Sliding => 0,
            LayerKind::Csa => 1,
            LayerKind::Hca => 2,
        },
        fn_attn: address(&layer.hc_attn.fn_),
        fn_ffn: address(&layer.hc_ffn.fn_),
        base_attn: address(&layer.hc_attn.base),
        scale_attn: address(&layer.hc_attn.scale),
        norm_attn: address(&layer.attn_norm),
        base_ffn: address(&layer.hc_ffn.base),
        scale_ffn: address(&layer.hc_ffn.scale),
        norm_ffn: address(&layer.ffn_norm),
        q_a: address(&layer.attn_q_a),
        kv: address(&layer.attn_kv),
        q_b: address(&layer.attn_q_b),
        q_a_norm: address(&layer.attn_q_a_norm),
        kv_norm: address(&layer.attn_kv_a_norm),
        sinks: address(&layer.attn_sinks),
        out_a: address(&layer.attn_output_a),
        out_b: address(&layer.attn_output_b),
        router: address(&layer.ffn_gate_inp),
        gate_up: layer.ffn_gate_exps.table(),
        down: layer.ffn_down_exps.table(),
        shared_gate: address(&layer.ffn_gate_shexp),
        shared_up: address(&layer.ffn_up_shexp),
        shared_down: address(&layer.ffn_down_shexp),
        expert_clamp: layer.expert_clamp,
        shared_clamp: layer.shared_clamp,
        ..DecodeLayer::default()
    };
    match &layer.router {
        Router::Hash(ids) => out.ids = address(ids),
        Router::TopK(bias) => out.bias = address(bias),
    }
    if let Some(c) = &layer.attn_compressor {
        out.comp_kv = address(&c.kv);
        out.comp_gate = address(&c.gate);
        out.comp_ape = address(&c.ape);
        out.comp_norm = address(&c.norm);
    }
    if let Some(indexer) = &layer.indexer {
        let c = &indexer.compressor;
        out.index_kv = address(&c.kv);
        out.index_gate = address(&c.gate);
        out.index_proj = address(&indexer.proj);
        out.index_q_b = address(&indexer.attn_q_b);
        out.index_ape = address(&c.ape);
        out.index_norm = address(&c.norm);
    }
    out
}

impl CudaBackend {
    /// Whether steps of this key are noted for the one kernel. The first step of a session never is:
    /// it shows whether the session takes taps.
    pub(crate) fn notes_step(&mut self, key: &StepKey) -> bool {
        let shape = &key.shape;
        let is_known = match self.decoder.sessions.get(&key.session) {
            Some(has_taps) => !has_taps,
            None => {
                self.decoder.sessions.insert(key.session, false);
                false
            }
        };
        let takes = is_known
            && self.runs_steps()
            && key.pass == Pass::Backbone
            && matches!(shape.n_rows, 1 | 2 | 4)
            && (1..=shape.n_rows).contains(&shape.n_outputs)
            && shape.rounded;
        self.decoder.noted = takes.then(|| Noted {
            key: *key,
            layers: Vec::new(),
            caches: Vec::new(),
            n_csa: 0,
            n_index_rows: 0,
            step: DecodeStep::default(),
        });
        takes
    }

    /// Whether steps of the model that was uploaded can be noted.
    pub(crate) fn runs_steps(&self) -> bool {
        self.options.fast.steps
            && self.decoder.fits
            && prefill::takes(&self.geometry)
            && self.geometry.window == 128
            && self.geometry.expert_scale == 1.5
            && self.geometry.n_vocab.is_multiple_of(128)
            && runs_on(&self.context)
    }

    /// Whether ops are noted instead of launched.
    pub(crate) fn is_noting(&self) -> bool {
        self.decoder.noted.is_some()
    }

    pub(crate) fn drop_notes(&mut self) {
        self.decoder.noted = None;
    }

    pub(crate) fn see_tap(&mut self) {
        if let Some(session) = self.session() {
            self.decoder.sessions.insert(session, true);
        }
    }

    pub(crate) fn note_embed(&mut self, rows: &Rows, table: &Weight) {
        if let Some(noted) = &mut self.decoder.noted {
            let view = rows.view();
            noted.step.token = view.ids[0];
            noted.step.position = view.ids[1];
            noted.step.slot = view.ids[2];
            noted.step.base = view.ids[3];
            noted.step.angles = view.angles;
            noted.step.embedding = table.address();
        }
    }

    pub(crate) fn note_attention(&mut self, sublayer: &AttentionSublayer<'_, Buffer, Weight>) {
        let Some(noted) = &mut self.decoder.noted else {
            return;
        };
        let cache = &sublayer.cache;
        let mut out = DecodeCache {
            window: cache.window.address(),
            window_rows: cache.window.shape().n_rows as u32,
            ..DecodeCache::default()
        };
        if let Some(compressed) = &cache.compressed {
            out.rows = compressed.rows.address();
            out.frontier = compressed.frontier.address();
            out.frontier_rows = compressed.frontier.shape().n_rows as u32;
            if let Some(index) = &compressed.index {
                out.index_rows = index.rows.address();
                out.index_frontier = index.frontier.address();
                noted.n_csa += 1;
                noted.n_index_rows = noted.n_index_rows.max(index.rows.shape().n_rows);
            }
        }
        noted.layers.push(layer_of(sublayer.layer));
        noted.caches.push(out);
    }

    pub(crate) fn note_head(&mut self, hc: &HyperConnection<Weight>) {
        if let Some(noted) = &mut self.decoder.noted {
            noted.step.head_fn = hc.fn_.address();
            noted.step.head_base = hc.base.address();
            noted.step.head_scale = hc.scale.address();
        }
    }

    pub(crate) fn note_head_norm(&mut self, norm: &Weight) {
        if let Some(noted) = &mut self.decoder.noted {
            noted.step.head_norm = norm.address();
        }
    }

    /// Launches the step: the last op that was noted was the product with the output matrix.
    pub(crate) fn finish_notes(
        &mut self,
        outputs: Option<(&Rows, &Weight, &Buffer)>,
    ) -> Result<(), BackendError> {
        let Some(mut noted) = self.decoder.noted.take() else {
            return Ok(());
        };
        let n_rows = noted.key.shape.n_rows;
        let n_vocab = self.geometry.n_vocab;
        self.decode_tables(&noted)?;
        let (layers, caches) = &self.decoder.tables[&noted.key.session];
        let (layers, caches) = (layers.address(), caches.address());
        let stride = score_stride(noted.n_index_rows);
        let selects = noted.key.shape.selects;
        let workspace = self.decode_workspace(n_rows, selects, stride)?;
        let step = &mut noted.step;
        step.layers = layers;
        step.caches = caches;
        step.n_layers = noted.layers.len() as u32;
        step.n_csa = noted.n_csa;
        step.workspace = workspace.0;
        step.score_stride = workspace.1 as u32;
        step.selects = u32::from(selects);
        step.head = u32::from(outputs.is_some());
        step.end = 1 + PHASES_PER_LAYER * step.n_layers + if outputs.is_some() { 2 } else { 0 };
        step.in_flight = IN_FLIGHT;
        if let Some((_, output, logits)) = outputs {
            step.output = output.address();
            step.logits = match n_rows {
                1 => logits.address(),
                _ => self.decode_logits()?,
            };
        }
        let unit = decode_unit(n_vocab);
        let name = match n_rows {
            1 => "ds4_decode_step_r1",
            2 => "ds4_decode_step_r2",
            _ => "ds4_decode_step_r4",
        };
        self.run(
            &unit,
            "ds4_decode_epoch",
            Launch::new([1, 1, 1], 1),
            &[p(&workspace.0)],
        );
        let launch = Launch::new([BLOCKS, 1, 1], THREADS)
            .shared(shared_bytes(n_rows))
            .cooperative();
        self.run(&unit, name, launch, &[p(&noted.step)]);
        if let Some((rows, _, logits)) = outputs
            && n_rows > 1
        {
            let (from, width) = (noted.step.logits, n_vocab as u32);
            self.run(
                &Unit::new("streams.cu"),
                "select_rows",
                Launch::new([rows.n_rows(), 1, 1], 256),
                &[p(&rows.view()), p(&from), p(&width), p(&logits.address())],
            );
        }
        Ok(())
    }

    /// The arrays of layers and caches of a session, made once.
    fn decode_tables(&mut self, noted: &Noted) -> Result<(), BackendError> {
        let session = noted.key.session;
        if self.decoder.tables.contains_key(&session) {
            return Ok(());
        }
        let layers = self.constant(&bytes_of(&noted.layers))?;
        let caches = self.constant(&bytes_of(&noted.caches))?;
        self.decoder.tables.insert(session, (layers, caches));
        Ok(())
    }

    /// Address and stride of a workspace. One that is too small for a longer session is replaced,
    /// with the recordings that hold it.
    fn decode_workspace(
        &mut self,
        n_rows: usize,
        selects: bool,
        stride: usize,
    ) -> Result<(u64, usize), BackendError> {
        let key = (n_rows, selects);
        if let Some((memory, found)) = self.decoder.workspaces.get(&key)
            && *found >= stride
        {
            return Ok((memory.address(), *found));
        }
        self.forget_recordings();
        let memory = self.zeroed(
            workspace_bytes_of(n_rows, stride),
            "the workspace of a step",
        )?;
        let address = memory.address();
        self.decoder.workspaces.insert(key, (memory, stride));
        Ok((address, stride))
    }

    fn decode_logits(&mut self) -> Result<u64, BackendError> {
        if self.decoder.logits.is_none() {
            let n_bytes = MAX_ROWS * self.geometry.n_vocab * 4;
            self.decoder.logits = Some(self.zeroed(n_bytes, "logits of a step")?);
        }
        Ok(self.decoder.logits.as_ref().expect("just made").address())
    }

    fn zeroed(&mut self, n_bytes: usize, what: &str) -> Result<Memory, BackendError> {
        let memory = Memory::new(&self.context, n_bytes)
            .map_err(|e| out_of_memory(e, what.to_owned(), n_bytes))?;
        self.copies
            .clear(&memory)
            .and_then(|()| self.copies.wait())
            .map_err(error::device)?;
        Ok(memory)
    }
}

/// The unit of the step kernels for a vocabulary.
pub(crate) fn decode_unit(n_vocab: usize) -> Unit {
    let unit = Unit::new("decode/step.cu");
    match n_vocab {
        N_VOCAB => unit,
        _ => unit.define("DS4_N_VOCAB", n_vocab as i64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The launch and the kernel are written in two languages; what both must know stands in the
    /// header.
    #[test]
    fn sizes_are_those_of_the_header() {
        let header = include_str!("../kernels/decode/step.h");
        let has = |text: String| assert!(header.contains(&text), "step.h has no `{text}`");
        let shared = |n| shared_bytes(n) - shared_bytes(0);
        has(format!(
            "return {} + n_rows * {};",
            shared_bytes(0),
            shared(1)
        ));
        let of = |n, stride| workspace_bytes_of(n, stride) - workspace_bytes_of(0, 0);
        has(format!(
            "return {} + n_rows * {};",
            workspace_bytes_of(0, 0),
            of(1, 0)
        ));
        assert_eq!(of(1, 64) - of(1, 0), 256);
        has(format!("#define DS4_DECODE_BLOCKS {BLOCKS}"));
        has(format!("#define DS4_DECODE_THREADS {THREADS}"));
        has(format!("#define DS4_PHASES_PER_LAYER {PHASES_PER_LAYER}"));
    }
}
