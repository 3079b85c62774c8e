//! What a device decides, and the memory of a step beside the trait's buffers.

use super::*;

/// What a device decides: shared memory, stages, instructions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Device {
    pub(super) shared_kb: usize,
    pub(super) has_wgmma: bool,
}

impl Device {
    pub(super) fn of(context: &Context) -> Device {
        let facts = &context.facts;
        let shared_kb = match (facts.major, facts.minor) {
            (8, 6 | 9) | (12.., _) => 99,
            (8, _) => 163,
            _ => 227,
        };
        Device {
            shared_kb,
            has_wgmma: (facts.major, facts.minor) == (9, 0),
        }
    }

    pub(super) fn by_shared<T>(self, small: T, middle: T, large: T) -> T {
        match self.shared_kb {
            99 => small,
            163 => middle,
            _ => large,
        }
    }
}

/// Memory of a step beside the trait's buffers: addresses of its parts.
#[derive(Debug)]
pub(crate) struct Workspace {
    pub(crate) n_rows: usize,
    pub(super) device: Device,
    /// Owns what `at` points into.
    #[expect(dead_code, reason = "kept for its drop")]
    memory: Memory,
    pub(super) at: Places,
    /// The buffer whose halves `x` holds, if they are those of its current values.
    pub(super) halves_of: Option<u64>,
}

/// Offsets into the workspace, then addresses.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Places {
    pub(super) x: u64,
    pub(super) x_low: u64,
    pub(super) qr: u64,
    pub(super) qr_low: u64,
    pub(super) q: u64,
    pub(super) kv: u64,
    pub(super) o: u64,
    pub(super) u: u64,
    pub(super) iq: u64,
    pub(super) gate: u64,
    pub(super) up: u64,
    pub(super) part: u64,
    pub(super) lists: u64,
    pub(super) counts: u64,
    pub(super) tiles: u64,
    pub(super) routed_hidden: u64,
    pub(super) hidden_sums: u64,
    pub(super) hidden_scale: u64,
    pub(super) x_experts: u64,
    pub(super) x_codes: u64,
    pub(super) x_scale: u64,
    pub(super) turn: u64,
    pub(super) attend: u64,
    pub(super) attend_max: u64,
    pub(super) panel: u64,
}

pub(super) fn turn_steps(n_rows: usize) -> usize {
    if n_rows > SKINNY_ROWS { 4 } else { 1 }
}

pub(super) fn n_splits(n_rows: usize) -> usize {
    (ATTEND_BLOCKS / n_rows.max(1)).clamp(1, 16)
}

pub(super) fn max_tiles(n_rows: usize, tokens: usize) -> usize {
    (N_USED * n_rows).min(N_EXPERTS) + N_USED * n_rows / tokens
}

/// Offsets of the parts for steps of up to `n` rows, and how many bytes they are.
pub(super) fn places(n: usize) -> (Places, usize) {
    let mut end = 0;
    let mut take = |n_bytes: usize| {
        let at = end;
        end = (at + n_bytes).next_multiple_of(256);
        at as u64
    };
    let places = Places {
        x: take(2 * n * N_EMBD),
        x_low: take(2 * n * N_EMBD),
        qr: take(2 * n * Q_RANK),
        qr_low: take(2 * n * Q_RANK),
        q: take(2 * n * N_HEADS * HEAD_DIM),
        kv: take(2 * n * HEAD_DIM),
        o: take(2 * n * N_HEADS * HEAD_DIM),
        u: take(2 * n * N_GROUPS * OUT_RANK),
        iq: take(2 * n * N_INDEX_HEADS * INDEX_DIM),
        gate: take(2 * n * EXPERT_DIM),
        up: take(4 * n * EXPERT_DIM),
        part: take(2 * n * N_USED * N_EMBD),
        lists: take(4 * N_EXPERTS * n),
        counts: take(4 * N_EXPERTS),
        tiles: take(4 * (4 + 4 * max_tiles(n, FEW_TOKENS))),
        routed_hidden: take(2 * n * N_USED * EXPERT_DIM),
        hidden_sums: take(2 * n.min(FEW_ROWS) * N_USED * EXPERT_DIM / 16),
        hidden_scale: take(4 * n.min(FEW_ROWS) * N_USED * EXPERT_DIM / 256),
        x_experts: take(2 * n * N_EMBD),
        x_codes: take(2 * n.min(FEW_ROWS) * N_EMBD),
        x_scale: take(4 * n.min(FEW_ROWS) * N_EMBD / 256),
        turn: take(4 * 32 * (16 * n).max(64 * n.min(SKINNY_ROWS))),
        attend: take(4 * N_HEADS * HEAD_DIM * ATTEND_BLOCKS),
        attend_max: take(4 * 2 * N_HEADS * ATTEND_BLOCKS),
        panel: take(PANEL_BYTES),
    };
    (places, end)
}

/// Bytes of the workspace for steps of up to `n_rows` rows.
pub(crate) fn workspace_bytes(n_rows: usize) -> u64 {
    places(n_rows.max(SKINNY_ROWS)).1 as u64
}

impl Workspace {
    pub(crate) fn new(context: &Arc<Context>, n_rows: usize) -> Result<Workspace, BackendError> {
        let n_rows = n_rows.max(SKINNY_ROWS);
        let (mut at, n_bytes) = places(n_rows);
        let what = || format!("the workspace of steps of {n_rows} rows");
        let memory =
            Memory::new(context, n_bytes).map_err(|e| out_of_memory(e, what(), n_bytes))?;
        for place in [
            &mut at.x,
            &mut at.x_low,
            &mut at.qr,
            &mut at.qr_low,
            &mut at.q,
            &mut at.kv,
            &mut at.o,
            &mut at.u,
            &mut at.iq,
            &mut at.gate,
            &mut at.up,
            &mut at.part,
            &mut at.lists,
            &mut at.counts,
            &mut at.tiles,
            &mut at.routed_hidden,
            &mut at.hidden_sums,
            &mut at.hidden_scale,
            &mut at.x_experts,
            &mut at.x_codes,
            &mut at.x_scale,
            &mut at.turn,
            &mut at.attend,
            &mut at.attend_max,
            &mut at.panel,
        ] {
            *place += memory.address();
        }
        Ok(Workspace {
            n_rows,
            device: Device::of(context),
            memory,
            at,
            halves_of: None,
        })
    }
}
