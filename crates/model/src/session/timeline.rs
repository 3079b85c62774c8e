//! What the host knows of a slot: how long it is, what its rings still reach, and
//! which frontiers belong to it.

/// What the host knows of a slot.
#[derive(Clone, Debug, Default)]
pub(super) struct Timeline {
    /// Tokens in the caches.
    pub(super) len: usize,
    /// Positions below this one were never in the rings: the slot was filled
    /// from a frontier of that length.
    pub(super) base: usize,
    /// Highest `len` since the rings were last filled from outside; positions
    /// below `high - n_ring` were overwritten.
    pub(super) high: usize,
    /// Number of cuts so far.
    pub(super) n_cuts: u64,
    /// (number, length) of the cuts that still matter to older frontiers:
    /// lengths ascend.
    pub(super) cuts: Vec<(u64, usize)>,
    /// The slot that this one was copied from, while nothing was cut off it since.
    pub(super) origin: Option<Origin>,
}

/// Where a slot was copied from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    pub(super) slot: usize,
    /// The other slot's cuts at that time.
    pub(super) n_cuts: u64,
}

impl Timeline {
    pub(super) fn cut(&mut self, len: usize) {
        self.n_cuts += 1;
        self.origin = None;
        while self.cuts.last().is_some_and(|(_, l)| *l >= len) {
            self.cuts.pop();
        }
        self.cuts.push((self.n_cuts, len));
        self.len = len;
    }

    /// Shortest length since the cut numbered `since`.
    pub(super) fn shortest_since(&self, since: u64) -> usize {
        self.cuts
            .iter()
            .find(|(number, _)| *number > since)
            .map_or(usize::MAX, |(_, len)| *len)
    }
}
