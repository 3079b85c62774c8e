//! The places in a slot's past that it can go back to.
//!
//! A snapshot is a [`Frontier`]: with the compressed rows, which only grow, it is a
//! state. For Flash it takes 6.2 MiB at a multiple of 128 tokens, and up to 16.7 MiB
//! just before the next one, where the ratio-128 groups are longest. At their limits
//! all kinds together take 450 MiB on average.

use ds4_model::{Frontier, Geometry, RowKind, SessionShape, SlotContents};

/// Distance of the places where a snapshot is small: there the ratio-128 groups are
/// empty.
pub const SNAPSHOT_STRIDE: usize = 128;
/// Distance of the snapshots of a long slot, tokens.
pub const SNAPSHOT_INTERVAL: usize = 4096;
/// Tokens before a slot's end in which snapshots are kept at every stride.
pub const RECENT_TOKENS: usize = 2048;
/// Tokens between the end of a turn and the user's next text, at most: the end marker of the
/// one and the marker of the other. The state of the first serves for the second.
pub(super) const TURN_GAP: usize = 4;
/// Shortest anchor of which a snapshot is taken: a shorter one saves next to nothing.
pub const MIN_ANCHOR: usize = 128;
/// Default of [`SchedulerOptions::snapshot_bytes`](super::SchedulerOptions).
pub const SNAPSHOT_BYTES: usize = 512 << 20;
/// Tokens at the end of a prompt that say what kind of reply begins: the marker of the
/// assistant's turn, and whether it thinks. The next prompt may say otherwise.
pub const GENERATION_TOKENS: usize = 2;

/// Why a snapshot is kept; what comes first is given up first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// Near the end of the slot.
    Recent,
    /// Somewhere in a long prompt.
    Interval,
    /// Where a request went on from.
    TurnEnd,
    /// The end of a prompt, without the tokens that begin the reply.
    PromptEnd,
    /// Before the last text of the user.
    LastUser,
    /// Where other conversations depart, as the request said.
    Anchor,
}

impl Place {
    /// Snapshots of this kind that one slot keeps.
    const fn limit(self) -> usize {
        match self {
            Place::Anchor => 4,
            Place::LastUser => 2,
            Place::PromptEnd | Place::TurnEnd => 8,
            Place::Interval | Place::Recent => 16,
        }
    }
}

/// The most bytes that the snapshots of one slot take, whatever they may take.
pub(crate) fn most_snapshot_bytes(geometry: &Geometry, shape: &SessionShape) -> usize {
    let contents = SlotContents::new(geometry, shape.rounding);
    let rings = |len: usize| {
        let layers = contents.layers.iter();
        let rows = layers.flat_map(|layer| {
            let kinds = RowKind::of(*layer).iter().filter(|kind| kind.is_ring());
            kinds.map(|kind| {
                contents.needed(*layer, *kind, len).len() * contents.row_bytes(*layer, *kind)
            })
        });
        rows.sum::<usize>()
    };
    // Just before a multiple of 128 tokens the rings are fullest.
    let largest = rings(shape.longest() / SNAPSHOT_STRIDE * SNAPSHOT_STRIDE + SNAPSHOT_STRIDE - 1);
    let kinds = [
        Place::Recent,
        Place::Interval,
        Place::TurnEnd,
        Place::PromptEnd,
        Place::LastUser,
        Place::Anchor,
    ];
    largest * kinds.map(Place::limit).iter().sum::<usize>()
}

/// Lengths that one sequence passed in one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Passage {
    pub(super) slot: usize,
    /// Tokens in the slot before the step.
    pub(super) from: usize,
    /// Tokens in it afterwards.
    pub(super) to: usize,
    /// Tokens of the prompt.
    pub(super) n_prompt: usize,
    /// Anchors of the prompt that were passed.
    pub(super) anchors: Vec<usize>,
    /// Where the last text of the user begins, if that was passed.
    pub(super) last_user: Option<usize>,
}

impl Passage {
    /// The places passed of which a snapshot is worth its bytes. Not all of them
    /// can be taken: the rings reach back only so far.
    pub(super) fn places(&self) -> Vec<(usize, Place)> {
        let mut places = Vec::new();
        let anchors = self.anchors.iter().filter(|at| **at >= MIN_ANCHOR);
        places.extend(anchors.map(|at| (*at, Place::Anchor)));
        places.extend(self.last_user.map(|at| (at, Place::LastUser)));
        let in_prompt = self.from < self.n_prompt;
        let prompt_end = prompt_end(self.n_prompt);
        if in_prompt && self.to >= self.n_prompt && prompt_end > 0 {
            places.push((prompt_end, Place::PromptEnd));
        }
        let stride = self.to / SNAPSHOT_STRIDE * SNAPSHOT_STRIDE;
        if stride > self.from {
            if stride / SNAPSHOT_INTERVAL > self.from / SNAPSHOT_INTERVAL {
                places.push((stride, Place::Interval));
            } else if stride + RECENT_TOKENS >= self.n_prompt {
                places.push((stride, Place::Recent));
            }
        }
        places
    }
}

/// Where a prompt of so many tokens is come back to; 0 when it is too short.
pub(super) fn prompt_end(n_prompt: usize) -> usize {
    n_prompt.saturating_sub(GENERATION_TOKENS)
}

struct Snapshot {
    place: Place,
    frontier: Frontier,
    n_bytes: usize,
}

/// The snapshots of one slot, shortest first, one for each length.
#[derive(Default)]
pub(super) struct Snapshots {
    kept: Vec<Snapshot>,
    n_bytes: usize,
}

impl Snapshots {
    /// Bytes of all of them; those that a copy of the slot has too count in both.
    pub(super) fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    /// The snapshot of exactly this length.
    pub(super) fn at(&self, len: usize) -> Option<&Frontier> {
        let at = self.kept.binary_search_by_key(&len, |s| s.frontier.len);
        at.ok().map(|at| &self.kept[at].frontier)
    }

    /// Length of the longest snapshot of at most `len` tokens; 0 when there is none.
    pub(super) fn longest_within(&self, len: usize) -> usize {
        let within = self.kept.iter().map(|s| s.frontier.len);
        within.take_while(|l| *l <= len).last().unwrap_or(0)
    }

    /// Those of at most `len` tokens, with why they are kept.
    pub(super) fn within(&self, len: usize) -> impl Iterator<Item = (Place, &Frontier)> {
        let within = self.kept.iter().map(|s| (s.place, &s.frontier));
        within.take_while(move |(_, frontier)| frontier.len <= len)
    }

    /// Whether this length has a snapshot; if so it is kept for this reason too.
    pub(super) fn keep_for(&mut self, len: usize, place: Place) -> bool {
        let at = self.kept.binary_search_by_key(&len, |s| s.frontier.len);
        if let Ok(at) = at {
            let kept = &mut self.kept[at];
            kept.place = kept.place.max(place);
        }
        at.is_ok()
    }

    /// Adds one, and gives up what is then beyond a limit.
    pub(super) fn insert(&mut self, place: Place, frontier: Frontier, most_bytes: usize) {
        if self.keep_for(frontier.len, place) {
            return;
        }
        let len = frontier.len;
        let at = self.kept.partition_point(|s| s.frontier.len < len);
        let n_bytes = frontier.n_bytes();
        self.n_bytes += n_bytes;
        let snapshot = Snapshot {
            place,
            frontier,
            n_bytes,
        };
        self.kept.insert(at, snapshot);
        if place == Place::Recent {
            self.remove(|s| s.place == place && s.frontier.len + RECENT_TOKENS < len);
        }
        while self.kept.iter().filter(|s| s.place == place).count() > place.limit() {
            self.remove_first(place);
        }
        while self.n_bytes > most_bytes
            && let Some(least) = self.kept.iter().map(|s| s.place).min()
        {
            self.remove_first(least);
        }
    }

    /// Forgets those beyond a length.
    pub(super) fn cut(&mut self, len: usize) {
        self.remove(|s| s.frontier.len > len);
    }

    fn remove_first(&mut self, place: Place) {
        if let Some(at) = self.kept.iter().position(|s| s.place == place) {
            self.n_bytes -= self.kept.remove(at).n_bytes;
        }
    }

    fn remove(&mut self, gone: impl Fn(&Snapshot) -> bool) {
        self.kept.retain(|s| !gone(s));
        self.n_bytes = self.kept.iter().map(|s| s.n_bytes).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::SlotLayout;
    use ds4_model::{CacheRounding, Geometry};

    #[test]
    fn snapshots_of_flash_take_6_to_17_mib() {
        let layout = SlotLayout::new(&Geometry::flash(), CacheRounding::Official);
        let mib = |len: usize| layout.frontier_bytes(len) as f64 / f64::from(1 << 20);
        let small = mib(SNAPSHOT_INTERVAL);
        let everywhere = (4096..4096 + SNAPSHOT_STRIDE).map(mib);
        let mean = everywhere.clone().sum::<f64>() / SNAPSHOT_STRIDE as f64;
        let largest = everywhere.fold(0.0, f64::max);
        assert_eq!(format!("{small:.1} {largest:.1}"), "6.2 16.7");
        let strided: usize = [Place::Interval, Place::Recent]
            .map(Place::limit)
            .iter()
            .sum();
        let others = [
            Place::Anchor,
            Place::LastUser,
            Place::PromptEnd,
            Place::TurnEnd,
        ];
        let others = others.map(Place::limit);
        let all = strided as f64 * small + others.iter().sum::<usize>() as f64 * mean;
        assert_eq!(format!("{all:.0}"), "450");
    }
}
