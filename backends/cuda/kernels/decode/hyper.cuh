// The turn between sublayers: hc_post, the mixing products, gates, weighted sum and norm.
//
// Block b keeps channels 32 b .. 32 b + 32 of all streams. After a sublayer it forms the new streams
// there and its part of the 24 mixing products and of the streams' Gram matrix, which gives both root
// mean squares without another exchange: mean(v^2) is its trace, and the norm of x = sum pre[j] X[j] is
// a quadratic form. Every block adds up the parts that x needs (4 products, 10 of the Gram matrix); a
// service block adds up the rest and runs Sinkhorn, which is needed only at the next hc_post.
#pragma once
#include "block.cuh"

namespace ds4 {

// Products that a warp is to form: task k of w, w + 16, w + 32; tasks 0..4 are the products for `pre`,
// 4..14 the Gram matrix, 14..34 the other products.
DS4_DEV int mix_row(u32 k) { return k < HC ? (int)k : k >= N_CRIT && k < N_CRIT + N_REST ? (int)(k - (N_CRIT - HC)) : -1; }
DS4_DEV void gram_pair(u32 e, u32 &i, u32 &j) {
    i = e < 4 ? 0 : e < 7 ? 1 : e < 9 ? 2 : 3;
    j = e < 4 ? e : e < 7 ? e - 3 : e < 9 ? e - 5 : 3;
}

// Fetches the rows of `fn` for this block's channels, f16 [n_mix][HC][32], into shared memory where
// attention keeps its rows; an async_wait and a consumer_sync are to follow.
template <int R> DS4_DEV void fetch_mix(const Block<R> &k, const void *fn, u32 n_mix) {
    if (k.tid < n_mix * (HC * 4)) async_copy16(smem_addr(shared_memory()) + Block<R>::S::kv + k.tid * 16, (const u8 *)fn + ((size_t)k.b * n_mix * (HC * 4) + k.tid) * 16);
}

// Parts of the mixing products of the streams in shared memory.
template <int R> DS4_DEV void mix_out(Block<R> &k, u32 n_mix, u32 turn, u32 tag) {
    using B = Block<R>;
    const u32 n_tasks = N_CRIT + (n_mix > HC ? N_REST : 0);
#pragma unroll 1
    for (u32 r = 0; r < R; r++) {
        const float *x = k.f(B::S::streams) + r * HC * 32;
        const float4 p = *(const float4 *)(x + k.lane * 4);
        float v[3];
#pragma unroll
        for (u32 z = 0; z < 3; z++) {
            const u32 task = k.w + 16 * z;
            const int m = mix_row(task);
            v[z] = 0;
            if (m >= 0) {
                const uint2 h = *(const uint2 *)(shared_memory() + B::S::kv + (u32)m * (HC * 64) + k.lane * 8);
                v[z] = (half_lo(h.x) * p.x + half_hi(h.x) * p.y) + (half_lo(h.y) * p.z + half_hi(h.y) * p.w);
            } else if (z == 0) {
                u32 i, j;
                gram_pair(task - HC, i, j);
                v[z] = x[i * 32 + k.lane] * x[j * 32 + k.lane];
            }
        }
#pragma unroll
        for (u32 m = 16; m; m >>= 1)
#pragma unroll
            for (u32 z = 0; z < 3; z++) v[z] += xor_f(v[z], m);
        const u32 task = k.w + 16 * k.lane; // lane z stores product z
        if (k.lane < 3 && task < n_tasks) {
            u8 *to = task < N_CRIT ? k.ws + B::X::crit + (((turn * R + r) * N_CRIT + task) * W + k.b) * 4
                                   : k.ws + B::X::rest + (((turn * R + r) * N_REST + task - N_CRIT) * W + k.b) * 4;
            store_one(to, stamp(k.lane == 0 ? v[0] : k.lane == 1 ? v[1] : v[2], tag));
        }
        warp_sync();
    }
}

// Brings a turn's gates into shared memory, by a warp that has nothing else to do; a consumer_sync is to
// follow before turn_out.
template <int R> DS4_DEV void fetch_gates(Block<R> &k, u32 turn, u32 number) {
    using B = Block<R>;
    for (u32 r = 0; r < R; r++)
        if (k.lane < N_GATES) k.f(B::S::totals)[r * 64 + 32 + k.lane] = poll_one(k.ws + B::X::gates + (turn * R + r) * 256 + k.lane * 4, number);
    warp_sync();
}

// hc_post of `y` (of warp r the row r, of a lane its channel; warps below R), then the parts of the next
// turn's products. The gates are in shared memory, the rows of fetch_mix on their way; `tag`: of the next turn.
template <int R> DS4_DEV void turn_out(Block<R> &k, float y, u32 n_mix, u32 turn, u32 tag) {
    using B = Block<R>;
    if (k.w < R) {
        const u32 r = k.w;
        const float *g = k.f(B::S::totals) + r * 64 + 32;
        float *x = k.f(B::S::streams) + r * HC * 32 + k.lane;
        float old[HC];
#pragma unroll
        for (u32 j = 0; j < HC; j++) old[j] = x[j * 32];
#pragma unroll
        for (u32 i = 0; i < HC; i++) {
            float mixed = 0;
#pragma unroll
            for (u32 j = 0; j < HC; j++) mixed += g[HC + j * HC + i] * old[j];
            x[i * 32] = g[i] * y + mixed;
        }
    }
    async_wait();
    consumer_sync();
    mix_out(k, n_mix, turn, tag);
}

// Adds up one value of every block; all lanes get the sum.
DS4_DEV float gather(const u8 *p, u32 lane, u32 tag) {
    float v[4];
    poll_fours<1>(v, p + lane * 16, 16, tag);
    warp_sync();
    return warp_sum((v[0] + v[1]) + (v[2] + v[3]));
}

// The normed input of a sublayer (or of the output matrix): this block's 32 channels of it, as lines
// and, outside the head, as floats.
template <int R> DS4_DEV void turn_in(Block<R> &k, u32 turn, const float *base, const float *scale, const float *norm, u32 number) {
    using B = Block<R>;
    float *totals = k.f(B::S::totals);
    float bases[HC], scaled = 0, weight = 0;
    if (k.w < R) { // fetched while the products come
        const uint4 v = load_const16(base);
        bases[0] = bits_f(v.x), bases[1] = bits_f(v.y), bases[2] = bits_f(v.z), bases[3] = bits_f(v.w);
        scaled = scale[0], weight = norm[k.b * 32 + k.lane];
    }
#pragma unroll 1
    for (u32 i = k.w; i < R * N_CRIT; i += 16) {
        const u32 r = i / N_CRIT, v = i % N_CRIT;
        const float sum = gather(k.ws + B::X::crit + ((turn * R + r) * N_CRIT + v) * W * 4, k.lane, number);
        if (k.lane == 0) totals[r * 64 + v] = sum;
    }
    async_wait(); // of the next layer's description
    consumer_sync();
    k.mark(turn == TURN_FFN ? 18 : 0);
    if (k.w < R) {
        const u32 r = k.w, channel = k.b * 32 + k.lane;
        const float *t = totals + r * 64, *gram = t + HC;
        const float inv = rsqrt_f((gram[0] + gram[4] + gram[7] + gram[9]) * (1.f / (HC * E)) + DS4_RMS_EPS);
        float pre[HC], v = 0, squares = 0;
        const float *x = k.f(B::S::streams) + r * HC * 32 + k.lane;
#pragma unroll
        for (u32 j = 0; j < HC; j++) {
            pre[j] = sigmoid(t[j] * inv * scaled + bases[j]) + DS4_HC_EPS;
            v += pre[j] * x[j * 32];
        }
#pragma unroll
        for (u32 i = 0, e = 0; i < HC; i++)
#pragma unroll
            for (u32 j = i; j < HC; j++, e++) squares += (i == j ? 1.f : 2.f) * pre[i] * pre[j] * gram[e];
        v = weight * (v * rsqrt_f(squares * (1.f / E) + DS4_RMS_EPS));
        if (turn != TURN_HEAD) store_one(k.ws + B::X::xf + ((turn * R + r) * E + channel) * 4, stamp(v, number));
        store_block(k.ws + B::X::x + (turn * R + r) * (E * 2) + k.b * 64, v, k.lane, number);
    }
}

// The service: `post` and the mixing matrix of every row.
template <int R> DS4_DEV void gates_service(Block<R> &k, u32 turn, const float *base, const float *scale, u32 number) {
    using B = Block<R>;
    float *totals = k.f(B::S::totals); // [R][64]: 20 products, then the Gram matrix
    consumer_sync();                   // the turn before has read them
#pragma unroll 1
    for (u32 i = k.w; i < R * (N_REST + HC * (HC + 1) / 2); i += 16) {
        const u32 r = i / 30, v = i % 30;
        const u8 *p = v < N_REST ? k.ws + B::X::rest + ((turn * R + r) * N_REST + v) * W * 4
                                 : k.ws + B::X::crit + ((turn * R + r) * N_CRIT + HC + v - N_REST) * W * 4;
        const float sum = gather(p, k.lane, number);
        if (k.lane == 0) totals[r * 64 + v] = sum;
    }
    consumer_sync();
    if (k.w < R) {
        const u32 r = k.w, lane = k.lane;
        const float *t = totals + r * 64, *gram = t + N_REST;
        const float inv = rsqrt_f((gram[0] + gram[4] + gram[7] + gram[9]) * (1.f / (HC * E)) + DS4_RMS_EPS);
        u8 *to = k.ws + B::X::gates + (turn * R + r) * 256;
        if (lane < HC) store_one(to + lane * 4, stamp(2.f * sigmoid(t[lane] * inv * scale[1] + base[HC + lane]), number));
        // Lane 4 j + k holds entry (source j, destination k); lanes 16..32 repeat it.
        const u32 e = lane & 15;
        float c = t[HC + e] * inv * scale[2] + base[2 * HC + e];
        float top = fmaxf(c, xor_f(c, 1));
        top = fmaxf(top, xor_f(top, 2));
        c = exp_f(c - top);
        float sum = c + xor_f(c, 1);
        sum += xor_f(sum, 2);
        c = c * rcp_f(sum) + DS4_HC_EPS;
#pragma unroll 1
        for (u32 i = 0; i < DS4_N_SINKHORN; i++) {
            if (i) {
                sum = c + xor_f(c, 1);
                sum += xor_f(sum, 2);
                c *= rcp_f(sum + DS4_HC_EPS);
            }
            sum = c + xor_f(c, 4);
            sum += xor_f(sum, 8);
            c *= rcp_f(sum + DS4_HC_EPS);
        }
        if (lane < HC * HC) store_one(to + (HC + lane) * 4, stamp(c, number));
    }
}

} // namespace ds4
