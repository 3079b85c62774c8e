//! The reader of the KV store's blocks and points on arbitrary bytes. Checksums
//! are made good first, since no mutation would get past them.
#![no_main]

use ds4_engine::store::{SlotLayout, decode_file};
use ds4_engine::{CacheRounding, Geometry};
use ds4_model::LayerKind;
use libfuzzer_sys::fuzz_target;
use xxhash_rust::xxh3::xxh3_64;

/// The layout of the files in `testdata/store`.
fn layout() -> SlotLayout {
    let mut geometry = Geometry::flash();
    geometry.layers = vec![LayerKind::Sliding, LayerKind::Csa, LayerKind::Hca];
    geometry.head_dim = 24;
    geometry.rope_dim = 8;
    geometry.index_dim = 16;
    geometry.window = 4;
    SlotLayout::new(&geometry, CacheRounding::Official).with_block_tokens(16)
}

/// Writes the checksums that the tables of a file ask for, as far as they make
/// sense. The last 36 bytes are the footer.
fn repair(file: &mut [u8]) -> Option<()> {
    let word = |file: &[u8], at: usize| {
        let bytes = file.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let body = file.len().checked_sub(36)?;
    let n_head = word(file, 8)?;
    let (n_fields, n_groups, n_chunks) = (word(file, 12)?, word(file, 16)?, word(file, 20)?);
    let table = n_fields.checked_add(n_groups.checked_mul(12)?)?.checked_add(96)?;
    let mut stored = n_head;
    for chunk in 0..n_chunks {
        let entry = table.checked_add(chunk.checked_mul(16)?)?;
        let end = stored.checked_add(word(file, entry)?)?;
        let Some(bytes) = file.get(stored..end) else {
            break;
        };
        let checksum = xxh3_64(bytes).to_le_bytes();
        file.get_mut(entry + 8..entry + 16)?.copy_from_slice(&checksum);
        stored = end;
    }
    let checksum = xxh3_64(file.get(..n_head.checked_sub(8)?)?).to_le_bytes();
    file.get_mut(n_head - 8..n_head)?.copy_from_slice(&checksum);
    let hash = blake3::hash(&file[..body]);
    file[body..body + 32].copy_from_slice(hash.as_bytes());
    file[body + 32..].copy_from_slice(b"DSE2");
    Some(())
}

fuzz_target!(|bytes: &[u8]| {
    let layout = layout();
    let _ = decode_file(bytes, &layout);
    let mut file = bytes.to_vec();
    let _ = repair(&mut file);
    if let Ok((tokens, rows)) = decode_file(&file, &layout) {
        assert!(tokens.len() <= 16);
        assert!(rows.len() <= 1 << 20);
    }
});
