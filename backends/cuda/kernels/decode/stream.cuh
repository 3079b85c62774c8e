// The ring of weights: two producer warps copy what this block will multiply by, in the order in which
// it will, across phases; 16 consumer warps take it. A slot holds one of
// - a pair: two consecutive records, of consumer warps 2 s and 2 s + 1 (8 slots are a stage);
// - rows: f16 rows of 4,096 (or 4 of 1,024), of which every warp takes 512 bytes.
#pragma once
#include "exchange.cuh"

namespace ds4 {

constexpr u32 SLOTS = 16, SLOT = 2 * DS4_IQ2_PAIR, PRODUCERS = 2;

// At the start of shared memory: slots, then barriers of full slots, then of empty ones.
constexpr u32 FULL_AT = SLOTS * SLOT, EMPTY_AT = FULL_AT + SLOTS * 8, RING_BYTES = EMPTY_AT + SLOTS * 8;
DS4_DEV u32 full_bar(u32 use) { return smem_addr(shared_memory()) + FULL_AT + use % SLOTS * 8; }
DS4_DEV u32 empty_bar(u32 use) { return smem_addr(shared_memory()) + EMPTY_AT + use % SLOTS * 8; }

// One lane waits and copies; the warp is needed whole only where experts are chosen.
struct Producer {
    u32 n, mine, which, lane, cap;
    u64 policy;
    DS4_DEV void copy(const u8 *from, u32 bytes) {
        if (n % PRODUCERS == which && lane == 0 && !DS4_EXPERIMENT(4)) {
            mbar_wait(empty_bar(n), (n / SLOTS & 1) ^ 1);
            if (mine >= cap) {
                const u32 old = n - PRODUCERS * cap;
                mbar_wait(full_bar(old), old / SLOTS & 1);
            }
            mbar_expect(full_bar(n), bytes);
            bulk_copy(smem_addr(shared_memory()) + n % SLOTS * SLOT, from, bytes, full_bar(n), policy);
            mine++;
        }
        n++;
    }
    DS4_DEV void run(const void *from, u32 bytes, u32 count) {
        const u8 *p = (const u8 *)from;
#pragma unroll 1
        for (u32 i = 0; i < count; i++, p += bytes) copy(p, bytes);
    }
};

struct Consumer {
    u32 n, w, lane;
    // This warp's record of the next stage, `bytes` long.
    DS4_DEV const u8 *pair(u32 bytes) {
        const u32 use = n + (w >> 1);
        if (!DS4_EXPERIMENT(4)) mbar_wait(full_bar(use), use / SLOTS & 1);
        return shared_memory() + use % SLOTS * SLOT + (w & 1) * bytes;
    }
    DS4_DEV void pair_done() {
        warp_sync();
        if (lane == 0 && !DS4_EXPERIMENT(4)) mbar_arrive(empty_bar(n + (w >> 1)), 8);
        n += 8;
    }
    // This warp's 512 bytes of the next slot of rows.
    DS4_DEV const u8 *rows() {
        if (!DS4_EXPERIMENT(4)) mbar_wait(full_bar(n), n / SLOTS & 1);
        return shared_memory() + n % SLOTS * SLOT + w * 512;
    }
    DS4_DEV void rows_done() {
        warp_sync();
        if (lane == 0 && !DS4_EXPERIMENT(4)) mbar_arrive(empty_bar(n), 1);
        n++;
    }
};

} // namespace ds4
