//! What is stored, in memory: which points a prompt can start from, and which
//! files are worth least.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::file::Reason;
use super::key::{ChainHash, FileId, TextKey};

/// Points younger than this are not evicted.
pub const YOUNG_POINT: Duration = Duration::from_secs(60);
/// Blocks that no point names are kept this long: their point may be on its way.
pub const YOUNG_BLOCK: Duration = Duration::from_secs(600);
/// Evicted names that are remembered, to tell why something is not there.
const MAX_EVICTED: usize = 8192;

const HOUR: f64 = 3600.0;

/// A block on disk. Its tokens are kept in memory: 8 KiB for 6.9 MiB of file.
#[derive(Clone, Debug)]
pub(crate) struct BlockEntry {
    pub(crate) tokens: Arc<[u32]>,
    pub(crate) n_bytes: u64,
    pub(crate) modified: SystemTime,
}

/// A point on disk.
#[derive(Clone, Debug)]
pub(crate) struct PointEntry {
    pub(crate) n_tokens: usize,
    /// The chain after each of its blocks.
    pub(crate) chain: Arc<[ChainHash]>,
    pub(crate) tail: Arc<[u32]>,
    pub(crate) reason: Reason,
    pub(crate) text_keys: Vec<TextKey>,
    pub(crate) n_bytes: u64,
    pub(crate) created: SystemTime,
    pub(crate) uses: Uses,
    /// Held by candidates; more than one owner keeps the point from eviction.
    pub(crate) pin: Arc<()>,
    /// Reading it failed for a reason that may pass; not offered before then.
    pub(crate) not_before: Option<SystemTime>,
}

impl PointEntry {
    fn is_pinned(&self) -> bool {
        Arc::strong_count(&self.pin) > 1
    }

    /// The blocks it names.
    pub(crate) fn blocks(&self) -> impl DoubleEndedIterator<Item = FileId> + Clone {
        self.chain.iter().map(|hash| hash.block_id())
    }
}

/// How often something was used, with a half-life.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Uses {
    /// Sum over past uses of 2^(-age / half-life), at `at`.
    pub(crate) score: f64,
    pub(crate) at: SystemTime,
}

impl Uses {
    pub(crate) fn now(&self, now: SystemTime, half_life: Duration) -> f64 {
        let age = now.duration_since(self.at).unwrap_or_default();
        self.score * (-age.as_secs_f64() / half_life.as_secs_f64()).exp2()
    }

    fn add(&mut self, now: SystemTime, half_life: Duration) {
        *self = Uses {
            score: self.now(now, half_life) + 1.0,
            at: now,
        };
    }
}

/// Time in which a use of a point counts half.
pub(crate) fn half_life(reason: Reason) -> Duration {
    Duration::from_secs_f64(match reason {
        Reason::Anchor | Reason::Explicit => 7.0 * 24.0 * HOUR,
        _ => 6.0 * HOUR,
    })
}

/// How likely a point of this kind is used again, as a factor.
pub(crate) fn weight(reason: Reason, is_newest_turn: bool) -> f64 {
    match reason {
        Reason::Anchor | Reason::Explicit => 4.0,
        Reason::Shutdown => 2.0,
        Reason::TurnEnd if is_newest_turn => 2.0,
        Reason::TurnEnd => 0.3,
        Reason::Interval | Reason::Block => 1.0,
    }
}

/// Why the part of a prompt after what was reused is not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotStored {
    /// The stored tokens go on like the prompt up to `n_same`, and no point lies
    /// between what was reused and there; 0 when nothing begins like the prompt.
    NoPoint {
        /// Tokens that are stored and the same.
        n_same: usize,
    },
    /// It was there and gave way to others.
    Evicted {
        /// Tokens up to the end of the first evicted file.
        n_tokens: usize,
    },
    /// Only states of other weights, another tokenizer or other numerics exist.
    OtherModel,
    /// The nearest stored conversation has another token here.
    FirstDifference {
        /// Position of the token.
        at: usize,
    },
}

/// All files of one compatibility key.
#[derive(Debug)]
pub(crate) struct Index {
    root: ChainHash,
    block_tokens: usize,
    points: HashMap<FileId, PointEntry>,
    /// Points by the chain before their tail.
    by_chain: HashMap<ChainHash, Vec<FileId>>,
    by_text: HashMap<TextKey, Vec<FileId>>,
    /// How many text keys have this length.
    text_lengths: BTreeMap<u64, usize>,
    blocks: HashMap<FileId, BlockEntry>,
    /// Points that name a block.
    n_refs: HashMap<FileId, usize>,
    evicted: HashSet<FileId>,
    evicted_order: VecDeque<FileId>,
    n_bytes: u64,
}

/// Files that can go together: a point and the blocks that only it names, or
/// blocks that none names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Victim {
    pub(crate) point: Option<FileId>,
    pub(crate) blocks: Vec<FileId>,
}

impl Index {
    pub(crate) fn new(root: ChainHash, block_tokens: usize) -> Index {
        Index {
            root,
            block_tokens,
            points: HashMap::new(),
            by_chain: HashMap::new(),
            by_text: HashMap::new(),
            text_lengths: BTreeMap::new(),
            blocks: HashMap::new(),
            n_refs: HashMap::new(),
            evicted: HashSet::new(),
            evicted_order: VecDeque::new(),
            n_bytes: 0,
        }
    }

    /// Bytes of all files.
    pub(crate) fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    pub(crate) fn points(&self) -> &HashMap<FileId, PointEntry> {
        &self.points
    }

    pub(crate) fn point_mut(&mut self, id: FileId) -> Option<&mut PointEntry> {
        self.points.get_mut(&id)
    }

    pub(crate) fn blocks(&self) -> &HashMap<FileId, BlockEntry> {
        &self.blocks
    }

    pub(crate) fn add_block(&mut self, id: FileId, entry: BlockEntry) {
        self.n_bytes += entry.n_bytes;
        if let Some(old) = self.blocks.insert(id, entry) {
            self.n_bytes -= old.n_bytes;
        }
    }

    /// Forgets a block. Points that name it must go too.
    pub(crate) fn remove_block(&mut self, id: FileId) {
        if let Some(entry) = self.blocks.remove(&id) {
            self.n_bytes -= entry.n_bytes;
        }
    }

    pub(crate) fn add_point(&mut self, id: FileId, entry: PointEntry) {
        self.remove_point(id);
        self.n_bytes += entry.n_bytes;
        for block in entry.blocks() {
            *self.n_refs.entry(block).or_default() += 1;
        }
        let before = entry.chain.last().copied().unwrap_or(self.root);
        self.by_chain.entry(before).or_default().push(id);
        for key in &entry.text_keys {
            self.by_text.entry(*key).or_default().push(id);
            *self.text_lengths.entry(key.text_bytes).or_default() += 1;
        }
        self.points.insert(id, entry);
    }

    pub(crate) fn remove_point(&mut self, id: FileId) -> Option<PointEntry> {
        let entry = self.points.remove(&id)?;
        self.n_bytes -= entry.n_bytes;
        for block in entry.blocks() {
            if let Some(n) = self.n_refs.get_mut(&block) {
                *n -= 1;
                if *n == 0 {
                    self.n_refs.remove(&block);
                }
            }
        }
        let before = entry.chain.last().copied().unwrap_or(self.root);
        forget(&mut self.by_chain, &before, id);
        for key in &entry.text_keys {
            forget(&mut self.by_text, key, id);
            if let Some(n) = self.text_lengths.get_mut(&key.text_bytes) {
                *n -= 1;
                if *n == 0 {
                    self.text_lengths.remove(&key.text_bytes);
                }
            }
        }
        Some(entry)
    }

    /// Points that name a block.
    pub(crate) fn points_of_block(&self, block: FileId) -> Vec<FileId> {
        let names = |(_, entry): &(&FileId, &PointEntry)| entry.blocks().any(|b| b == block);
        self.points
            .iter()
            .filter(names)
            .map(|(id, _)| *id)
            .collect()
    }

    /// Remembers that a file was here.
    pub(crate) fn note_evicted(&mut self, id: FileId) {
        if self.evicted.insert(id) {
            self.evicted_order.push_back(id);
            if self.evicted_order.len() > MAX_EVICTED
                && let Some(old) = self.evicted_order.pop_front()
            {
                self.evicted.remove(&old);
            }
        }
    }

    pub(crate) fn note_use(&mut self, id: FileId, now: SystemTime) {
        if let Some(entry) = self.points.get_mut(&id) {
            let half_life = half_life(entry.reason);
            entry.uses.add(now, half_life);
        }
    }

    /// Every point whose tokens `tokens` begins with, shortest first.
    pub(crate) fn along(&self, tokens: &[u32]) -> Vec<FileId> {
        let mut found = Vec::new();
        let mut chain = self.root;
        let mut rest = tokens;
        loop {
            let here = self.by_chain.get(&chain).map_or(&[][..], Vec::as_slice);
            let matches = here
                .iter()
                .filter(|id| rest.starts_with(&self.points[id].tail));
            found.extend(matches.copied());
            let Some((block, after)) = rest.split_at_checked(self.block_tokens) else {
                break;
            };
            chain = chain.then(block);
            if !self.n_refs.contains_key(&chain.block_id()) {
                break;
            }
            rest = after;
        }
        found.sort_by_key(|id| self.points[id].n_tokens);
        found
    }

    /// Every point that has a text key for a beginning of `text` that leaves
    /// something of it; with the length of that beginning.
    pub(crate) fn along_text(&self, text: &str, setting: u64) -> Vec<(FileId, u64)> {
        let mut hasher = blake3::Hasher::new();
        let mut n_hashed = 0;
        let mut found = Vec::new();
        for &length in self.text_lengths.keys() {
            let Ok(end) = usize::try_from(length) else {
                break;
            };
            if end >= text.len() {
                break;
            }
            if !text.is_char_boundary(end) {
                continue;
            }
            hasher.update(&text.as_bytes()[n_hashed..end]);
            n_hashed = end;
            let key = TextKey {
                text_bytes: length,
                hash: *hasher.finalize().as_bytes(),
                setting,
            };
            let here = self.by_text.get(&key).map_or(&[][..], Vec::as_slice);
            found.extend(here.iter().map(|id| (*id, length)));
        }
        found
    }

    /// Tokens of a point from block `from_block` on, as far as they lie in one
    /// file.
    fn tokens_from<'a>(&'a self, point: &'a PointEntry, from_block: usize) -> &'a [u32] {
        match point.chain.get(from_block) {
            None => &point.tail,
            Some(hash) => self.blocks.get(&hash.block_id()).map_or(&[], |b| &b.tokens),
        }
    }

    /// Why nothing beyond `n_used` tokens of a prompt was found.
    pub(crate) fn not_stored(&self, tokens: &[u32], n_used: usize) -> NotStored {
        // The chain as far as any point follows it.
        let mut chain = self.root;
        let mut depth = 0;
        let mut rest = tokens;
        while let Some((block, after)) = rest.split_at_checked(self.block_tokens) {
            let next = chain.then(block);
            let id = next.block_id();
            if !self.n_refs.contains_key(&id) {
                if self.evicted.contains(&id) {
                    let n_tokens = (depth + 1) * self.block_tokens;
                    return NotStored::Evicted { n_tokens };
                }
                break;
            }
            chain = next;
            depth += 1;
            rest = after;
        }
        let below = depth * self.block_tokens;
        if !self.evicted.is_empty() {
            let tail = &rest[..rest.len().min(self.block_tokens - 1)];
            let longest = chain
                .point_ids(tail)
                .enumerate()
                .filter(|(n, id)| below + n > n_used && self.evicted.contains(id))
                .last();
            if let Some((n, _)) = longest {
                return NotStored::Evicted {
                    n_tokens: below + n,
                };
            }
        }
        // The point that follows the chain and then the prompt for longest.
        let mut best: Option<(usize, bool)> = None;
        for point in self.points.values() {
            let follows = match depth {
                0 => true,
                _ => point.chain.get(depth - 1) == Some(&chain),
            };
            if follows {
                let stored = self.tokens_from(point, depth);
                let n = stored.iter().zip(rest).take_while(|(a, b)| a == b).count();
                let differs = n < stored.len() && n < rest.len();
                best = best.max(Some((n, differs)));
            }
        }
        match best {
            Some((n, true)) if below + n > 0 => NotStored::FirstDifference { at: below + n },
            Some((n, _)) => NotStored::NoPoint { n_same: below + n },
            None => NotStored::NoPoint { n_same: below },
        }
    }

    /// Whether all tokens of `a` are the first of `b`.
    fn is_ancestor(&self, a: &PointEntry, b: &PointEntry) -> bool {
        let depth = a.chain.len();
        a.n_tokens < b.n_tokens
            && b.chain.starts_with(&a.chain)
            && self.tokens_from(b, depth).starts_with(&a.tail)
    }

    /// Tokens of the longest other point that `point` starts with.
    fn nearest_ancestor(&self, point: &PointEntry) -> usize {
        let chains = std::iter::once(&self.root).chain(point.chain.iter());
        chains
            .filter_map(|chain| self.by_chain.get(chain))
            .flatten()
            .map(|id| &self.points[id])
            .filter(|other| self.is_ancestor(other, point))
            .map(|other| other.n_tokens)
            .max()
            .unwrap_or(0)
    }

    fn is_newest_turn(&self, point: &PointEntry) -> bool {
        !self.points.values().any(|other| {
            matches!(other.reason, Reason::TurnEnd | Reason::Shutdown)
                && self.is_ancestor(point, other)
        })
    }

    /// Files and bytes that removing a point frees.
    pub(crate) fn victim(&self, id: FileId) -> (Victim, u64) {
        let point = &self.points[&id];
        let only_here = |block: &FileId| self.n_refs.get(block) == Some(&1);
        let mut blocks: Vec<FileId> = point.blocks().filter(only_here).collect();
        // The end of a chain first: an interrupted removal leaves a beginning.
        blocks.reverse();
        let freed = blocks
            .iter()
            .filter_map(|b| self.blocks.get(b))
            .map(|b| b.n_bytes);
        let n_bytes = point.n_bytes + freed.sum::<u64>();
        let point = Some(id);
        (Victim { point, blocks }, n_bytes)
    }

    /// Expected prefill saved, in tokens, for every byte that a point takes.
    pub(crate) fn value(&self, id: FileId, now: SystemTime) -> f64 {
        let point = &self.points[&id];
        let saved = point.n_tokens - self.nearest_ancestor(point);
        let uses = point.uses.now(now, half_life(point.reason));
        let is_newest = point.reason == Reason::TurnEnd && self.is_newest_turn(point);
        let (_, freed) = self.victim(id);
        weight(point.reason, is_newest) * (0.2 + uses) * saved as f64 / freed.max(1) as f64
    }

    /// What to remove next: blocks that no point names and that are old enough,
    /// then the point of least value that is neither pinned nor young.
    pub(crate) fn next_victim(&self, now: SystemTime) -> Option<(Victim, u64)> {
        let orphan = self.orphans(now).into_iter().next();
        if let Some(block) = orphan {
            let n_bytes = self.blocks[&block].n_bytes;
            let (point, blocks) = (None, vec![block]);
            return Some((Victim { point, blocks }, n_bytes));
        }
        self.points
            .iter()
            .filter(|(_, p)| !p.is_pinned() && is_older(p.created, now, YOUNG_POINT))
            .map(|(id, p)| (self.value(*id, now), p.created, *id))
            .min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)))
            .map(|(_, _, id)| self.victim(id))
    }

    /// Blocks that no point names and that are old enough to go.
    pub(crate) fn orphans(&self, now: SystemTime) -> Vec<FileId> {
        self.blocks
            .iter()
            .filter(|(id, b)| {
                !self.n_refs.contains_key(id) && is_older(b.modified, now, YOUNG_BLOCK)
            })
            .map(|(id, _)| *id)
            .collect()
    }

    /// Turn ends of this conversation beyond the newest `keep`, oldest first.
    /// Pinned ones stay.
    pub(crate) fn superseded_turns(&self, id: FileId, keep: usize) -> Vec<FileId> {
        let Some(newest) = self.points.get(&id) else {
            return Vec::new();
        };
        let mut turns: Vec<(usize, FileId)> = self
            .points
            .iter()
            .filter(|(_, p)| p.reason == Reason::TurnEnd && self.is_ancestor(p, newest))
            .map(|(id, p)| (p.n_tokens, *id))
            .collect();
        turns.sort();
        turns.truncate(turns.len().saturating_sub(keep.saturating_sub(1)));
        turns.retain(|(_, id)| !self.points[id].is_pinned());
        turns.into_iter().map(|(_, id)| id).collect()
    }

    /// Forgets the files of a victim.
    pub(crate) fn take(&mut self, victim: &Victim) {
        if let Some(point) = victim.point {
            self.remove_point(point);
            self.note_evicted(point);
        }
        for block in &victim.blocks {
            self.remove_block(*block);
            self.note_evicted(*block);
        }
    }
}

/// Whether a time lies so far back; or ahead, after a clock was set back, since
/// such files would otherwise never age.
fn is_older(time: SystemTime, now: SystemTime, age: Duration) -> bool {
    match now.duration_since(time) {
        Ok(found) => found >= age,
        Err(ahead) => ahead.duration() >= age,
    }
}

fn forget<K: std::hash::Hash + Eq>(map: &mut HashMap<K, Vec<FileId>>, key: &K, id: FileId) {
    if let Some(ids) = map.get_mut(key) {
        ids.retain(|other| *other != id);
        if ids.is_empty() {
            map.remove(key);
        }
    }
}
