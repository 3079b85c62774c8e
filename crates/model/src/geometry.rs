//! The geometry of one model: every size the network needs, read from GGUF metadata.

use std::ops::RangeInclusive;

use ds4_formats::gguf::{self, Metadata};

/// Largest layer count accepted from a file; Flash has 43, Pro 61.
pub const MAX_LAYERS: usize = 256;
/// Largest width (embedding, head, rank, expert) accepted from a file.
pub const MAX_DIM: usize = 1 << 20;
/// The only architecture name this engine opens.
pub const ARCHITECTURE: &str = "deepseek4";

/// Tokens pooled into one compressed row of a [`LayerKind::Csa`] layer.
pub const CSA_RATIO: usize = 4;
/// Tokens pooled into one compressed row of a [`LayerKind::Hca`] layer.
pub const HCA_RATIO: usize = 128;

/// What a layer attends to besides its window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerKind {
    /// The window only (ratio 0).
    Sliding,
    /// Overlapping rows of 8 tokens every 4 tokens, chosen by the indexer (ratio 4).
    Csa,
    /// One row for every 128 tokens, all visible (ratio 128).
    Hca,
}

impl LayerKind {
    /// Tokens per compressed row; `None` for a sliding layer.
    pub fn ratio(self) -> Option<usize> {
        match self {
            LayerKind::Sliding => None,
            LayerKind::Csa => Some(CSA_RATIO),
            LayerKind::Hca => Some(HCA_RATIO),
        }
    }

    /// Tokens that one compressed row pools, which is also the number of
    /// past tokens whose projections the frontier may still need.
    pub fn n_pooled(self) -> usize {
        match self {
            LayerKind::Sliding => 0,
            LayerKind::Csa => 2 * CSA_RATIO,
            LayerKind::Hca => HCA_RATIO,
        }
    }

    /// Width of the compressor projections for rows of `row_dim` channels:
    /// a ratio-4 token is pooled into two rows and projected once for each.
    pub fn compressor_dim(self, row_dim: usize) -> usize {
        match self {
            LayerKind::Sliding => 0,
            LayerKind::Csa => 2 * row_dim,
            LayerKind::Hca => row_dim,
        }
    }
}

/// YaRN scaling of the rotary frequencies, used with the compressed base only.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yarn {
    /// Factor by which low frequencies are divided.
    pub factor: f64,
    /// Context of the original training, in tokens.
    pub original_context: f64,
    /// Rotations above which a frequency is left alone.
    pub beta_fast: f64,
    /// Rotations below which a frequency is divided by the whole factor.
    pub beta_slow: f64,
}

/// Every size and constant of one model. `FLASH` files and the small test
/// models differ in these values only.
#[derive(Clone, Debug, PartialEq)]
pub struct Geometry {
    /// Vocabulary entries.
    pub n_vocab: usize,
    /// Width of one residual stream.
    pub n_embd: usize,
    /// Parallel residual streams.
    pub n_hc: usize,
    /// Sinkhorn iterations of the hyper-connections.
    pub n_sinkhorn: usize,
    /// Epsilon of the hyper-connections.
    pub hc_eps: f32,
    /// Epsilon of every RMS norm.
    pub rms_eps: f32,
    /// Kind of every layer, in order.
    pub layers: Vec<LayerKind>,
    /// Layers at the start whose experts are looked up by token id.
    pub n_hash_layers: usize,
    /// Attention heads.
    pub n_heads: usize,
    /// Channels of a head, of a window row and of a compressed row.
    pub head_dim: usize,
    /// Rotated channels at the end of a row.
    pub rope_dim: usize,
    /// Rank of the query projection.
    pub q_rank: usize,
    /// Groups of the output projection.
    pub n_out_groups: usize,
    /// Rank of one output group.
    pub out_rank: usize,
    /// Tokens of the sliding window, the query's own included.
    pub window: usize,
    /// Heads of the indexer; 0 when no layer has one.
    pub n_index_heads: usize,
    /// Channels of an indexer head and of an index row.
    pub index_dim: usize,
    /// Rows the indexer selects.
    pub index_top_k: usize,
    /// Routed experts of a layer.
    pub n_experts: usize,
    /// Routed experts used for one token.
    pub n_experts_used: usize,
    /// Width of an expert's hidden layer, routed and shared.
    pub expert_dim: usize,
    /// Factor on the normalised router weights.
    pub expert_scale: f32,
    /// Clamp of the routed experts' gate and up values, by layer.
    pub expert_clamp: Vec<f32>,
    /// Clamp of the shared expert's gate and up values, by layer.
    pub shared_clamp: Vec<f32>,
    /// Rotary base of sliding layers.
    pub rope_base: f64,
    /// Rotary base of compressed layers.
    pub compressed_rope_base: f64,
    /// Frequency scaling of compressed layers.
    pub yarn: Yarn,
    /// Longest context the model was made for, in tokens.
    pub max_context: usize,
}

/// Why a file's metadata is not a geometry this engine runs.
#[derive(Debug, thiserror::Error)]
pub enum GeometryError {
    /// A key is missing or has another type.
    #[error(transparent)]
    Metadata(#[from] gguf::Error),
    /// The file holds another architecture.
    #[error(
        "general.architecture is {found:?}, expected {ARCHITECTURE:?}: {}",
        architecture_hint(found)
    )]
    Architecture {
        /// The name in the file.
        found: String,
    },
    /// A value is outside what the network can be.
    #[error("metadata key {key}: found {found}, expected {expected}")]
    Value {
        /// The key.
        key: String,
        /// The value in the file.
        found: String,
        /// What would be accepted.
        expected: String,
    },
}

fn architecture_hint(found: &str) -> &'static str {
    match found {
        "deepseek4-dspark" | "dflash" => {
            "this is a draft-block support file; give the main model with -m"
        }
        _ => "only DeepSeek V4 Flash files are supported",
    }
}

/// What keeps a division from a division by zero. Beyond it nothing would be left of what is divided.
const EPSILONS: RangeInclusive<f32> = 1e-30..=0.1;
/// Bases of the rotations' frequencies: below 1 they would grow along a row.
const BASES: RangeInclusive<f32> = 1.0..=1e12;
/// By how much a context may be stretched.
const FACTORS: RangeInclusive<f32> = 1.0..=1e6;
/// Other numbers: far from what makes a product of two of them infinite or nothing.
const SCALES: RangeInclusive<f32> = 1e-6..=1e6;

impl Geometry {
    /// Reads the geometry from the metadata of a GGUF file and checks that it
    /// is one the network is defined for.
    pub fn from_metadata(metadata: &Metadata) -> Result<Geometry, GeometryError> {
        let architecture = metadata.str("general.architecture")?;
        if architecture != ARCHITECTURE {
            return Err(GeometryError::Architecture {
                found: architecture.to_owned(),
            });
        }
        let reader = Reader { metadata };
        let n_layers = reader.size("block_count", 1..=MAX_LAYERS)?;
        let n_embd = reader.dim("embedding_length")?;
        let head_dim = reader.dim("attention.key_length")?;
        reader.same("attention.value_length", head_dim)?;
        reader.same("attention.head_count_kv", 1)?;
        let rope_dim = reader.dim("rope.dimension_count")?;
        if rope_dim % 2 != 0 || rope_dim > head_dim {
            return Err(reader.wrong(
                "rope.dimension_count",
                rope_dim,
                &format!("an even number up to attention.key_length ({head_dim})"),
            ));
        }

        let layers = reader.layer_kinds(n_layers)?;
        let has_indexer = layers.contains(&LayerKind::Csa);
        let (n_index_heads, index_dim, index_top_k) = if has_indexer {
            let index_dim = reader.dim("attention.indexer.key_length")?;
            if !index_dim.is_power_of_two() || index_dim < rope_dim {
                return Err(reader.wrong(
                    "attention.indexer.key_length",
                    index_dim,
                    "a power of two no smaller than rope.dimension_count (its rows go through a Hadamard transform)",
                ));
            }
            (
                reader.dim("attention.indexer.head_count")?,
                index_dim,
                reader.dim("attention.indexer.top_k")?,
            )
        } else {
            (0, 0, 0)
        };

        let n_heads = reader.dim("attention.head_count")?;
        let n_out_groups = reader.size("attention.output_group_count", 1..=n_heads)?;
        if n_heads % n_out_groups != 0 {
            return Err(reader.wrong(
                "attention.output_group_count",
                n_out_groups,
                &format!("a divisor of attention.head_count ({n_heads})"),
            ));
        }

        let n_experts = reader.dim("expert_count")?;
        let n_experts_used = reader.size("expert_used_count", 1..=n_experts)?;
        reader.same("expert_shared_count", 1)?;
        reader.same("expert_gating_func", 4)?;
        if metadata.get(&reader.key("expert_group_count")).is_some() {
            reader.same("expert_group_count", 0)?;
        }
        if let Some(value) = metadata.get(&reader.key("expert_weights_norm"))
            && !metadata.bool(&reader.key("expert_weights_norm"))?
        {
            return Err(reader.wrong("expert_weights_norm", format!("{value:?}"), "true"));
        }

        let expert_clamp = reader.clamps("swiglu_clamp_exp", n_layers)?;
        let shared_clamp = if metadata.get(&reader.key("swiglu_clamp_shexp")).is_some() {
            reader.clamps("swiglu_clamp_shexp", n_layers)?
        } else {
            expert_clamp.clone()
        };

        if let Some(scaling) = metadata.get(&reader.key("rope.scaling.type"))
            && metadata.str(&reader.key("rope.scaling.type"))? != "yarn"
        {
            return Err(reader.wrong("rope.scaling.type", format!("{scaling:?}"), "yarn"));
        }

        Ok(Geometry {
            n_vocab: reader.dim("vocab_size")?,
            n_embd,
            n_hc: reader.size("hyper_connection.count", 1..=16)?,
            n_sinkhorn: reader.size("hyper_connection.sinkhorn_iterations", 1..=1000)?,
            hc_eps: reader.number("hyper_connection.epsilon", EPSILONS)?,
            rms_eps: reader.number("attention.layer_norm_rms_epsilon", EPSILONS)?,
            n_hash_layers: reader.size("hash_layer_count", 0..=n_layers)?,
            layers,
            n_heads,
            head_dim,
            rope_dim,
            q_rank: reader.dim("attention.q_lora_rank")?,
            n_out_groups,
            out_rank: reader.dim("attention.output_lora_rank")?,
            window: reader.dim("attention.sliding_window")?,
            n_index_heads,
            index_dim,
            index_top_k,
            n_experts,
            n_experts_used,
            expert_dim: reader.dim("expert_feed_forward_length")?,
            expert_scale: reader.number("expert_weights_scale", SCALES)?,
            expert_clamp,
            shared_clamp,
            rope_base: f64::from(reader.number("rope.freq_base", BASES)?),
            compressed_rope_base: f64::from(
                reader.number("attention.compress_rope_freq_base", BASES)?,
            ),
            yarn: Yarn {
                factor: f64::from(reader.number("rope.scaling.factor", FACTORS)?),
                original_context: reader
                    .size("rope.scaling.original_context_length", 1..=usize::MAX)?
                    as f64,
                beta_fast: f64::from(reader.number("rope.scaling.yarn_beta_fast", SCALES)?),
                beta_slow: f64::from(reader.number("rope.scaling.yarn_beta_slow", SCALES)?),
            },
            max_context: reader.size("context_length", 1..=u32::MAX as usize)?,
        })
    }

    /// The published model: DeepSeek V4 Flash.
    pub fn flash() -> Geometry {
        let n_layers = 43;
        Geometry {
            n_vocab: 129_280,
            n_embd: 4096,
            n_hc: 4,
            n_sinkhorn: 20,
            hc_eps: 1e-6,
            rms_eps: 1e-6,
            layers: (0..n_layers)
                .map(|i| match i {
                    0 | 1 => LayerKind::Sliding,
                    i if i % 2 == 0 => LayerKind::Csa,
                    _ => LayerKind::Hca,
                })
                .collect(),
            n_hash_layers: 3,
            n_heads: 64,
            head_dim: 512,
            rope_dim: 64,
            q_rank: 1024,
            n_out_groups: 8,
            out_rank: 1024,
            window: 128,
            n_index_heads: 64,
            index_dim: 128,
            index_top_k: 512,
            n_experts: 256,
            n_experts_used: 6,
            expert_dim: 2048,
            expert_scale: 1.5,
            expert_clamp: vec![10.0; n_layers],
            shared_clamp: vec![10.0; n_layers],
            rope_base: 10_000.0,
            compressed_rope_base: 160_000.0,
            yarn: Yarn {
                factor: 16.0,
                original_context: 65_536.0,
                beta_fast: 32.0,
                beta_slow: 1.0,
            },
            max_context: 1 << 20,
        }
    }

    /// The metadata that a file of this geometry carries: the inverse of
    /// [`Geometry::from_metadata`].
    pub fn to_metadata(&self, name: &str) -> Metadata {
        let mut metadata = Metadata::new();
        metadata.insert("general.architecture", "deepseek4");
        metadata.insert("general.name", name);
        let mut put_u32 = |name: &str, value: usize| {
            let value = u32::try_from(value).expect("sizes are small");
            metadata.insert(format!("deepseek4.{name}"), value);
        };
        for (name, value) in [
            ("block_count", self.layers.len()),
            ("context_length", self.max_context),
            ("embedding_length", self.n_embd),
            ("vocab_size", self.n_vocab),
            ("attention.head_count", self.n_heads),
            ("attention.head_count_kv", 1),
            ("attention.key_length", self.head_dim),
            ("attention.value_length", self.head_dim),
            ("attention.q_lora_rank", self.q_rank),
            ("attention.output_lora_rank", self.out_rank),
            ("attention.output_group_count", self.n_out_groups),
            ("attention.sliding_window", self.window),
            ("attention.indexer.head_count", self.n_index_heads),
            ("attention.indexer.key_length", self.index_dim),
            ("attention.indexer.top_k", self.index_top_k),
            ("rope.dimension_count", self.rope_dim),
            (
                "rope.scaling.original_context_length",
                self.yarn.original_context as usize,
            ),
            ("expert_count", self.n_experts),
            ("expert_used_count", self.n_experts_used),
            ("expert_shared_count", 1),
            ("expert_feed_forward_length", self.expert_dim),
            ("expert_gating_func", 4),
            ("hash_layer_count", self.n_hash_layers),
            ("hyper_connection.count", self.n_hc),
            ("hyper_connection.sinkhorn_iterations", self.n_sinkhorn),
            ("nextn_predict_layers", 1),
        ] {
            put_u32(name, value);
        }
        for (name, value) in [
            ("attention.layer_norm_rms_epsilon", self.rms_eps),
            (
                "attention.compress_rope_freq_base",
                self.compressed_rope_base as f32,
            ),
            ("rope.freq_base", self.rope_base as f32),
            ("rope.scaling.factor", self.yarn.factor as f32),
            ("rope.scaling.yarn_beta_fast", self.yarn.beta_fast as f32),
            ("rope.scaling.yarn_beta_slow", self.yarn.beta_slow as f32),
            ("expert_weights_scale", self.expert_scale),
            ("hyper_connection.epsilon", self.hc_eps),
        ] {
            metadata.insert(format!("deepseek4.{name}"), value);
        }
        metadata.insert("deepseek4.expert_weights_norm", true);
        metadata.insert("deepseek4.rope.scaling.type", "yarn");
        let ratios: Vec<i32> = self
            .layers
            .iter()
            .map(|kind| kind.ratio().unwrap_or(0) as i32)
            .chain([0])
            .collect();
        metadata.insert("deepseek4.attention.compress_ratios", ratios);
        metadata.insert("deepseek4.swiglu_clamp_exp", self.expert_clamp.clone());
        metadata.insert("deepseek4.swiglu_clamp_shexp", self.shared_clamp.clone());
        metadata
    }

    /// Values of the hyper-connection mix of one sublayer: `pre`, `post`, `comb`.
    pub fn n_gates(&self) -> usize {
        self.n_hc * (2 + self.n_hc)
    }

    /// Input width of one output group.
    pub fn group_dim(&self) -> usize {
        self.n_heads / self.n_out_groups * self.head_dim
    }

    /// Compressed rows of `kind` that exist once `n_tokens` tokens are in the cache.
    pub fn n_compressed(kind: LayerKind, n_tokens: usize) -> usize {
        kind.ratio().map_or(0, |ratio| n_tokens / ratio)
    }
}

/// Typed access under the `deepseek4.` prefix.
struct Reader<'a> {
    metadata: &'a Metadata,
}

impl Reader<'_> {
    fn key(&self, name: &str) -> String {
        format!("{ARCHITECTURE}.{name}")
    }

    fn wrong(&self, name: &str, found: impl std::fmt::Display, expected: &str) -> GeometryError {
        GeometryError::Value {
            key: self.key(name),
            found: found.to_string(),
            expected: expected.to_owned(),
        }
    }

    fn size(&self, name: &str, accepted: RangeInclusive<usize>) -> Result<usize, GeometryError> {
        let found = self.metadata.u64(&self.key(name))?;
        match usize::try_from(found) {
            Ok(size) if accepted.contains(&size) => Ok(size),
            _ => Err(self.wrong(
                name,
                found,
                &format!("{} to {}", accepted.start(), accepted.end()),
            )),
        }
    }

    fn dim(&self, name: &str) -> Result<usize, GeometryError> {
        self.size(name, 1..=MAX_DIM)
    }

    fn same(&self, name: &str, expected: usize) -> Result<(), GeometryError> {
        self.size(name, expected..=expected).map(drop)
    }

    fn number(&self, name: &str, within: RangeInclusive<f32>) -> Result<f32, GeometryError> {
        let found = self.metadata.f32(&self.key(name))?;
        if within.contains(&found) {
            Ok(found)
        } else {
            let (least, most) = within.into_inner();
            let expected = format!("a number from {least:e} to {most:e}");
            Err(self.wrong(name, format!("{found:e}"), &expected))
        }
    }

    /// The array may be longer than the layer count: its tail belongs to
    /// draft blocks and is ignored.
    fn layer_kinds(&self, n_layers: usize) -> Result<Vec<LayerKind>, GeometryError> {
        let name = "attention.compress_ratios";
        let ratios = self.metadata.u32s(&self.key(name))?;
        if ratios.len() < n_layers {
            return Err(self.wrong(
                name,
                format!("{} entries", ratios.len()),
                &format!("at least {n_layers}, one for every layer"),
            ));
        }
        ratios[..n_layers]
            .iter()
            .enumerate()
            .map(|(layer, ratio)| match *ratio as usize {
                0 => Ok(LayerKind::Sliding),
                CSA_RATIO => Ok(LayerKind::Csa),
                HCA_RATIO => Ok(LayerKind::Hca),
                ratio => Err(self.wrong(name, format!("{ratio} at layer {layer}"), "0, 4 or 128")),
            })
            .collect()
    }

    fn clamps(&self, name: &str, n_layers: usize) -> Result<Vec<f32>, GeometryError> {
        let mut clamps = self.metadata.f32s(&self.key(name))?;
        if clamps.len() < n_layers {
            return Err(self.wrong(
                name,
                format!("{} entries", clamps.len()),
                &format!("at least {n_layers}, one for every layer"),
            ));
        }
        clamps.truncate(n_layers);
        if let Some(bad) = clamps.iter().find(|c| !(c.is_finite() && **c > 0.0)) {
            return Err(self.wrong(name, bad, "positive numbers"));
        }
        Ok(clamps)
    }
}
