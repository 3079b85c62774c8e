//! Which stored states belong to an open model.

use ds4_engine::store::{CompatInputs, CompatKey, SlotLayout, WeightsFingerprint};
use ds4_engine::{CacheRounding, Engine};
use ds4_formats::gguf::Gguf;
use ds4_text::Tokenizer;
use sha2::{Digest as _, Sha256};

/// The key of the states of a model on a backend, and how its slots lie in files.
pub(crate) fn compat(
    gguf: &Gguf,
    engine: &Engine,
    tokenizer: &Tokenizer,
) -> (CompatKey, SlotLayout) {
    let layout = SlotLayout::new(engine.geometry(), CacheRounding::default());
    let inputs = CompatInputs {
        geometry: engine.geometry(),
        weights: WeightsFingerprint::of(gguf),
        tokenizer: tokenizer_hash(tokenizer),
        numerics_class: engine.numerics(),
    };
    (CompatKey::new(&inputs, &layout), layout)
}

/// Names what the token ids of a model mean.
fn tokenizer_hash(tokenizer: &Tokenizer) -> [u8; 32] {
    let mut hash = Sha256::new();
    for token in 0..tokenizer.n_vocab() as u32 {
        let bytes = tokenizer.token_bytes(token);
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    }
    hash.finalize().into()
}
