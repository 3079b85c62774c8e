//! What the scheduler knows of a slot besides the tokens in it.

use std::time::Instant;

use super::snapshots::Snapshots;
use crate::store::FileId;

#[derive(Default)]
pub(super) struct Slot {
    pub(super) snapshots: Snapshots,
    /// Lengths of which the store has, or is about to have, the state; ascending.
    stored: Vec<(usize, FileId)>,
    /// When a sequence last took it or left it, in the scheduler's count.
    pub(super) last_used: u64,
    /// [`Request::affinity`](super::Request::affinity) of its last request.
    pub(super) affinity: Option<u64>,
    /// Where the turn of its last request begins, when that went on from all that the slot held;
    /// 0 when it only began like something that was found.
    pub(super) turn_start: usize,
    /// The end of the last prompt, without the tokens that began the reply.
    pub(super) prompt_end: usize,
    /// [`Request::last_user`](super::Request::last_user) of its last request.
    pub(super) last_user: usize,
    /// Since when nothing runs in it, while what it holds is not stored.
    pub(super) unsaved_since: Option<Instant>,
    /// Whether the store did not take it since then.
    pub(super) was_refused: bool,
    /// Whether what it holds is its sequence's alone.
    pub(super) is_private: bool,
}

impl Slot {
    /// Forgets what was true of tokens that are gone.
    pub(super) fn clear(&mut self) {
        *self = Slot {
            last_used: self.last_used,
            ..Slot::default()
        };
    }

    /// Forgets what lies beyond a length.
    pub(super) fn cut(&mut self, len: usize) {
        self.snapshots.cut(len);
        self.stored.retain(|(stored, _)| *stored <= len);
    }

    /// Whether a request that has `len` of its tokens does the last turn over: with
    /// another reply, or with another last message.
    pub(super) fn repeats_turn_from(&self, len: usize) -> bool {
        let starts = [self.turn_start, self.prompt_end];
        starts.iter().any(|start| *start > 0 && len >= *start)
    }

    /// Notes that the state at a length is stored, and what the store calls it.
    pub(super) fn note_stored(&mut self, len: usize, id: FileId) {
        match self.stored.binary_search_by_key(&len, |(len, _)| *len) {
            Ok(at) => self.stored[at].1 = id,
            Err(at) => self.stored.insert(at, (len, id)),
        }
    }

    /// Forgets that the state at a length is stored, as the store may have given it up since.
    pub(super) fn forget_stored(&mut self, len: usize) {
        self.stored.retain(|(stored, _)| *stored != len);
    }

    /// Forgets states that are not stored after all; whether there was one.
    pub(super) fn note_dropped(&mut self, ids: &[FileId]) -> bool {
        let before = self.stored.len();
        self.stored.retain(|(_, id)| !ids.contains(id));
        self.stored.len() < before
    }

    /// Lengths up to `len` of which the state is stored, and their names.
    pub(super) fn stored_within(&self, len: usize) -> &[(usize, FileId)] {
        &self.stored[..self.stored.partition_point(|(stored, _)| *stored <= len)]
    }

    /// The longest of them; 0 without any.
    pub(super) fn n_stored(&self, len: usize) -> usize {
        self.stored_within(len)
            .last()
            .map_or(0, |(stored, _)| *stored)
    }

    /// Tokens up to `len` that are not in any stored state.
    pub(super) fn n_unstored(&self, len: usize) -> usize {
        len - self.n_stored(len)
    }
}
