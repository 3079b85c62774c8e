// Router, experts and the shared expert of R rows. A (row, choice) pair is a slot; slots of one expert
// are computed each for itself, so R rows take R times the time of one.
#pragma once
#include "../iq2_grid.cuh"
#include "hyper.cuh"

namespace ds4 {

// ln(1 + x) for 0 <= x <= 1: 2 artanh(x / (2 + x)), good to 1e-7 of its value.
DS4_DEV float log1p_f(float x) {
    const float t = x * rcp_f(2.f + x), q = t * t;
    const float s = fmaf(fmaf(fmaf(fmaf(fmaf(fmaf(1.f / 13, q, 1.f / 11), q, 1.f / 9), q, 1.f / 7), q, 1.f / 5), q, 1.f / 3), q, 1.f);
    return 2.f * t * s;
}

// ---- choice, by one warp -----------------------------------------------------------------------------

template <int R> DS4_DEV void choose_experts(Block<R> &k, const Ds4DecodeLayer &l, u32 layer, u32 *ids, float *weights) {
    using B = Block<R>;
    const u32 lane = k.lane, number = k.number(layer);
    for (u32 r = 0; r < R; r++) {
        float s[8];
        poll_fours<2>(s, k.ws + B::X::router + (r * EXPERTS + lane * 8) * 4, 16, number);
        warp_sync();
        u32 key[8];
#pragma unroll
        for (u32 j = 0; j < 8; j++) {
            s[j] = sqrt_f(fmaxf(s[j], 0.f) + log1p_f(exp_f(-fabsf(s[j]))));
            if (l.bias) {
                const u32 v = f_bits(s[j] + l.bias[lane * 8 + j]);
                key[j] = v & 0x80000000u ? ~v : v | 0x80000000u;
            }
        }
        float mine = 0, total = 0;
        u32 id = 0;
#pragma unroll 1
        for (u32 i = 0; i < USED; i++) {
            u32 e;
            if (l.bias) {
                u32 top = 0;
#pragma unroll
                for (u32 j = 0; j < 8; j++) top = key[j] > top ? key[j] : top;
                const u32 best = warp_max_u(top), from = lowest(warp_ballot(top == best));
                u32 at = 0;
                bool found = false;
#pragma unroll
                for (u32 j = 0; j < 8; j++)
                    if (!found && key[j] == best) at = j, found = true;
                e = shfl_u(lane * 8 + at, from);
#pragma unroll
                for (u32 j = 0; j < 8; j++)
                    if (lane * 8 + j == e) key[j] = 0;
            } else
                e = (u32)l.ids[(size_t)k.s->rows.token[r] * USED + i] % EXPERTS;
            u32 bits = 0;
#pragma unroll
            for (u32 j = 0; j < 8; j++) bits |= f_bits(s[j]) & -(u32)((e & 7) == j);
            const float v = shfl_f(bits_f(bits), e >> 3);
            total += v;
            if (lane == i) mine = v, id = e;
        }
        if (lane < USED) {
            ids[r * USED + lane] = id;
            weights[r * USED + lane] = 1.5f * mine * rcp_f(fmaxf(total, 1e-37f));
        }
    }
    warp_sync();
}

// ---- IQ2_XXS -------------------------------------------------------------------------------------------

constexpr u32 POOL = 0x002b1908u, POOL_NEGATIVE = 0x00d5e7f8u; // bytes 8, 25, 43 and their negatives

// The table of grid words: 16 codes of magnitudes of two bits, in nibbles, for eight weights. While gate and up run, every
// lane has its own copy of it (word e of lane l at 128 e + 4 l), where attention keeps its rows: 32 KB, and no
// two lanes ever meet in a bank.
constexpr u32 LUT_AT = 8192; // after the rows of the mixing products
static_assert(LUT_AT + 256 * 128 <= KV_ROWS * KV_STRIDE, "copies of the table");
template <int R> DS4_DEV void spread_grid(const Block<R> &k) {
    const u32 *grid = (const u32 *)(shared_memory() + Block<R>::S::lut) + k.w * 16;
    u32 *to = (u32 *)(shared_memory() + Block<R>::S::kv + LUT_AT) + k.w * 16 * 32 + k.lane;
#pragma unroll
    for (u32 i = 0; i < 16; i += 4) {
        const uint4 v = *(const uint4 *)(grid + i);
        to[i * 32] = v.x, to[i * 32 + 32] = v.y, to[i * 32 + 64] = v.z, to[i * 32 + 96] = v.w;
    }
}

// One tile against one row's 256 activations: `x[b]` the lane's codes of block g (columns 8 t ..) where g is b and
// else 0, `sa`, `sb` an eighth of the scales of blocks 2 t, 2 t + 1; `table`: the lane's copy. Adds the lane's
// part for rows g and g + 8.
DS4_DEV void add_iq2(const u8 *tile, u32 table, u32 lane, const u32 (&x)[8][2], float sa, float sb, float &v0, float &v1) {
    const u32 g = lane >> 2;
    const uint4 i4 = *(const uint4 *)(tile + lane * 16), s4 = *(const uint4 *)(tile + DS4_IQ2_SIGNS + lane * 16);
    const u32 index[4] = {i4.x, i4.y, i4.z, i4.w}, sign[4] = {s4.x, s4.y, s4.z, s4.w};
    int c[4] = {0, 0, 0, 0};
#pragma unroll
    for (u32 p = 0; p < 4; p++) {
        u32 e[4];
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 flip = i == 0 ? sign[p] : i == 1 ? sign[p] << 1 : i == 2 ? sign[p] << 2 : sign[p] >> 1;
            e[i] = load_shared(table + prmt(index[p], 0, 0x4440 + i) * 128) ^ (flip & 0x44444444u);
        }
#pragma unroll
        for (u32 h = 0; h < 2; h++)
            mma_s8(c, prmt(POOL, POOL_NEGATIVE, e[2 * h]), prmt(POOL, POOL_NEGATIVE, e[2 * h + 1]), prmt(POOL, POOL_NEGATIVE, e[2 * h] >> 16),
                   prmt(POOL, POOL_NEGATIVE, e[2 * h + 1] >> 16), x[2 * p + h][0], x[2 * p + h][1]);
    }
    const u32 n = *(const u16 *)(tile + DS4_IQ2_NIBBLES + lane * 2), dd = *(const u32 *)(tile + DS4_IQ2_D + g * 4);
    v0 += half_lo(dd) * ((float)(c[0] * (int)(2 * (n & 15) + 1)) * sa + (float)(c[1] * (int)(2 * (n >> 4 & 15) + 1)) * sb);
    v1 += half_hi(dd) * ((float)(c[2] * (int)(2 * (n >> 8 & 15) + 1)) * sa + (float)(c[3] * (int)(2 * (n >> 12) + 1)) * sb);
}

// Gate and up of the block's 3 R items (slot, 32 hidden channels), to lines of the hidden layer.
template <int R> DS4_DEV void gate_up(Block<R> &k, Consumer &c, const Ds4DecodeLayer &l, u32 layer, u32 number) {
    using B = Block<R>;
    constexpr u32 ITEMS = USED * (F / 32) / W; // for each row
    const u32 lane = k.lane, g = lane >> 2, t = lane & 3;
    const u32 table = smem_addr(shared_memory()) + B::S::kv + LUT_AT + lane * 4;
    const float *weights = k.route_weights(layer);
    u32 row = PAD, xs[8][2];
    float sa = 0, sb = 0;
    spread_grid(k);
    consumer_sync();
    for (u32 batch = 0; batch < R; batch++) {
        float *red = k.partials(); // [ITEMS][16 warps][gate, up][32]
        for (u32 i = 0; i < ITEMS; i++) {
            const u32 item = k.b + W * (batch * ITEMS + i), r = item / (F / 32) / USED;
            if (r != row) {
                row = r;
                const Line x = poll_line(k.ws + B::X::x + (TURN_FFN * R + r) * (E * 2) + (k.w * 32 + lane) * 16, number);
                warp_sync();
#pragma unroll
                for (u32 i = 0; i < 8; i++) xs[i][0] = g == i ? x.lo : 0, xs[i][1] = g == i ? x.hi : 0;
                sa = shfl_f(bits_f(x.scale), 8 * t) * 0.125f, sb = shfl_f(bits_f(x.scale), 8 * t + 4) * 0.125f;
            }
            const u8 *record = c.pair(DS4_IQ2_PAIR);
            if (i == 0 && batch == 0) k.mark(22);
#pragma unroll 2
            for (u32 tile = DS4_EXPERIMENT(2) ? 4 : 0; tile < 4; tile++) { // gate rows 0, 16, up rows 0, 16
                float v0 = 0, v1 = 0;
                add_iq2(record + tile * DS4_IQ2_TILE, table, lane, xs, sa, sb, v0, v1);
                // Over the quarters: lane t has row g + 8 (t & 1).
                float v = (t & 1 ? v1 : v0) + xor_f(t & 1 ? v0 : v1, 1);
                v += xor_f(v, 2);
                if (t < 2) red[((i * 16 + k.w) * 2 + (tile >> 1)) * 32 + (tile & 1) * 16 + t * 8 + g] = v;
            }
            c.pair_done();
        }
        consumer_sync();
        if (k.w == 8 && batch + 1 == R) fetch_gates(k, TURN_FFN, number);
        if (k.w < ITEMS) {
            const u32 item = k.b + W * (batch * ITEMS + k.w), slot = item / (F / 32), channel = item % (F / 32) * 32;
            const float *p = red + k.w * 16 * 64 + lane;
            float gate = sum_parts(p, 64, 16), up = sum_parts(p + 32, 64, 16);
            gate = fminf(gate, l.expert_clamp), up = clamp(up, -l.expert_clamp, l.expert_clamp);
            const float h = weights[slot] * (gate * sigmoid(gate)) * up;
            store_block(k.ws + B::X::hidden + ((size_t)slot * F + channel) * 2, h, lane, number);
        }
    }
}

// ---- Q2_K ------------------------------------------------------------------------------------------------

// One tile against one expert's hidden block of 256: of half n, `x[n]` is the lane's four codes (columns
// 128 n + 4 lane ..), `s[n]` the scale of columns 32 (4 n + t) .., `ma[n]`, `mb[n]` scale times sum of the
// codes of the 16 columns 8 n + 2 t and 8 n + 2 t + 1.
struct Q2kActs {
    u32 x[2];
    float s[2], ma[2], mb[2];
};
DS4_DEV void add_q2k(const u8 *tile, u32 lane, const Q2kActs &x, float &v0, float &v1) {
    const u32 g = lane >> 2;
    const uint2 sm = *(const uint2 *)(tile + DS4_Q2K_SCALES + lane * 8), d = *(const uint2 *)(tile + DS4_Q2K_D + g * 8);
    float p0 = 0, p1 = 0, m0 = 0, m1 = 0;
#pragma unroll
    for (u32 n = 0; n < 2; n++) {
        const uint4 w = *(const uint4 *)(tile + n * 512 + lane * 16);
        int c[4] = {0, 0, 0, 0};
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 mask = 0x03030303u << (2 * i);
            mma_u8(c, w.x & mask, w.y & mask, w.z & mask, w.w & mask, g == 2 * i ? x.x[n] : 0u, g == 2 * i + 1 ? x.x[n] : 0u);
        }
        const u32 e0 = sm.x >> (16 * n), e1 = sm.y >> (16 * n);
        p0 += x.s[n] * (float)(c[0] * (int)(e0 & 15) + c[1] * (int)(e0 >> 8 & 15));
        p1 += x.s[n] * (float)(c[2] * (int)(e1 & 15) + c[3] * (int)(e1 >> 8 & 15));
        m0 += (float)(e0 >> 4 & 15) * x.ma[n] + (float)(e0 >> 12 & 15) * x.mb[n];
        m1 += (float)(e1 >> 4 & 15) * x.ma[n] + (float)(e1 >> 12 & 15) * x.mb[n];
    }
    v0 += half_lo(d.x) * p0 - half_hi(d.x) * m0;
    v1 += half_lo(d.y) * p1 - half_hi(d.y) * m1;
}

// The block's 32 channels of the sublayer's output: y of warp r is row r, of a lane its channel.
// `shared`: the shared expert's partials, [2 tiles][8 warps][R][16].
template <int R> DS4_DEV float down(Block<R> &k, Consumer &c, const float *shared, u32 number) {
    using B = Block<R>;
    const u32 lane = k.lane, t = lane & 3, kc = k.w & 7, half = k.w >> 3;
    float *red = k.partials(); // experts [R][16 warps][32]
#pragma unroll 1
    for (u32 r = 0; r < R; r++) {
        float v[2][2] = {{0, 0}, {0, 0}};
#pragma unroll 1
        for (u32 i = 0; i < USED / 2; i++) {
            const u32 slot = r * USED + 2 * i + half;
            const u8 *at = k.ws + B::X::hidden + (size_t)slot * (F * 2) + (kc * 8 + lane / 8) * 64 + (lane & 7) / 2 * 16;
            Q2kActs x;
            Line l[2] = {load_line(at), load_line(at + 256)};
#pragma unroll
            for (u32 n = 0; n < 2; n++) {
                if (l[n].tag != number) l[n] = poll_line(at + 256 * n, number);
                warp_sync();
                const u32 v4 = lane & 1 ? l[n].hi : l[n].lo;
                int sum = dot4(v4, 0x01010101u, 0);
                sum += (int)xor_u((u32)sum, 1);
                sum += (int)xor_u((u32)sum, 2);
                const float scale = bits_f(l[n].scale), m = scale * (float)sum;
                x.x[n] = v4;
                x.s[n] = shfl_f(scale, 8 * t) * bits_f((127u - 2 * t) << 23); // codes of block t stand 2 t bits up
                x.ma[n] = shfl_f(m, 8 * t), x.mb[n] = shfl_f(m, 8 * t + 4);
            }
            if (i == 0 && r == 0) k.mark(24);
            const u8 *record = c.pair(DS4_Q2K_PAIR);
            if (!DS4_EXPERIMENT(2)) {
                add_q2k(record, lane, x, v[0][0], v[0][1]);
                add_q2k(record + DS4_Q2K_TILE, lane, x, v[1][0], v[1][1]);
            }
            c.pair_done();
        }
        // Over the quarters: lane t keeps row g + 8 (t & 1) of tile t / 2.
        const float a = (t & 1 ? v[0][1] : v[0][0]) + xor_f(t & 1 ? v[0][0] : v[0][1], 1);
        const float b = (t & 1 ? v[1][1] : v[1][0]) + xor_f(t & 1 ? v[1][0] : v[1][1], 1);
        red[(r * 16 + k.w) * 32 + (t >> 1) * 16 + (t & 1) * 8 + lane / 4] = (t & 2 ? b : a) + xor_f(t & 2 ? a : b, 2);
    }
    consumer_sync();
    if (k.w >= R) return 0;
    const float *p = shared + (lane / 16 * 8 * R + k.w) * 16 + lane % 16;
    return sum_parts(red + k.w * 512 + lane, 32, 16) + sum_parts(p, R * 16, 8);
}

} // namespace ds4
