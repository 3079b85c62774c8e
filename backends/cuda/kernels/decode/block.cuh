// One block of the decode kernel: its shared memory and what all its phases know.
#pragma once
#include "dense.cuh"

namespace ds4 {

constexpr u32 KV_ROWS = 40, KV_STRIDE = HEAD * 2 + 16; // attended rows at once; bytes between them
constexpr u32 P_STRIDE = 56, RED = 3072;               // bf16 of probabilities a head; floats of a buffer of partials

// Offsets in shared memory.
template <int R> struct Shared {
    static constexpr u32 ring = 0, kv = ring + SLOTS * SLOT, red = kv + KV_ROWS * KV_STRIDE, lut = red + 2 * RED * 4;
    static constexpr u32 scores = lut + 8192;          // f32 [4 quarters][48 rows][8 heads]
    static constexpr u32 probs = scores + 4 * 48 * 8 * 4;
    static constexpr u32 streams = probs + 8 * P_STRIDE * 2; // f32 [R][HC][32]
    static constexpr u32 totals = streams + R * HC * 32 * 4; // f32 [R][64]
    static constexpr u32 small = totals + R * 64 * 4;        // f32 [128]
    static constexpr u32 chosen = small + 512;               // u32 [64] rows of this split
    static constexpr u32 route = chosen + 256;               // [2 parities] u32 [R * USED] experts, f32 weights
    static constexpr u32 bars = route + 2 * R * USED * 8;
    static constexpr u32 bytes = bars + 2 * SLOTS * 8;
};
static_assert(Shared<4>::bytes <= 232448, "shared memory of a block");
static_assert(Shared<1>::bytes == 225792 + 864 && Shared<4>::bytes == 225792 + 4 * 864, "ds4_decode_smem");
static_assert(Exchange<1>::scores == 4096 + 2583296 && Exchange<4>::scores == 4096 + 4 * 2583296, "ds4_decode_workspace");
static_assert(Shared<1>::bars % 8 == 0 && Shared<2>::bars % 8 == 0 && Shared<4>::bars % 8 == 0, "alignment of barriers");

template <int R> struct Block {
    const Ds4Step *s;
    u8 *sm, *ws;
    u32 b, w, lane, tid, epoch, flip;
#ifdef DS4_STAMPS
    u32 layer;
#endif
    using X = Exchange<R>;
    using S = Shared<R>;

    DS4_DEV float *f(u32 at) const { return (float *)(sm + at); }
    DS4_DEV u32 number(u32 layer) const { return epoch * s->n_layers + layer; }
    DS4_DEV bool runs(u32 phase) const { return phase >= s->first && phase < s->end; }
    DS4_DEV u32 slot(u32 r) const { return s->rows.slot[r]; }
    DS4_DEV u32 position(u32 r) const { return slot(r) == PAD ? 0 : s->rows.position[r]; }
    DS4_DEV u32 base(u32 r) const { return slot(r) == PAD ? 0 : s->rows.base[r]; }
    DS4_DEV u32 ring_slot(u32 r) const { return slot(r) == PAD ? 0 : slot(r); }
    DS4_DEV const float *angles(u32 r, u32 table) const { return s->rows.angles + (r * 4 + table) * ROPE; }
    // A buffer of partials that nobody reads any more: they alternate, and every use has one
    // consumer_sync between writing and reading.
    DS4_DEV float *partials() { return f(S::red + (flip ^= 1) * RED * 4); }
    // With DS4_STAMPS, notes the clock: 32 places a layer, 2 k when the inputs of phase k are here, 2 k + 1
    // when it is done.
    DS4_DEV void mark(u32 at) const {
#ifdef DS4_STAMPS
        if (tid == 0) s->marks[(size_t)b * DS4_STAMPS + layer * 32 + at] = clock_now();
#else
        (void)at;
#endif
    }
    DS4_DEV u32 *flag(u32 k) const { return (u32 *)(ws + FLAGS_AT) + k; }
    DS4_DEV u32 *scored() const { return (u32 *)(ws + SCORED_AT); }
    DS4_DEV u32 *route_ids(u32 layer) const { return (u32 *)(sm + S::route) + (layer & 1) * R * USED; }
    DS4_DEV float *route_weights(u32 layer) const { return f(S::route + 2 * R * USED * 4) + (layer & 1) * R * USED; }
};

enum Turn { TURN_ATTN = 0, TURN_FFN = 1, TURN_HEAD = 2 };
enum Flag { FLAG_WINDOW = 0, FLAG_ROWS = 1, FLAG_INDEX = 2 };

} // namespace ds4
