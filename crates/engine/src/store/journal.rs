//! How often points were used: a file that is rewritten whole and may be lost.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use xxhash_rust::xxh3::xxh3_64;

use super::index::{Index, Uses};
use super::key::FileId;
use super::volume::{expect_file, read_limited};

const MAGIC: &[u8; 4] = b"DSJ2";
const ENTRY_BYTES: usize = 32;
/// Longest journal that is read: 32 bytes for each of two million points.
const MAX_JOURNAL_BYTES: u64 = 64 << 20;

/// The journal of an index: points that were never used are left out.
pub(crate) fn bytes(index: &Index) -> Vec<u8> {
    let mut used: Vec<_> = index
        .points()
        .iter()
        .filter(|(_, p)| p.uses.score > 0.0)
        .collect();
    used.sort_by_key(|(id, _)| **id);
    let mut out = MAGIC.to_vec();
    for (id, point) in used {
        let at = point.uses.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        out.extend_from_slice(&id.0);
        out.extend_from_slice(&point.uses.score.to_le_bytes());
        out.extend_from_slice(&at.as_secs().to_le_bytes());
    }
    let checksum = xxh3_64(&out);
    out.extend_from_slice(&checksum.to_le_bytes());
    out
}

/// Enters the uses of a journal into an index. One that cannot be read changes
/// nothing.
pub(crate) fn read(path: &Path, index: &mut Index) {
    let bytes = expect_file(path).and_then(|()| read_limited(path, MAX_JOURNAL_BYTES));
    let Ok(Some(bytes)) = bytes else {
        return;
    };
    for (id, uses) in parse(&bytes).unwrap_or_default() {
        if let Some(point) = index.point_mut(id) {
            point.uses = uses;
        }
    }
}

/// The number of entries of a journal that is in memory. For fuzzing of the
/// reader.
#[doc(hidden)]
pub fn read_journal_bytes(bytes: &[u8]) -> Option<usize> {
    parse(bytes).map(|entries| entries.len())
}

/// The entries of a journal; `None` when it is damaged.
pub(crate) fn parse(bytes: &[u8]) -> Option<Vec<(FileId, Uses)>> {
    let (body, checksum) = bytes.split_last_chunk::<8>()?;
    let entries = body.strip_prefix(MAGIC)?;
    if xxh3_64(body).to_le_bytes() != *checksum || entries.len() % ENTRY_BYTES != 0 {
        return None;
    }
    entries
        .chunks_exact(ENTRY_BYTES)
        .map(|entry| {
            let number = |at: usize| entry[at..at + 8].try_into().map(u64::from_le_bytes).ok();
            let score = f64::from_bits(number(16)?);
            let at = UNIX_EPOCH.checked_add(Duration::from_secs(number(24)?))?;
            let id = FileId(entry[..16].try_into().ok()?);
            (score.is_finite() && score >= 0.0).then_some((id, Uses { score, at }))
        })
        .collect()
}
