//! What names a state: the model it belongs to, its tokens, its text.

use std::fmt;

use ds4_formats::gguf::Gguf;
use ds4_model::geometry::Yarn;
use ds4_model::{CacheRounding, Geometry, LayerKind};

use super::layout::SlotLayout;

/// Version of the files, part of every compatibility key.
pub const FORMAT_VERSION: u32 = 2;
/// Pages of a model file that enter its fingerprint at fixed relative
/// positions, besides one of every tensor.
const N_SAMPLED_PAGES: u64 = 64;
/// Bytes of a sampled page.
const PAGE_BYTES: usize = 4096;

/// A hash, written as hexadecimal digits.
macro_rules! hash_type {
    ($(#[$doc:meta])* $name:ident, $n:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; $n]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
    };
}

hash_type!(
    /// States with equal keys can be continued by the same engine. See
    /// [`CompatInputs`].
    CompatKey, 32
);
hash_type!(
    /// Identity of the weights: the table of tensors, the size of the file, and
    /// sampled pages.
    WeightsFingerprint, 32
);
hash_type!(
    /// Names the tokens from the first one to the end of some block.
    ChainHash, 32
);
hash_type!(
    /// Names a block or a point: the first half of its hash, and its file name.
    FileId, 16
);

impl FileId {
    /// The id that a file name of 32 hexadecimal digits stands for.
    pub fn from_hex(name: &str) -> Option<FileId> {
        if name.len() != 32 || !name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        let mut id = [0; 16];
        for (byte, pair) in id.iter_mut().zip(name.as_bytes().chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(FileId(id))
    }
}

impl ChainHash {
    /// Where every chain of a key starts.
    pub fn root(key: CompatKey) -> ChainHash {
        ChainHash(key.0)
    }

    /// The chain that goes on with the tokens of one more block.
    pub fn then(self, tokens: &[u32]) -> ChainHash {
        ChainHash(hash_tokens(b"", self, tokens))
    }

    /// The name of the block that ends this chain.
    pub fn block_id(self) -> FileId {
        FileId(self.0[..16].try_into().expect("16 of 32 bytes"))
    }

    /// The name of the point after this chain and `tail`.
    pub fn point_id(self, tail: &[u32]) -> FileId {
        let hash = hash_tokens(POINT_TAG, self, tail);
        FileId(hash[..16].try_into().expect("16 of 32 bytes"))
    }

    /// [`ChainHash::point_id`] of the first 0, 1, 2 and so on of `tail`.
    pub(crate) fn point_ids(self, tail: &[u32]) -> impl Iterator<Item = FileId> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(POINT_TAG);
        hasher.update(&self.0);
        (0..=tail.len()).map(move |n| {
            if n > 0 {
                hasher.update(&tail[n - 1].to_le_bytes());
            }
            let hash = *hasher.finalize().as_bytes();
            FileId(hash[..16].try_into().expect("16 of 32 bytes"))
        })
    }
}

/// Tells the hash of a point from that of a block.
const POINT_TAG: &[u8] = b"point";

fn hash_tokens(tag: &[u8], parent: ChainHash, tokens: &[u32]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(tag);
    hasher.update(&parent.0);
    let mut bytes = [0; 4096];
    for part in tokens.chunks(bytes.len() / 4) {
        for (four, token) in bytes.chunks_exact_mut(4).zip(part) {
            four.copy_from_slice(&token.to_le_bytes());
        }
        hasher.update(&bytes[..4 * part.len()]);
    }
    *hasher.finalize().as_bytes()
}

/// Everything that makes stored rows unusable when it changes. The context, the
/// prefill chunk and the number of slots are not among it: rows are stored by
/// position.
#[derive(Clone, Debug)]
pub struct CompatInputs<'a> {
    /// Sizes and constants of the model.
    pub geometry: &'a Geometry,
    /// Identity of the weights.
    pub weights: WeightsFingerprint,
    /// Hash of the tokenizer: token ids must mean the same text.
    pub tokenizer: [u8; 32],
    /// Names a set of kernels whose rows may be mixed; another name keeps the
    /// states apart.
    pub numerics_class: &'a str,
}

impl CompatKey {
    /// The key of these inputs for states of this layout.
    pub fn new(inputs: &CompatInputs<'_>, layout: &SlotLayout) -> CompatKey {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"ds4 kv store");
        hasher.update(&FORMAT_VERSION.to_le_bytes());
        hash_geometry(&mut hasher, inputs.geometry);
        hasher.update(&inputs.weights.0);
        hasher.update(&inputs.tokenizer);
        hasher.update(&(inputs.numerics_class.len() as u64).to_le_bytes());
        hasher.update(inputs.numerics_class.as_bytes());
        hasher.update(&[match layout.rounding() {
            CacheRounding::Official => 1,
            CacheRounding::Off => 0,
        }]);
        hasher.update(&(layout.block_tokens() as u64).to_le_bytes());
        CompatKey(*hasher.finalize().as_bytes())
    }

    /// The name of the folder of this key.
    pub fn folder(&self) -> String {
        format!("compat-{}", &self.to_string()[..16])
    }
}

fn hash_geometry(hasher: &mut blake3::Hasher, geometry: &Geometry) {
    // Naming every field makes a new one a compile error here. What a file says
    // about the longest context changes no row.
    let Geometry {
        n_vocab,
        n_embd,
        n_hc,
        n_sinkhorn,
        hc_eps,
        rms_eps,
        layers,
        n_hash_layers,
        n_heads,
        head_dim,
        rope_dim,
        q_rank,
        n_out_groups,
        out_rank,
        window,
        n_index_heads,
        index_dim,
        index_top_k,
        n_experts,
        n_experts_used,
        expert_dim,
        expert_scale,
        expert_clamp,
        shared_clamp,
        rope_base,
        compressed_rope_base,
        yarn:
            Yarn {
                factor,
                original_context,
                beta_fast,
                beta_slow,
            },
        max_context: _,
    } = geometry;
    for size in [
        n_vocab,
        n_embd,
        n_hc,
        n_sinkhorn,
        n_hash_layers,
        n_heads,
        head_dim,
        rope_dim,
        q_rank,
        n_out_groups,
        out_rank,
        window,
        n_index_heads,
        index_dim,
        index_top_k,
        n_experts,
        n_experts_used,
        expert_dim,
        &layers.len(),
        &expert_clamp.len(),
        &shared_clamp.len(),
    ] {
        hasher.update(&(*size as u64).to_le_bytes());
    }
    for layer in layers {
        hasher.update(&[match layer {
            LayerKind::Sliding => 0,
            LayerKind::Csa => 4,
            LayerKind::Hca => 128,
        }]);
    }
    let small = [*hc_eps, *rms_eps, *expert_scale];
    for x in small.iter().chain(expert_clamp).chain(shared_clamp) {
        hasher.update(&x.to_le_bytes());
    }
    for x in [
        rope_base,
        compressed_rope_base,
        factor,
        original_context,
        beta_fast,
        beta_slow,
    ] {
        hasher.update(&x.to_le_bytes());
    }
}

impl WeightsFingerprint {
    /// Reads the table of tensors, the sizes of the files, 64 pages at fixed
    /// relative positions of every file and the page in the middle of every
    /// tensor. The latter make sure that a change of some tensors is seen:
    /// of a 2-bit file nine tenths are routed experts, and a change of another
    /// tensor falls between 64 pages more often than not.
    pub fn of(gguf: &Gguf) -> WeightsFingerprint {
        let mut hasher = blake3::Hasher::new();
        for spec in gguf.tensors() {
            let (name, ty, ne) = (&spec.name, spec.ty.id(), &spec.ne);
            let place = (spec.shard, spec.offset, spec.n_bytes);
            hasher.update(format!("{name:?} {ty} {ne:?} {place:?}\n").as_bytes());
        }
        for shard in gguf.shards() {
            let bytes: &[u8] = &shard.bytes;
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            for i in 0..N_SAMPLED_PAGES {
                let at = bytes.len() as u128 * u128::from(i) / u128::from(N_SAMPLED_PAGES);
                hasher.update(page(bytes, at as usize));
            }
        }
        for spec in gguf.tensors() {
            let bytes = gguf.data(spec);
            hasher.update(page(&bytes, bytes.len() / 2));
        }
        WeightsFingerprint(*hasher.finalize().as_bytes())
    }
}

fn page(bytes: &[u8], at: usize) -> &[u8] {
    &bytes[at..bytes.len().min(at + PAGE_BYTES)]
}

/// A text whose tokens a point holds. The text itself is not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TextKey {
    /// Length of the text, bytes of UTF-8.
    pub text_bytes: u64,
    /// BLAKE3 of the text.
    pub hash: [u8; 32],
    /// Whatever else decides which tokens a text stands for, such as the
    /// revision of the prompt format; keys match within one setting only.
    pub setting: u64,
}

impl TextKey {
    /// The key of a text.
    pub fn new(text: &str, setting: u64) -> TextKey {
        TextKey {
            text_bytes: text.len() as u64,
            hash: *blake3::hash(text.as_bytes()).as_bytes(),
            setting,
        }
    }
}
