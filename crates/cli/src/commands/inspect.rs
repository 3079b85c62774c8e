//! `ds4 inspect`: what a file holds, what a token costs, what fits here.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::io::Write;

use anyhow::{Context as _, Result};
use ds4_formats::GgmlType;
use ds4_formats::gguf::{self, Gguf, TensorSpec};
use ds4_model::{
    Component, Geometry, LayerKind, Limits, SessionShape, WeightRole, requirements, weights,
};
use serde_json::{Map, Value, json};

use crate::args::InspectArgs;
use crate::reply_writer::printable;
use crate::units;

/// Rows of a prefill step that the memory figures assume.
const CHUNK: usize = 512;
/// Contexts whose cache is listed, tokens.
const CONTEXTS: [usize; 4] = [4096, 32_768, 131_072, 1 << 20];

/// Runs the command.
///
/// # Errors
/// The file is not GGUF, is damaged, or, after everything it does say was printed, is not a model
/// that this engine opens.
pub(crate) fn run(args: &InspectArgs, out: &mut dyn Write) -> Result<()> {
    let gguf = Gguf::open(&args.file)?;
    let report = Report::of(&gguf, ds4_engine::available_bytes());
    if args.json {
        let mut text = serde_json::to_string_pretty(&report.to_json(&gguf, args))?;
        text.push('\n');
        out.write_all(text.as_bytes())?;
    } else {
        report.print(&gguf, args, out)?;
    }
    out.flush()?;
    match report.refused {
        None => Ok(()),
        Some(error) => Err(error).with_context(|| args.file.display().to_string()),
    }
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FileKind {
    Model,
    /// Draft block of the first release.
    MtpSupport,
    /// Draft blocks of the 0731 release.
    DsparkSupport,
    Unknown,
}

impl FileKind {
    fn of(gguf: &Gguf) -> FileKind {
        let architecture = gguf.metadata().str("general.architecture").unwrap_or("");
        // The drafters are also shipped inside other containers; their own tensors tell.
        let has = |name: &str| gguf.spec(name).is_some();
        if has("token_embd.weight") && architecture == ds4_model::geometry::ARCHITECTURE {
            FileKind::Model
        } else if has("mtp.0.main_proj.weight") || architecture == "dflash" {
            FileKind::DsparkSupport
        } else if has("mtp.0.e_proj.weight") {
            FileKind::MtpSupport
        } else {
            FileKind::Unknown
        }
    }

    fn describe(self) -> &'static str {
        match self {
            FileKind::Model => "DeepSeek V4 model",
            FileKind::MtpSupport => "MTP support file (draft block of the first release)",
            FileKind::DsparkSupport => "DSpark support file (draft blocks of the 0731 release)",
            FileKind::Unknown => "not a file of DeepSeek V4 Flash",
        }
    }

    fn id(self) -> &'static str {
        match self {
            FileKind::Model => "model",
            FileKind::MtpSupport => "mtp-support",
            FileKind::DsparkSupport => "dspark-support",
            FileKind::Unknown => "unknown",
        }
    }
}

/// A row of the table of components.
#[derive(Clone, Debug, Default)]
struct Share {
    n_tensors: usize,
    n_parameters: u64,
    n_bytes: u64,
    /// Weight bytes that one decoded token reads, counting every indexer tensor.
    token_bytes: u64,
    /// Type names, with the number of tensors.
    types: BTreeMap<&'static str, usize>,
}

impl Share {
    fn add(&mut self, other: &Share) {
        self.n_tensors += other.n_tensors;
        self.n_parameters += other.n_parameters;
        self.n_bytes += other.n_bytes;
        self.token_bytes += other.token_bytes;
    }

    fn types(&self) -> String {
        let mut types: Vec<_> = self.types.iter().collect();
        types.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
        let names: Vec<&str> = types.iter().map(|(name, _)| **name).collect();
        names.join(" ")
    }
}

/// What the tables show.
struct Report {
    kind: FileKind,
    geometry: Option<Geometry>,
    components: Vec<(&'static str, Share)>,
    /// Of the bytes a token reads, those of tensors that score compressed rows: read once more
    /// rows are visible than the indexer selects.
    scoring_bytes: u64,
    available_bytes: Option<u64>,
    /// Why this engine does not open the file.
    refused: Option<anyhow::Error>,
}

impl Report {
    fn of(gguf: &Gguf, available_bytes: Option<u64>) -> Report {
        let kind = FileKind::of(gguf);
        let is_support = matches!(kind, FileKind::MtpSupport | FileKind::DsparkSupport);
        let (geometry, refused) = match Geometry::from_metadata(gguf.metadata()) {
            _ if is_support => (None, None),
            Err(error) => (None, Some(error.into())),
            Ok(geometry) => {
                let refused = weights::check(&geometry, &|name| gguf.tensor(name));
                (Some(geometry), refused.err().map(Into::into))
            }
        };
        let names = Names::new(geometry.as_ref());
        let mut shares: BTreeMap<(usize, &'static str), Share> = BTreeMap::new();
        let mut scoring_bytes = 0;
        for spec in gguf.tensors() {
            let found = names.find(&spec.name);
            let (order, name) = match &found {
                Some((component, _)) => component_row(*component),
                None if spec.name.starts_with("mtp.") => (100, "draft head"),
                None => (101, "other"),
            };
            let token_bytes = match (&geometry, &found) {
                (Some(geometry), Some((component, role))) => {
                    token_bytes(spec, *component, *role, geometry)
                }
                _ => 0,
            };
            if spec.name.contains(".indexer.") {
                scoring_bytes += token_bytes;
            }
            let share = shares.entry((order, name)).or_default();
            share.n_tensors += 1;
            // Tables of ids are no parameters.
            if spec.ty != GgmlType::I32 {
                share.n_parameters += spec.ne.iter().product::<u64>();
            }
            share.n_bytes += spec.n_bytes;
            share.token_bytes += token_bytes;
            *share.types.entry(spec.ty.name()).or_default() += 1;
        }
        Report {
            kind,
            geometry,
            components: shares
                .into_iter()
                .map(|((_, name), share)| (name, share))
                .collect(),
            scoring_bytes,
            available_bytes,
            refused,
        }
    }

    fn total(&self) -> Share {
        let mut total = Share::default();
        for (_, share) in &self.components {
            total.add(share);
        }
        total
    }

    /// Bytes of everything besides the weights, for one slot of `context` tokens.
    fn session_bytes(geometry: &Geometry, context: usize) -> u64 {
        session(context)
            .plan(geometry, &Limits::default())
            .total_bytes() as u64
    }

    /// Bytes of cache that `n` tokens of context add.
    fn cache_bytes(geometry: &Geometry, context: usize) -> u64 {
        session(context)
            .plan(geometry, &Limits::default())
            .slots_bytes as u64
    }

    /// Bytes that each token of context adds, exact over whole compressed rows.
    fn cache_bytes_per_token(geometry: &Geometry) -> f64 {
        const SPAN: usize = 1 << 14;
        let grown = Report::cache_bytes(geometry, 2 * SPAN) - Report::cache_bytes(geometry, SPAN);
        grown as f64 / SPAN as f64
    }

    /// The longest context, in tokens, that fits beside the weights; 0 when none does.
    fn context_that_fits(&self, geometry: &Geometry, available_bytes: u64) -> usize {
        let weights_bytes = self.total().n_bytes;
        let fits = |context| {
            weights_bytes.saturating_add(Report::session_bytes(geometry, context))
                <= available_bytes
        };
        if !fits(1) {
            return 0;
        }
        let (mut low, mut high) = (1, geometry.max_context + 1);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if fits(middle) {
                low = middle;
            } else {
                high = middle;
            }
        }
        low
    }

    fn print(&self, gguf: &Gguf, args: &InspectArgs, out: &mut dyn Write) -> Result<()> {
        writeln!(out, "{}", args.file.display())?;
        let shards = gguf.shards();
        writeln!(
            out,
            "  {}; GGUF version {}; {} bytes ({}){}; {} tensors, {} metadata keys",
            self.kind.describe(),
            shards[0].version,
            units::count(gguf.file_bytes()),
            units::bytes(gguf.file_bytes()),
            match shards.len() {
                1 => String::new(),
                n => format!(" in {n} files"),
            },
            gguf.tensors().len(),
            gguf.metadata().len(),
        )?;

        writeln!(out, "\nmetadata")?;
        let width = gguf.metadata().iter().map(|(key, _)| key.len()).max();
        for (key, value) in gguf.metadata().iter() {
            let width = width.unwrap_or(0);
            let key = printable(key);
            writeln!(out, "  {key:width$}  {}", printable(&value.summary()))?;
        }

        if args.tensors {
            print_tensors(gguf, out)?;
        }

        writeln!(out, "\nbytes by component")?;
        writeln!(
            out,
            "  {:18} {:>7} {:>17} {:>17} {:>17}  types",
            "component", "tensors", "parameters", "bytes", "read per token"
        )?;
        let mut total = self.total();
        let row = |out: &mut dyn Write, name: &str, share: &Share| {
            writeln!(
                out,
                "  {name:18} {:>7} {:>17} {:>17} {:>17}  {}",
                share.n_tensors,
                units::count(share.n_parameters),
                units::count(share.n_bytes),
                if self.geometry.is_some() {
                    units::count(share.token_bytes)
                } else {
                    "-".to_owned()
                },
                share.types(),
            )
        };
        for (name, share) in &self.components {
            row(out, name, share)?;
        }
        total.types.clear();
        row(out, "total", &total)?;

        let Some(geometry) = &self.geometry else {
            return Ok(());
        };
        writeln!(out, "\nthe network")?;
        let count = |kind| geometry.layers.iter().filter(|k| **k == kind).count();
        writeln!(
            out,
            "  {} layers ({} sliding, {} of ratio 4, {} of ratio 128), width {}, {} streams, vocabulary {}",
            geometry.layers.len(),
            count(LayerKind::Sliding),
            count(LayerKind::Csa),
            count(LayerKind::Hca),
            geometry.n_embd,
            geometry.n_hc,
            units::count(geometry.n_vocab as u64),
        )?;
        writeln!(
            out,
            "  {} heads of {}, window {}, {} of {} experts of {}, made for {} tokens of context",
            geometry.n_heads,
            geometry.head_dim,
            geometry.window,
            geometry.n_experts_used,
            geometry.n_experts,
            geometry.expert_dim,
            units::count(geometry.max_context as u64),
        )?;

        writeln!(out, "\nwhat a decoded token reads")?;
        writeln!(out, "  {} of weights", units::bytes(total.token_bytes))?;
        if self.scoring_bytes > 0 {
            writeln!(
                out,
                "  of these, {} score compressed rows: read from position {} on",
                units::bytes(self.scoring_bytes),
                units::count(first_selecting_position(geometry) as u64),
            )?;
        }
        if let Some(bandwidth) = args.bandwidth {
            let ms = token_ms(total.token_bytes, bandwidth);
            writeln!(
                out,
                "  at {bandwidth} GB/s at least {ms:.2} ms a token, at most {:.1} tokens/s, caches not counted",
                1000.0 / ms
            )?;
        }

        writeln!(out, "\nwhat a context takes, one slot")?;
        writeln!(
            out,
            "  {:.0} bytes of cache for every token",
            Report::cache_bytes_per_token(geometry)
        )?;
        for context in contexts(geometry) {
            writeln!(
                out,
                "  {:>9} tokens: {} of cache, {} with the scratch of {CHUNK}-row steps",
                units::count(context as u64),
                units::bytes(Report::cache_bytes(geometry, context)),
                units::bytes(Report::session_bytes(geometry, context)),
            )?;
        }

        writeln!(out, "\nwhat fits here")?;
        match self.available_bytes {
            None => writeln!(
                out,
                "  this system does not say how much memory is available"
            )?,
            Some(available) => writeln!(out, "  {}", self.what_fits(geometry, available))?,
        }
        Ok(())
    }

    fn what_fits(&self, geometry: &Geometry, available: u64) -> String {
        let weights_bytes = self.total().n_bytes;
        let memory = units::bytes(available);
        match self.context_that_fits(geometry, available) {
            0 if weights_bytes > available => format!(
                "the weights take {}, {memory} of memory is available: they do not fit, and \
                 would be read from the disk again for every token",
                units::bytes(weights_bytes)
            ),
            0 => format!(
                "{memory} of memory is available; the weights fit, but no context beside them"
            ),
            n if n >= geometry.max_context => {
                format!(
                    "{memory} of memory is available: the whole context fits, {} tokens",
                    units::count(n as u64)
                )
            }
            n => format!(
                "{memory} of memory is available: weights and {} tokens of context fit",
                units::count(n as u64)
            ),
        }
    }

    fn to_json(&self, gguf: &Gguf, args: &InspectArgs) -> Value {
        let share = |name: &str, share: &Share| {
            json!({
                "component": name,
                "n_tensors": share.n_tensors,
                "n_parameters": share.n_parameters,
                "n_bytes": share.n_bytes,
                "token_bytes": self.geometry.as_ref().map(|_| share.token_bytes),
                "types": share.types,
            })
        };
        let metadata: Map<String, Value> = gguf
            .metadata()
            .iter()
            .map(|(key, value)| (key.to_owned(), metadata_json(value)))
            .collect();
        let mut report = json!({
            "file": args.file.display().to_string(),
            "kind": self.kind.id(),
            "gguf_version": gguf.shards()[0].version,
            "n_files": gguf.shards().len(),
            "file_bytes": gguf.file_bytes(),
            "n_tensors": gguf.tensors().len(),
            "metadata": metadata,
            "components": self.components.iter().map(|(n, s)| share(n, s)).collect::<Vec<_>>(),
            "total": share("total", &self.total()),
            "refused": self.refused.as_ref().map(crate::error::one_line),
        });
        if args.tensors {
            report["tensors"] = gguf
                .tensors()
                .map(|t| {
                    json!({
                        "name": t.name, "type": t.ty.name(), "ne": t.ne,
                        "offset": t.offset, "n_bytes": t.n_bytes, "shard": t.shard,
                    })
                })
                .collect();
        }
        if let Some(geometry) = &self.geometry {
            let contexts: Vec<Value> = contexts(geometry)
                .map(|context| {
                    json!({
                        "context": context,
                        "cache_bytes": Report::cache_bytes(geometry, context),
                        "session_bytes": Report::session_bytes(geometry, context),
                    })
                })
                .collect();
            report["token"] = json!({
                "weight_bytes": self.total().token_bytes,
                "scoring_bytes": self.scoring_bytes,
                "scoring_from_position": (self.scoring_bytes > 0)
                    .then(|| first_selecting_position(geometry)),
                "least_ms": args.bandwidth.map(|b| token_ms(self.total().token_bytes, b)),
            });
            report["cache_bytes_per_token"] = json!(Report::cache_bytes_per_token(geometry));
            report["contexts"] = contexts.into();
            report["available_bytes"] = json!(self.available_bytes);
            report["context_that_fits"] = json!(
                self.available_bytes
                    .map(|n| self.context_that_fits(geometry, n))
            );
        }
        report
    }
}

/// Elements of a metadata array that is listed whole; of a longer one so many are.
const MAX_LISTED: usize = 256;
/// Elements of a longer array that are listed.
const N_FIRST: usize = 8;

/// A metadata value with its type. A long array, such as a vocabulary, is its length and its
/// first elements.
fn metadata_json(value: &gguf::Value) -> Value {
    use gguf::Value as V;
    match value {
        V::U8(v) => json!(v),
        V::I8(v) => json!(v),
        V::U16(v) => json!(v),
        V::I16(v) => json!(v),
        V::U32(v) => json!(v),
        V::I32(v) => json!(v),
        V::F32(v) => json!(v),
        V::Bool(v) => json!(v),
        V::String(v) => json!(v),
        V::U64(v) => json!(v),
        V::I64(v) => json!(v),
        V::F64(v) => json!(v),
        V::Array(array) => array_json(array),
    }
}

fn array_json(array: &gguf::Array) -> Value {
    use gguf::Array as A;
    let listed = match array.len() <= MAX_LISTED {
        true => array.len(),
        false => N_FIRST,
    };
    let first = match array {
        A::U8(v) => json!(v[..listed]),
        A::I8(v) => json!(v[..listed]),
        A::U16(v) => json!(v[..listed]),
        A::I16(v) => json!(v[..listed]),
        A::U32(v) => json!(v[..listed]),
        A::I32(v) => json!(v[..listed]),
        A::F32(v) => json!(v[..listed]),
        A::Bool(v) => json!(v[..listed]),
        A::String(v) => json!(v[..listed]),
        A::U64(v) => json!(v[..listed]),
        A::I64(v) => json!(v[..listed]),
        A::F64(v) => json!(v[..listed]),
        A::Array(v) => v[..listed].iter().map(array_json).collect(),
    };
    match listed == array.len() {
        true => first,
        false => json!({"n": array.len(), "first": first}),
    }
}

fn print_tensors(gguf: &Gguf, out: &mut dyn Write) -> Result<()> {
    writeln!(out, "\ntensors")?;
    let width = gguf.tensors().map(|t| t.name.len()).max().unwrap_or(0);
    for tensor in gguf.tensors() {
        let ne: Vec<String> = tensor.ne.iter().map(u64::to_string).collect();
        writeln!(
            out,
            "  {:width$}  {:8} {:22} {:>15} bytes at {}",
            printable(&tensor.name),
            tensor.ty.name(),
            format!("[{}]", ne.join(", ")),
            units::count(tensor.n_bytes),
            tensor.offset,
        )?;
    }
    Ok(())
}

/// The session that the memory figures are of.
fn session(context: usize) -> SessionShape {
    SessionShape {
        max_outputs: 1,
        ..SessionShape::uniform(1, context, CHUNK)
    }
}

/// The listed contexts that the model was made for, its longest included.
fn contexts(geometry: &Geometry) -> impl Iterator<Item = usize> + use<> {
    let longest = geometry.max_context;
    CONTEXTS
        .into_iter()
        .filter(move |n| *n < longest)
        .chain([longest])
}

/// First position whose row sees more compressed rows than the indexer selects: before it, all
/// are used and none is scored.
fn first_selecting_position(geometry: &Geometry) -> usize {
    (geometry.index_top_k + 1) * ds4_model::geometry::CSA_RATIO - 1
}

fn token_ms(n_bytes: u64, bandwidth: f64) -> f64 {
    n_bytes as f64 / (bandwidth * 1e9) * 1e3
}

/// Bytes of a tensor that decoding one token reads: one row of the embedding, the used share of
/// the routed experts, nothing to speak of from tables of ids, and all of everything else.
fn token_bytes(
    spec: &TensorSpec,
    component: Component,
    role: WeightRole,
    geometry: &Geometry,
) -> u64 {
    match (role, component) {
        (WeightRole::Ids, _) => 0,
        (_, Component::Embedding) => spec.n_bytes / spec.ne[1..].iter().product::<u64>().max(1),
        (_, Component::RoutedExperts) => {
            spec.n_bytes / geometry.n_experts as u64 * geometry.n_experts_used as u64
        }
        _ => spec.n_bytes,
    }
}

/// Weight bytes that decoding one token reads from a file of this geometry.
pub(crate) fn weight_bytes_per_token(gguf: &Gguf, geometry: &Geometry) -> u64 {
    let names = Names::new(Some(geometry));
    gguf.tensors()
        .filter_map(|spec| {
            let (component, role) = names.find(&spec.name)?;
            Some(token_bytes(spec, component, role, geometry))
        })
        .sum()
}

/// Order and name of a component's row.
fn component_row(component: Component) -> (usize, &'static str) {
    match component {
        Component::Embedding => (0, "embedding"),
        Component::HyperConnections => (1, "hyper-connections"),
        Component::Norms => (2, "norms and sinks"),
        Component::Attention => (3, "attention"),
        Component::Compressors => (4, "compressors"),
        Component::Indexers => (5, "indexers"),
        Component::Router => (6, "router"),
        Component::SharedExperts => (7, "shared experts"),
        Component::RoutedExperts => (8, "routed experts"),
        Component::Output => (9, "output"),
    }
}

/// What each tensor name is part of.
struct Names {
    by_name: HashMap<String, (Component, WeightRole)>,
    /// The same by the name within a block, for draft blocks, which are built like layers.
    by_suffix: HashMap<String, (Component, WeightRole)>,
}

impl Names {
    fn new(geometry: Option<&Geometry>) -> Names {
        let by_name = geometry.map(requirements).unwrap_or_default();
        let blocks = requirements(&Geometry::flash())
            .into_iter()
            .filter_map(|r| {
                let (_, suffix) = r.name.strip_prefix("blk.")?.split_once('.')?;
                Some((suffix.to_owned(), (r.component, r.role)))
            });
        Names {
            by_name: by_name
                .into_iter()
                .map(|r| (r.name, (r.component, r.role)))
                .collect(),
            by_suffix: blocks.collect(),
        }
    }

    fn find(&self, name: &str) -> Option<(Component, WeightRole)> {
        if let Some(found) = self.by_name.get(name) {
            return Some(*found);
        }
        let (_, suffix) = name.strip_prefix("mtp.")?.split_once('.')?;
        self.by_suffix.get(suffix).copied()
    }
}
