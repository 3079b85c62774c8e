// One block of the decode kernel: its shared memory and what all its phases know.
#pragma once
#include "dense.cuh"

namespace ds4 {

constexpr u32 KV_ROWS = 40, KV_STRIDE = HEAD * 2 + 16; // attended rows at once; bytes between them
constexpr u32 P_STRIDE = 56, RED = 3072;               // bf16 of probabilities a head; floats of a buffer of partials

// Offsets in shared memory.
template <int R> struct Shared {
    static constexpr u32 kv = RING_BYTES, red = kv + KV_ROWS * KV_STRIDE, lut = red + 2 * RED * 4;
    static constexpr u32 scores = lut + 1024;          // f32 [4 quarters][48 rows][8 heads]
    static constexpr u32 probs = scores + 4 * 48 * 8 * 4;
    static constexpr u32 streams = probs + 8 * P_STRIDE * 2; // f32 [R][HC][32]
    static constexpr u32 totals = streams + R * HC * 32 * 4; // f32 [R][64]
    static constexpr u32 small = totals + R * 64 * 4;        // f32 [128]
    static constexpr u32 chosen = small + 512;               // u32 [64] rows of this split
    static constexpr u32 route = chosen + 256;               // [2 parities] u32 [R * USED] experts, f32 weights
    static constexpr u32 rows = route + 2 * R * USED * 8;   // u32 [R][4]: slot, position, base, slot of its rings
    static constexpr u32 layer = rows + R * 16;              // [2 parities] the layer's weights and caches
    static constexpr u32 bytes = layer + 2 * 512;
};
static_assert(Shared<4>::bytes <= 232448, "shared memory of a block");
static_assert(Shared<1>::bytes == 219648 + 880 && Shared<4>::bytes == 219648 + 4 * 880, "ds4_decode_smem");
static_assert(Exchange<1>::scores == 4096 + 2583296 && Exchange<4>::scores == 4096 + 4 * 2583296, "ds4_decode_workspace");

template <int R> struct Block {
    const Ds4Step *s;
    u8 *ws;
    u32 b, w, lane, tid, epoch, flip;
#ifdef DS4_STAMPS
    u32 layer;
#endif
    using X = Exchange<R>;
    using S = Shared<R>;

    // Before every op: a step is one loop in which every address is invariant, and addresses kept from
    // before it would fill all registers.
    DS4_DEV void renew_all() {
        renew(tid);
        renew(b);
        renew(ws);
        w = tid >> 5, lane = tid & 31;
    }
    DS4_DEV float *f(u32 at) const { return (float *)(shared_memory() + at); }
    DS4_DEV u32 number(u32 layer) const { return epoch * s->n_layers + layer; }
    DS4_DEV bool runs(u32 phase) const { return phase >= s->first && phase < s->end; }
    // Of padding the position, base and slot of the ring are 0.
    DS4_DEV u32 row(u32 r, u32 i) const { return ((const u32 *)(shared_memory() + S::rows))[r * 4 + i]; }
    DS4_DEV u32 slot(u32 r) const { return row(r, 0); }
    DS4_DEV u32 position(u32 r) const { return row(r, 1); }
    DS4_DEV u32 base(u32 r) const { return row(r, 2); }
    DS4_DEV u32 ring_slot(u32 r) const { return row(r, 3); }
    // Copies of what step.h describes, made a layer ahead.
    DS4_DEV const Ds4DecodeLayer &weights(u32 layer) const { return *(const Ds4DecodeLayer *)(shared_memory() + S::layer + (layer & 1) * 512); }
    DS4_DEV const Ds4DecodeCache &caches(u32 layer) const { return *(const Ds4DecodeCache *)(shared_memory() + S::layer + (layer & 1) * 512 + sizeof(Ds4DecodeLayer)); }
    static_assert(sizeof(Ds4DecodeLayer) % 8 == 0 && sizeof(Ds4DecodeCache) % 8 == 0 && sizeof(Ds4DecodeLayer) + sizeof(Ds4DecodeCache) <= 512, "a layer's description");
    // An async_wait and a consumer_sync are to follow.
    DS4_DEV void fetch_layer(u32 layer) const {
        constexpr u32 N = sizeof(Ds4DecodeLayer) / 8, M = sizeof(Ds4DecodeCache) / 8;
        if (tid < N + M)
            async_copy8(smem_addr(shared_memory()) + S::layer + (layer & 1) * 512 + tid * 8,
                        tid < N ? (const u8 *)(s->layers + layer) + tid * 8 : (const u8 *)(s->caches + layer) + (tid - N) * 8);
    }
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
    DS4_DEV u32 *route_ids(u32 layer) const { return (u32 *)(shared_memory() + S::route) + (layer & 1) * R * USED; }
    DS4_DEV float *route_weights(u32 layer) const { return f(S::route + 2 * R * USED * 4) + (layer & 1) * R * USED; }
};

enum Turn { TURN_ATTN = 0, TURN_FFN = 1, TURN_HEAD = 2 };
enum Flag { FLAG_WINDOW = 0, FLAG_ROWS = 1, FLAG_INDEX = 2 };

} // namespace ds4
