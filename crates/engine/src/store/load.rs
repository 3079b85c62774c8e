//! Reading a point and its blocks back into a state.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use ds4_model::{RowKind, SlotState, StoredRows};

use super::file::{Damage, FileKind, Head, max_file_bytes};
use super::key::{ChainHash, CompatKey, FileId};
use super::layout::{Group, SlotLayout};
use super::options::PAUSE;
use super::report::Candidate;
use super::scan::{CompatDir, check_block, check_point};
use super::shared::Shared;
use super::volume::read_limited;

/// A state read from disk.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The tokens it was made from. After a match by text they, not a
    /// tokenisation of the text, are what the state continues.
    pub tokens: Vec<u32>,
    /// The state, to be imported.
    pub state: SlotState,
    /// Bytes read.
    pub n_bytes: u64,
}

/// Why a point could not be loaded. A miss costs a prefill, nothing else.
#[derive(Debug, thiserror::Error)]
pub enum Miss {
    /// It was evicted meanwhile, by this process or another.
    #[error("{} is gone", path.display())]
    Gone {
        /// The missing file.
        path: PathBuf,
    },
    /// A file is not what was written; it was moved to the quarantine.
    #[error("{}: {damage}; the file was moved to the quarantine", path.display())]
    Damaged {
        /// Where it was.
        path: PathBuf,
        /// What is wrong.
        damage: Damage,
    },
    /// A file could not be read; it is left where it is and not tried again for
    /// a while.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The point is longer than what the caller can hold.
    #[error("the point has {n_tokens} tokens, at most {limit} fit")]
    TooLong {
        /// Its tokens.
        n_tokens: usize,
        /// Most tokens accepted.
        limit: usize,
    },
}

/// One file to decode: which, and where its rows go.
struct Part<'a> {
    path: PathBuf,
    groups: Vec<Group>,
    rows: Vec<&'a mut [u8]>,
    tokens: &'a mut [u32],
    block: Option<(FileId, ChainHash)>,
}

fn read(path: &Path, row_bytes: usize) -> Result<Vec<u8>, Miss> {
    let limit = max_file_bytes(row_bytes);
    match read_limited(path, limit) {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(Miss::Damaged {
            path: path.to_owned(),
            damage: Damage::Length {
                found: path.metadata().map_or(0, |m| m.len()),
                expected: format!("at most {limit}"),
            },
        }),
        Err(source) => {
            let path = path.to_owned();
            Err(match source.kind() {
                io::ErrorKind::NotFound => Miss::Gone { path },
                _ => Miss::Io { path, source },
            })
        }
    }
}

fn damaged(path: &Path) -> impl FnOnce(Damage) -> Miss {
    |damage| Miss::Damaged {
        path: path.to_owned(),
        damage,
    }
}

/// Reads the point `id` and its blocks.
pub(crate) fn load(
    compat: &CompatDir,
    key: CompatKey,
    layout: &SlotLayout,
    id: FileId,
    max_tokens: usize,
    n_threads: usize,
) -> Result<Loaded, Miss> {
    let block_tokens = layout.block_tokens();
    let path = compat.point(id);
    // A point is at most a tail of one block less a token, and a frontier.
    let point_bytes = layout.block_bytes() + layout.point_bytes(block_tokens - 1);
    let most_bytes = point_bytes + max_frontier_bytes(layout);
    let file = read(&path, most_bytes)?;
    let head = Head::check(&file).map_err(damaged(&path))?;
    check_point(&head, id, key, Some(block_tokens)).map_err(damaged(&path))?;
    let FileKind::Point(point) = &head.kind else {
        unreachable!("a checked point");
    };
    let n_tokens = head.end();
    if n_tokens > max_tokens {
        let limit = max_tokens;
        return Err(Miss::TooLong { n_tokens, limit });
    }
    check_tokens(&head, layout).map_err(damaged(&path))?;
    // Before memory is taken for them, the blocks must be there.
    for hash in &point.chain {
        let path = compat.block(hash.block_id());
        if !path.is_file() {
            return Err(Miss::Gone { path });
        }
    }

    let n_blocks = point.chain.len();
    let mut tokens = vec![0; n_tokens];
    let mut rows = buffers(&layout.completed(0..n_tokens));
    let frontier = layout.frontier(n_tokens);
    let mut rings = buffers(&frontier);

    let mut rest: Vec<&mut [u8]> = rows.iter_mut().map(|(_, bytes)| &mut bytes[..]).collect();
    let mut rest_tokens = &mut tokens[..];
    let mut parts = Vec::with_capacity(n_blocks);
    for (i, hash) in point.chain.iter().enumerate() {
        let groups = layout.completed(layout.block_range(i));
        let mut rows = Vec::with_capacity(groups.len());
        for (group, rest) in groups.iter().zip(&mut rest) {
            let (part, after) = std::mem::take(rest).split_at_mut(group.n_bytes());
            rows.push(part);
            *rest = after;
        }
        let (tokens, after) = rest_tokens.split_at_mut(block_tokens);
        rest_tokens = after;
        let before = match i {
            0 => ChainHash::root(key),
            _ => point.chain[i - 1],
        };
        parts.push(Part {
            path: compat.block(hash.block_id()),
            groups,
            rows,
            tokens,
            block: Some((hash.block_id(), before)),
        });
    }
    rest_tokens.copy_from_slice(&head.tokens);

    // The frontier, then the tail, in the point's own file.
    let mut groups = frontier;
    groups.extend(layout.completed(n_blocks * block_tokens..n_tokens));
    let mut slices: Vec<&mut [u8]> = rings.iter_mut().map(|(_, bytes)| &mut bytes[..]).collect();
    slices.append(&mut rest);
    head.decode(&file, &groups, &mut slices)
        .map_err(damaged(&path))?;
    let n_point_bytes = file.len() as u64;
    drop(file);

    let n_bytes = n_point_bytes + load_parts(parts, key, layout, n_threads)?;
    let state = SlotState {
        len: n_tokens,
        rings: by_layer(rings, layout),
        rows: by_layer(rows, layout),
    };
    Ok(Loaded {
        tokens,
        state,
        n_bytes,
    })
}

impl Shared {
    /// Reads a point. Every byte is checked; a damaged file is moved away, and
    /// the next candidate may be tried.
    pub(crate) fn load(&self, candidate: &Candidate) -> Result<Loaded, Miss> {
        let shared = self;
        let options = &shared.options;
        let loaded = load(
            &shared.compat,
            shared.key,
            &shared.layout,
            candidate.id,
            options.max_tokens,
            options.n_load_threads,
        );
        match &loaded {
            Ok(loaded) => {
                let mut state = shared.state();
                state.counts.n_loaded += 1;
                state.counts.read_bytes += loaded.n_bytes;
                state.index.note_use(candidate.id, shared.now());
                state.uses_changed = true;
            }
            Err(Miss::Damaged { path, damage }) => shared.quarantine(path, damage.to_string()),
            Err(Miss::Gone { path }) => {
                let stem = path.file_stem().and_then(|stem| stem.to_str());
                if let Some(id) = stem.and_then(FileId::from_hex) {
                    shared.forget(id);
                }
            }
            Err(Miss::Io { .. }) => {
                let until = shared.now() + PAUSE;
                if let Some(point) = shared.state().index.point_mut(candidate.id) {
                    point.not_before = Some(until);
                }
            }
            Err(Miss::TooLong { .. }) => {}
        }
        loaded
    }
}

/// Checks and decodes a block or a point that is in memory: its tokens and all
/// its rows, in file order. For tests and fuzzing of the readers.
#[doc(hidden)]
pub fn decode_file(bytes: &[u8], layout: &SlotLayout) -> Result<(Vec<u32>, Vec<u8>), Damage> {
    let head = Head::check(bytes)?;
    let (first, n, block_tokens) = (head.first, head.tokens.len(), layout.block_tokens());
    let groups = match head.kind {
        FileKind::Block => {
            if n != block_tokens || !first.is_multiple_of(block_tokens) {
                return Err(Damage::Checksum { what: "the span" });
            }
            layout.completed(first..first + n)
        }
        FileKind::Point(_) => {
            if n >= block_tokens {
                return Err(Damage::Checksum { what: "the span" });
            }
            let mut groups = layout.frontier(first + n);
            groups.extend(layout.completed(first..first + n));
            groups
        }
    };
    let mut rows = vec![0; groups.iter().map(Group::n_bytes).sum()];
    let mut rest = &mut rows[..];
    let mut slices = Vec::with_capacity(groups.len());
    for group in &groups {
        let (part, after) = rest.split_at_mut(group.n_bytes());
        slices.push(part);
        rest = after;
    }
    head.decode(bytes, &groups, &mut slices)?;
    Ok((head.tokens, rows))
}

/// The frontier is longest just before a ratio-128 row is finished.
fn max_frontier_bytes(layout: &SlotLayout) -> usize {
    let far = 1 << 20;
    layout.frontier_bytes(far - 1)
}

fn check_tokens(head: &Head, layout: &SlotLayout) -> Result<(), Damage> {
    match head
        .tokens
        .iter()
        .find(|t| **t as usize >= layout.n_vocab())
    {
        None => Ok(()),
        Some(token) => Err(Damage::Field {
            what: "a token id",
            found: token.to_string(),
            expected: format!("less than {}", layout.n_vocab()),
        }),
    }
}

fn load_parts(
    parts: Vec<Part<'_>>,
    key: CompatKey,
    layout: &SlotLayout,
    n_threads: usize,
) -> Result<u64, Miss> {
    let row_bytes = layout.block_bytes();
    let one = |mut part: Part<'_>| -> Result<u64, Miss> {
        let path = &part.path;
        let file = read(path, row_bytes)?;
        let head = Head::check(&file).map_err(damaged(path))?;
        let (id, before) = part.block.expect("a block");
        check_block(&head, id, key).map_err(damaged(path))?;
        check_tokens(&head, layout).map_err(damaged(path))?;
        if head.parent != before || head.tokens.len() != part.tokens.len() {
            return Err(damaged(path)(Damage::Checksum { what: "the chain" }));
        }
        part.tokens.copy_from_slice(&head.tokens);
        head.decode(&file, &part.groups, &mut part.rows)
            .map_err(damaged(path))?;
        Ok(file.len() as u64)
    };
    let n_threads = n_threads.clamp(1, parts.len().max(1));
    let parts: Vec<Mutex<Option<Part<'_>>>> = parts
        .into_iter()
        .map(|part| Mutex::new(Some(part)))
        .collect();
    let next = AtomicUsize::new(0);
    let work = || -> Result<u64, Miss> {
        let mut n_bytes = 0;
        while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
            let part = part.lock().expect("nobody panics with a part").take();
            n_bytes += one(part.expect("every number is drawn once"))?;
        }
        Ok(n_bytes)
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..n_threads).map(|_| scope.spawn(work)).collect();
        let mut total = work();
        for other in others {
            let n_bytes = other.join().expect("reading does not panic");
            total = total.and_then(|total| Ok(total + n_bytes?));
        }
        total
    })
}

/// Zeroed rows for every group.
fn buffers(groups: &[Group]) -> Vec<(Group, Vec<u8>)> {
    groups
        .iter()
        .map(|g| (g.clone(), vec![0; g.n_bytes()]))
        .collect()
}

fn by_layer(rows: Vec<(Group, Vec<u8>)>, layout: &SlotLayout) -> Vec<Vec<(RowKind, StoredRows)>> {
    let mut layers = vec![Vec::new(); layout.n_layers()];
    for (group, bytes) in rows {
        layers[group.layer].push((
            group.kind,
            StoredRows {
                element: group.format.element,
                width: group.format.width,
                first: group.range.start,
                bytes,
            },
        ));
    }
    layers
}
