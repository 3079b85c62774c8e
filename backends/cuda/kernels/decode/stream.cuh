// The ring of weights: two producer warps copy what this block will multiply by, in the order in which
// it will, across phases; 16 consumer warps take it. A slot holds one of
// - a pair: two consecutive records, of consumer warps 2 s and 2 s + 1 (8 slots are a stage);
// - rows: f16 rows of 4,096 (or 4 of 1,024), of which every warp takes 512 bytes.
#pragma once
#include "exchange.cuh"

namespace ds4 {

constexpr u32 SLOTS = 16, SLOT = 2 * DS4_IQ2_PAIR, PRODUCERS = 2;

struct Ring {
    u32 base, full, empty; // shared addresses
    u8 *data;
};

// One lane waits and copies; the warp is needed whole only where experts are chosen.
struct Producer {
    Ring ring;
    u32 n, mine, which, lane, cap;
    u64 policy;
    DS4_DEV void copy(const u8 *from, u32 bytes) {
        if (n % PRODUCERS == which && lane == 0) {
            const u32 slot = n % SLOTS;
            mbar_wait(ring.empty + 8 * slot, (n / SLOTS & 1) ^ 1);
            if (mine >= cap) {
                const u32 old = n - PRODUCERS * cap;
                mbar_wait(ring.full + 8 * (old % SLOTS), old / SLOTS & 1);
            }
            mbar_expect(ring.full + 8 * slot, bytes);
            bulk_copy(ring.base + slot * SLOT, from, bytes, ring.full + 8 * slot, policy);
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
    Ring ring;
    u32 n, w, lane;
    // This warp's record of the next stage, `bytes` long.
    DS4_DEV const u8 *pair(u32 bytes) {
        const u32 use = n + (w >> 1), slot = use % SLOTS;
        mbar_wait(ring.full + 8 * slot, use / SLOTS & 1);
        return ring.data + slot * SLOT + (w & 1) * bytes;
    }
    DS4_DEV void pair_done() {
        warp_sync();
        if (lane == 0) mbar_arrive(ring.empty + 8 * ((n + (w >> 1)) % SLOTS), 8);
        n += 8;
    }
    // This warp's 512 bytes of the next slot of rows.
    DS4_DEV const u8 *rows() {
        const u32 slot = n % SLOTS;
        mbar_wait(ring.full + 8 * slot, n / SLOTS & 1);
        return ring.data + slot * SLOT + w * 512;
    }
    DS4_DEV void rows_done() {
        warp_sync();
        if (lane == 0) mbar_arrive(ring.empty + 8 * (n % SLOTS), 1);
        n++;
    }
};

} // namespace ds4
