//! Byte-pair merging of one piece: the adjacent pair of lowest rank is joined, the leftmost of
//! equals first, until no pair has a rule.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::FxHashMap;

/// Pieces up to this many bytes are merged by looking for the lowest rank in an array, which for
/// so few is faster than a heap.
const SHORT_BYTES: usize = 32;
/// The rank of a pair without a rule.
const NO_RANK: u32 = u32::MAX;

/// The merge rules by pair of token ids, and the token of every single byte.
pub(crate) struct Merges {
    rules: FxHashMap<(u32, u32), Rule>,
    byte_ids: [u32; 256],
}

/// What a pair becomes, and how early: lower ranks first.
#[derive(Clone, Copy)]
struct Rule {
    rank: u32,
    id: u32,
}

const NO_RULE: Rule = Rule {
    rank: NO_RANK,
    id: 0,
};

/// Buffers that live from piece to piece.
#[derive(Default)]
pub(crate) struct Scratch {
    heap: BinaryHeap<Reverse<(u32, u32)>>,
    nodes: Vec<Node>,
}

/// A token of a long piece, in a doubly linked list over an array.
#[derive(Clone, Copy)]
struct Node {
    id: u32,
    previous: u32,
    next: u32,
    /// The rule for this token and the next one.
    rule: Rule,
}

/// The end of the list in either direction, and the `next` of a node that was merged away.
const NOWHERE: u32 = u32::MAX;

impl Merges {
    /// No rules yet; `byte_ids` is the token of each byte.
    pub(crate) fn new(byte_ids: [u32; 256], n_rules: usize) -> Merges {
        let mut rules = FxHashMap::default();
        rules.reserve(n_rules);
        Merges { rules, byte_ids }
    }

    /// Adds the rule of the next rank: `pair` becomes `id`. A pair's first rule stands.
    pub(crate) fn insert(&mut self, pair: (u32, u32), id: u32) {
        let rank = self.rules.len() as u32;
        self.rules.entry(pair).or_insert(Rule { rank, id });
    }

    fn rule(&self, left: u32, right: u32) -> Rule {
        self.rules.get(&(left, right)).copied().unwrap_or(NO_RULE)
    }

    /// Appends the tokens of `piece` to `out`. Time grows with n log n in its length.
    pub(crate) fn encode(&self, piece: &[u8], scratch: &mut Scratch, out: &mut Vec<u32>) {
        if piece.len() <= SHORT_BYTES {
            self.encode_short(piece, out);
        } else {
            self.encode_long(piece, scratch, out);
        }
    }

    fn encode_short(&self, piece: &[u8], out: &mut Vec<u32>) {
        let mut ids = [0; SHORT_BYTES];
        // rules[i] belongs to the pair (i, i + 1).
        let mut rules = [NO_RULE; SHORT_BYTES];
        let mut n = piece.len();
        for (id, &byte) in ids.iter_mut().zip(piece) {
            *id = self.byte_ids[byte as usize];
        }
        for i in 1..n {
            rules[i - 1] = self.rule(ids[i - 1], ids[i]);
        }
        while n > 1 {
            let mut best = 0;
            for i in 1..n - 1 {
                if rules[i].rank < rules[best].rank {
                    best = i;
                }
            }
            if rules[best].rank == NO_RANK {
                break;
            }
            ids[best] = rules[best].id;
            ids.copy_within(best + 2..n, best + 1);
            rules.copy_within(best + 1..n, best);
            n -= 1;
            if best > 0 {
                rules[best - 1] = self.rule(ids[best - 1], ids[best]);
            }
            if best + 1 < n {
                rules[best] = self.rule(ids[best], ids[best + 1]);
            }
        }
        out.extend_from_slice(&ids[..n]);
    }

    fn encode_long(&self, piece: &[u8], scratch: &mut Scratch, out: &mut Vec<u32>) {
        let Scratch { heap, nodes } = scratch;
        nodes.clear();
        nodes.extend(piece.iter().enumerate().map(|(i, &byte)| Node {
            id: self.byte_ids[byte as usize],
            previous: (i as u32).wrapping_sub(1),
            next: i as u32 + 1,
            rule: NO_RULE,
        }));
        if let Some(last) = nodes.last_mut() {
            last.next = NOWHERE;
        }
        let mut found = std::mem::take(heap).into_vec();
        found.clear();
        for i in 1..nodes.len() {
            let rule = self.rule(nodes[i - 1].id, nodes[i].id);
            nodes[i - 1].rule = rule;
            if rule.rank != NO_RANK {
                found.push(Reverse((rule.rank, i as u32 - 1)));
            }
        }
        *heap = found.into();
        while let Some(Reverse((rank, at))) = heap.pop() {
            let node = nodes[at as usize];
            // The pair of this entry may have changed or gone since the entry was pushed.
            if node.rule.rank != rank {
                continue;
            }
            let right = nodes[node.next as usize];
            nodes[node.next as usize].rule = NO_RULE;
            nodes[at as usize].id = node.rule.id;
            nodes[at as usize].next = right.next;
            if right.next != NOWHERE {
                nodes[right.next as usize].previous = at;
            }
            for left in [node.previous, at] {
                if left == NOWHERE {
                    continue;
                }
                let next = nodes[left as usize].next;
                let rule = if next == NOWHERE {
                    NO_RULE
                } else {
                    self.rule(nodes[left as usize].id, nodes[next as usize].id)
                };
                nodes[left as usize].rule = rule;
                if rule.rank != NO_RANK {
                    heap.push(Reverse((rule.rank, left)));
                }
            }
        }
        let mut at = 0;
        while let Some(node) = nodes.get(at as usize) {
            out.push(node.id);
            at = node.next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition: look at all pairs, join the first of the lowest rank, start again.
    fn encode_by_definition(merges: &Merges, piece: &[u8]) -> Vec<u32> {
        let mut ids: Vec<u32> = piece.iter().map(|&b| merges.byte_ids[b as usize]).collect();
        loop {
            let best = (1..ids.len())
                .map(|i| (merges.rule(ids[i - 1], ids[i]), i))
                .filter(|(rule, _)| rule.rank != NO_RANK)
                .min_by_key(|&(rule, i)| (rule.rank, i));
            let Some((rule, i)) = best else { return ids };
            ids[i - 1] = rule.id;
            ids.remove(i);
        }
    }

    /// Rules over a three-letter alphabet, made of tokens that earlier rules made.
    fn merges(pairs: &[(usize, usize)]) -> Merges {
        let mut merges = Merges::new(std::array::from_fn(|i| i as u32), 0);
        let mut tokens: Vec<u32> = (b'a'..=b'c').map(u32::from).collect();
        for (i, &(left, right)) in pairs.iter().enumerate() {
            let id = 256 + i as u32;
            merges.insert(
                (tokens[left % tokens.len()], tokens[right % tokens.len()]),
                id,
            );
            tokens.push(id);
        }
        merges
    }

    proptest! {
        #[test]
        fn both_ways_of_merging_follow_the_definition(
            pairs in prop::collection::vec((0usize..40, 0usize..40), 0..40),
            piece in "[abc]{0,80}",
        ) {
            let merges = merges(&pairs);
            let expected = encode_by_definition(&merges, piece.as_bytes());
            let mut long = Vec::new();
            merges.encode_long(piece.as_bytes(), &mut Scratch::default(), &mut long);
            prop_assert_eq!(&long, &expected, "heap");
            if piece.len() <= SHORT_BYTES {
                let mut short = Vec::new();
                merges.encode_short(piece.as_bytes(), &mut short);
                prop_assert_eq!(&short, &expected, "array");
            }
        }
    }
}
