// What blocks of the decode kernel tell each other, and how: buffers in the workspace whose every
// element says itself whether it is of this layer, so that a reader polls the very words it needs and
// there is neither a barrier nor a fence.
//
// - A stamped float carries the number of the writing, modulo 4, in its two lowest bits (an error of at
//   most 2^-21 of the value). Every word is written once a layer, or once a layer of some kinds, by
//   one block; writings of one word follow each other with numbers that differ modulo 4.
// - A line is 8 int8 codes of a block of 32, their scale, and the full number, stored and loaded whole.
//
// Nothing is overwritten before its readers are through: a block writes for the next layer only after
// it has read data that stand on all of this layer's reads. Data of the services (window row,
// compressed rows) go through memory under a flag with release and acquire.
#pragma once
#include "../geometry.cuh"
#include "prim.cuh"
#include "step.h"

namespace ds4 {

constexpr u32 E = DS4_N_EMBD, HC = DS4_N_HC, HEADS = DS4_N_HEADS, HEAD = DS4_HEAD_DIM, ROPE = DS4_ROPE_DIM, QR = DS4_Q_RANK;
constexpr u32 GROUPS = DS4_N_OUT_GROUPS, OUT_RANK = DS4_OUT_RANK, U = GROUPS * OUT_RANK, Q = HEADS * HEAD;
constexpr u32 IHEADS = DS4_N_INDEX_HEADS, IDIM = DS4_INDEX_DIM, IQ = IHEADS * IDIM, TOP_K = DS4_INDEX_TOP_K;
constexpr u32 EXPERTS = DS4_N_EXPERTS, USED = DS4_N_EXPERTS_USED, F = DS4_EXPERT_DIM, VOCAB = DS4_N_VOCAB, WINDOW = DS4_WINDOW;
constexpr u32 CSA_RATIO = 4, HCA_RATIO = 128, CSA_DIM = 2 * HEAD, HCA_DIM = HEAD, INDEX_DIM2 = 2 * IDIM;
constexpr u32 W = DS4_DECODE_WORKERS, SPLITS = W / GROUPS;
constexpr u32 N_MIX = HC * (2 + HC), N_CRIT = HC + HC * (HC + 1) / 2, N_REST = N_MIX - HC, N_GATES = HC + HC * HC;
constexpr u32 PAD = 0xffffffffu;

// What the division of work among 128 blocks of 16 warps stands on.
static_assert(E == 32 * W && E == 256 * 16 && HC == 4, "32 channels of 4 streams a block");
static_assert(HEAD == 512 && ROPE == 64 && QR == 1024 && Q == 256 * W, "half a head a block");
static_assert(GROUPS == 8 && HEADS == 64 && OUT_RANK == 1024, "eight heads a group, 16 blocks a group");
static_assert(IHEADS == 64 && IDIM == 128 && TOP_K <= 512 && WINDOW == 128, "index heads");
static_assert(EXPERTS == 2 * W && F == 16 * W && USED == 6, "two router rows, 16 shared channels a block");
static_assert(VOCAB % 16 == 0, "whole tiles");

template <int R> struct Exchange {
    // Offsets in bytes; every part is a multiple of 256.
    static constexpr size_t crit = 4096;                                      // [turn 3][R][N_CRIT][W] stamped
    static constexpr size_t rest = crit + 3 * R * N_CRIT * W * 4;             // [turn 2][R][N_REST][W] stamped
    static constexpr size_t gates = rest + 2 * R * N_REST * W * 4;            // [turn 2][R][64] stamped
    static constexpr size_t x = gates + 2 * R * 256;                          // [turn 3][R][E / 8] lines
    static constexpr size_t xf = x + 3 * R * E * 2;                           // [turn 2][R][E] stamped
    static constexpr size_t qr = xf + 2 * R * E * 4;                          // [R][QR] stamped
    static constexpr size_t kv = qr + R * QR * 4;                             // [R][HEAD] stamped
    static constexpr size_t comp = kv + R * HEAD * 4;                         // [kv, gate][R][CSA_DIM] stamped
    static constexpr size_t icomp = comp + 2 * R * CSA_DIM * 4;               // [kv, gate][R][INDEX_DIM2] stamped
    static constexpr size_t iw = icomp + 2 * R * INDEX_DIM2 * 4;              // [R][IHEADS] stamped
    static constexpr size_t q = iw + R * IHEADS * 4;                          // [R][Q] stamped
    static constexpr size_t iqf = q + R * Q * 4;                              // [R][IQ] stamped
    static constexpr size_t iq = iqf + R * IQ * 4;                            // [R][IQ / 8] lines
    static constexpr size_t part = iq + R * IQ * 2;                           // [R][GROUPS][SPLITS][8 heads][HEAD] stamped
    static constexpr size_t ml = part + (size_t)R * W * 8 * HEAD * 4;         // [R][GROUPS][SPLITS][8][2] stamped
    static constexpr size_t o = ml + R * W * 16 * 4;                          // [R][Q / 8] lines
    static constexpr size_t u = o + R * Q * 2;                                // [R][U / 8] lines
    static constexpr size_t router = u + R * U * 2;                           // [R][EXPERTS] stamped
    static constexpr size_t shared = router + R * EXPERTS * 4;                // [R][F] stamped
    static constexpr size_t hidden = shared + R * F * 4;                      // [R * USED][F / 8] lines
    static constexpr size_t streams = hidden + R * USED * F * 2;              // [W][R][HC][32] f32, between launches
    static constexpr size_t scores = streams + W * R * HC * 32 * 4;           // [R][score_stride] f32
};
// At the start of a workspace: u32 epoch; from byte 128 on u32 flags of the services; from byte 256 on
// the count of blocks that have scored.
constexpr size_t FLAGS_AT = 128, SCORED_AT = 256;

DS4_DEV u32 stamp(float x, u32 tag) { return (f_bits(x) & ~3u) | (tag & 3); }

// The number is no part of the value, so that a step gives the same bits whatever its number.
DS4_DEV float unstamp(u32 v) { return bits_f(v & ~3u); }

// Waits until every word of `n` vectors of 4 is stamped with `tag`. `step`: bytes between vectors.
template <int N> DS4_DEV void poll_fours(float (&out)[4 * N], const u8 *p, size_t step, u32 tag) {
    u32 spins = 0;
    for (;;) {
        Four f[N];
        u32 bad = 0;
#pragma unroll
        for (int i = 0; i < N; i++) f[i] = load_four(p + i * step);
#pragma unroll
        for (int i = 0; i < N; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                bad |= f[i].v[j] ^ tag;
                out[4 * i + j] = unstamp(f[i].v[j]);
            }
        if (!(bad & 3) || DS4_EXPERIMENT(1)) break;
        DS4_SPIN_GUARD(spins);
    }
}
DS4_DEV float poll_one(const u8 *p, u32 tag) {
    u32 spins = 0, v;
    while ((((v = load_one(p)) ^ tag) & 3) && !DS4_EXPERIMENT(1)) DS4_SPIN_GUARD(spins);
    return unstamp(v);
}
DS4_DEV Line poll_line(const u8 *p, u32 number) {
    u32 spins = 0;
    Line l;
    while ((l = load_line(p)).tag != number && !DS4_EXPERIMENT(1)) DS4_SPIN_GUARD(spins);
    return l;
}
DS4_DEV void wait_flag(const u32 *p, u32 number) {
    u32 spins = 0;
    while (load_acquire(p) != number && !DS4_EXPERIMENT(1)) DS4_SPIN_GUARD(spins);
}

DS4_DEV float warp_sum(float v) {
#pragma unroll
    for (int m = 16; m; m >>= 1) v += xor_f(v, m);
    return v;
}
DS4_DEV float sigmoid(float x) { return rcp_f(1.f + exp_f(-x)); }
DS4_DEV float clamp(float x, float lo, float hi) { return fminf(fmaxf(x, lo), hi); }

// 32 values, one a lane, become four lines at `to` (block's first line). All lanes call.
DS4_DEV void store_block(u8 *to, float v, u32 lane, u32 number) {
    const float top = bits_f(warp_max_u(f_bits(v) & 0x7fffffffu));
    const bool zero = !(top > 1e-36f && top < 3.4e38f); // all but zero, or not finite
    const float inverse = 127.f * rcp_f(top), scale = top < 3.4e38f ? (zero ? 0.f : top * (1.f / 127.f)) : bits_f(0x7fc00000u);
    u32 c = zero ? 0u : (u32)round_i(v * inverse) & 255u;
    c <<= 8 * (lane & 3);
    c |= xor_u(c, 1);
    c |= xor_u(c, 2);
    const u32 hi = shfl_u(c, (lane & ~7u) + 4);
    if ((lane & 7) == 0) {
        const Line l = {c, hi, f_bits(scale), number};
        store_line(to + (lane >> 3) * 16, l);
    }
}

} // namespace ds4
