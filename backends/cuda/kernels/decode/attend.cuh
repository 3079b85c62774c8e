// Index scores, selection and attention of R rows. Group of blocks `b / 16` has heads 8 (b / 16) .. + 8,
// block b % 16 of it a sixteenth of the attended rows.
#pragma once
#include "hyper.cuh"

namespace ds4 {

DS4_DEV u32 order(float x) { // larger is larger
    const u32 v = f_bits(x);
    return v & 0x80000000u ? ~v : v | 0x80000000u;
}

// ---- index queries: rotation, Hadamard transform, rounding to E2M1 (model.md 8.2) -------------------

DS4_DEV float pow2_at_least(float x) { // 2^ceil(log2 x), x normal or a subnormal next to the smallest normal
    const u32 v = f_bits(x);
    return bits_f(((v >> 23) + ((v & 0x7fffffu) != 0)) << 23);
}

DS4_DEV float pow2_inverse(float x) { return bits_f(0x7f000000u - f_bits(x)); } // of 2^-126 .. 2^126

// A row of 128 over a warp, four a lane; `v` becomes twice the E2M1 values; returns half their scale.
DS4_DEV float index_round(float (&v)[4], const float *angles, u32 lane) {
    if (lane >= 16) {
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            const u32 a = (lane - 16) * 2 + i;
            const float c = angles[2 * a], s = angles[2 * a + 1], x = v[2 * i], y = v[2 * i + 1];
            v[2 * i] = x * c - y * s;
            v[2 * i + 1] = x * s + y * c;
        }
    }
    warp_sync();
    float a = v[0] + v[1], b = v[0] - v[1], c = v[2] + v[3], d = v[2] - v[3];
    v[0] = a + c, v[1] = b + d, v[2] = a - c, v[3] = b - d;
#pragma unroll
    for (u32 m = 1; m < 32; m *= 2)
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            const float other = xor_f(v[j], m);
            v[j] = lane & m ? other - v[j] : v[j] + other;
        }
    float top = 0;
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
        v[j] *= 0.08838834764831845f; // 128^-1/2
        top = fmaxf(top, fabsf(v[j]));
    }
#pragma unroll
    for (u32 m = 1; m < 8; m *= 2) top = fmaxf(top, xor_f(top, m));
    const float scale = pow2_at_least(fmaxf(top, 7.052966104933725e-38f) * (1.f / 6.f)), inverse = pow2_inverse(scale);
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
        const float x = clamp(v[j] * inverse, -6.f, 6.f), m = fabsf(x), step = m < 2.f ? 0.5f : m < 4.f ? 1.f : 2.f;
        v[j] = 2.f * step * (float)round_i(x * (m < 2.f ? 2.f : m < 4.f ? 1.f : 0.5f));
    }
    return 0.5f * scale;
}

template <int R> DS4_DEV void index_query(Block<R> &k, u32 number) {
    using B = Block<R>;
    if (k.b >= IHEADS || k.w >= R) return;
    const u32 r = k.w;
    float v[4];
    poll_fours<1>(v, k.ws + B::X::iqf + (r * IQ + k.b * IDIM + k.lane * 4) * 4, 16, number);
    warp_sync();
    const float scale = index_round(v, k.angles(r, 1), k.lane);
    u32 c = 0;
#pragma unroll
    for (u32 j = 0; j < 4; j++) c |= ((u32)round_i(v[j]) & 255u) << (8 * j);
    const u32 hi = xor_u(c, 1);
    if (!(k.lane & 1)) {
        const Line l = {c, hi, f_bits(scale), number};
        store_line(k.ws + B::X::iq + r * (IQ * 2) + (k.b * 16 + k.lane / 2) * 16, l);
    }
}

// ---- scores ----------------------------------------------------------------------------------------

template <int R> DS4_DEV void index_scores(Block<R> &k, const Ds4DecodeCache &cache, u32 number) {
    using B = Block<R>;
    constexpr u32 STRIDE = 320; // bytes of a head's query
    u8 *iq = shared_memory() + B::S::kv;
    float *weights = k.f(B::S::small), *parts = k.f(B::S::scores);
    const u32 g = k.lane >> 2, t = k.lane & 3;
    if (k.tid == 0) wait_flag(k.flag(FLAG_INDEX), number);
    for (u32 r = 0; r < R; r++) {
        const u32 n_visible = (k.position(r) + 1) / CSA_RATIO;
        if (n_visible <= TOP_K || k.slot(r) == PAD) continue;
        consumer_sync(); // the row before has read what follows
        for (u32 i = k.tid; i < IQ / 8; i += 512) {
            const Line l = poll_line(k.ws + B::X::iq + r * (IQ * 2) + i * 16, number);
            const float s = bits_f(l.scale);
            u32 v[4];
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                const u32 c = (j < 2 ? l.lo : l.hi) >> (16 * (j & 1));
                v[j] = pack_bf16((float)(int8_t)(c & 255) * s, (float)(int8_t)(c >> 8 & 255) * s);
            }
            *(uint4 *)(iq + i / 16 * STRIDE + i % 16 * 16) = uint4{v[0], v[1], v[2], v[3]};
        }
        if (k.tid < IHEADS) weights[k.tid] = poll_one(k.ws + B::X::iw + (r * IHEADS + k.tid) * 4, number) * 0.011048543456039806f; // (128 * 64)^-1/2
        consumer_sync();
        const u8 *keys = (const u8 *)(cache.index_rows + (size_t)(k.base(r) / CSA_RATIO) * IDIM);
        float *out = (float *)(k.ws + B::X::scores) + (size_t)r * k.s->score_stride;
        const u32 n_tiles = (n_visible + 15) / 16, most = (n_tiles + W - 1) / W;
        // Warps that share a tile of 16 index rows, each with some of the heads.
        const u32 share = most >= 16 ? 1 : most >= 8 ? 2 : most >= 4 ? 4 : 8, at_once = 16 / share;
        for (u32 first = 0; first < most; first += at_once) {
            const u32 tile = k.b + (first + k.w / share) * W;
            if (tile < n_tiles) {
                uint4 a[2][4];
#pragma unroll
                for (u32 h = 0; h < 2; h++) {
                    u32 row = tile * 16 + g + 8 * h;
                    if (row >= n_visible) row = n_visible - 1;
#pragma unroll
                    for (u32 m = 0; m < 4; m++) a[h][m] = load_fresh16(keys + (size_t)row * (IDIM * 2) + m * 64 + t * 16);
                }
                float s[2] = {0, 0};
                for (u32 n = k.w % share * (8 / share); n < (k.w % share + 1) * (8 / share); n++) {
                    float c[4] = {0, 0, 0, 0};
#pragma unroll
                    for (u32 m = 0; m < 4; m++) {
                        const uint4 q = *(const uint4 *)(iq + (n * 8 + g) * STRIDE + m * 64 + t * 16);
                        mma_bf16(c, a[0][m].x, a[1][m].x, a[0][m].y, a[1][m].y, q.x, q.y);
                        mma_bf16(c, a[0][m].z, a[1][m].z, a[0][m].w, a[1][m].w, q.z, q.w);
                    }
                    const float wa = weights[n * 8 + 2 * t], wb = weights[n * 8 + 2 * t + 1];
                    s[0] += wa * fmaxf(c[0], 0.f) + wb * fmaxf(c[1], 0.f);
                    s[1] += wa * fmaxf(c[2], 0.f) + wb * fmaxf(c[3], 0.f);
                }
#pragma unroll
                for (u32 h = 0; h < 2; h++) {
                    s[h] += xor_f(s[h], 1);
                    s[h] += xor_f(s[h], 2);
                    if (t == 0) parts[k.w * 16 + g + 8 * h] = s[h];
                }
            }
            consumer_sync();
            if (k.tid < at_once * 16) {
                const u32 mine = k.b + (first + k.tid / 16) * W, row = mine * 16 + k.tid % 16;
                if (row < n_visible) {
                    float s = 0;
                    for (u32 i = 0; i < share; i++) s += parts[(k.tid / 16 * share + i) * 16 + k.tid % 16];
                    out[row] = s;
                }
            }
            consumer_sync();
        }
    }
    consumer_sync();
    if (k.tid == 0) {
        fence_gpu();
        add_release(k.scored(), 1);
    }
}

// ---- selection ---------------------------------------------------------------------------------------

// Sum over the consumer threads before this one; `all` gets the whole sum. Two consumer_syncs.
DS4_DEV u32 scan(u32 v, u32 *sums, u32 tid, u32 &all) {
    const u32 lane = tid & 31, w = tid >> 5;
    u32 x = v;
#pragma unroll
    for (u32 m = 1; m < 32; m *= 2) {
        const u32 y = shfl_u(x, lane - m);
        if (lane >= m) x += y;
    }
    consumer_sync();
    if (lane == 31) sums[w] = x;
    consumer_sync();
    u32 s = lane < 16 ? sums[lane] : 0;
#pragma unroll
    for (u32 m = 1; m < 16; m *= 2) {
        const u32 y = shfl_u(s, lane - m);
        if (lane >= m) s += y;
    }
    all = shfl_u(s, 15);
    const u32 before = shfl_u(s, w ? w - 1 : 0);
    return (w ? before : 0) + x - v;
}

constexpr u32 SELECT_SHIFT = 19, SELECT_BINS = 1u << (32 - SELECT_SHIFT), SELECT_LIST = 4096; // words: SELECT_BINS + 64

// The TOP_K largest of n > TOP_K scores, of equal ones those of lowest index, in an order that depends on
// the scores alone; those numbered [lo, hi) are written to `out`. `hist`: SELECT_BINS words, then 64.
//
// A histogram of the upper bits of the keys finds the bin in which number TOP_K falls; what lies above it is
// taken, what lies in it is listed and ranked. Thread t reads scores 4 t .. of every 2,048.
DS4_DEV void select_rows(const float *scores, u32 n, u32 lo, u32 hi, u32 *out, u32 *hist, u32 tid) {
    u32 *sums = hist + SELECT_BINS;
    struct Keys {
        u32 v[4];
    };
    auto read = [&](u32 i) { // 0, which is no key of a number, where there is none
        Keys k = {{0, 0, 0, 0}};
        const u32 at = i * 2048 + tid * 4;
        if (at < n) {
            const uint4 x = load_fresh16(scores + at);
            k.v[0] = order(bits_f(x.x)), k.v[1] = order(bits_f(x.y)), k.v[2] = order(bits_f(x.z)), k.v[3] = order(bits_f(x.w));
#pragma unroll
            for (u32 j = 1; j < 4; j++)
                if (at + j >= n) k.v[j] = 0;
        }
        return k;
    };
    const Keys held = read(0);
    auto each = [&](auto f) { // f(index, key), the next keys on their way
        Keys k = held;
#pragma unroll 1
        for (u32 i = 0; i * 2048 < n; i++) {
            const Keys next = read(i + 1);
#pragma unroll
            for (u32 j = 0; j < 4; j++)
                if (k.v[j]) f(i * 2048 + tid * 4 + j, k.v[j]);
            k = next;
        }
        warp_sync();
    };
#pragma unroll 4
    for (u32 i = tid * 4; i < SELECT_BINS; i += 2048) *(uint4 *)(hist + i) = uint4{0, 0, 0, 0};
    consumer_sync();
    each([&](u32, u32 key) { shared_add(hist + (key >> SELECT_SHIFT), 1); });
    consumer_sync();
    // 16 bins a thread, from the top.
    constexpr u32 PER = SELECT_BINS / 512;
    const u32 top = SELECT_BINS - 1 - tid * PER;
    u32 mine = 0, all;
#pragma unroll
    for (u32 i = 0; i < PER; i += 4) {
        const uint4 c = *(const uint4 *)(hist + top - i - 3);
        mine += c.x + c.y + c.z + c.w;
    }
    u32 before = scan(mine, sums, tid, all);
    if (before < TOP_K && before + mine >= TOP_K) {
        u32 bin = top;
#pragma unroll 1
        while (before + hist[bin] < TOP_K) before += hist[bin--];
        sums[32] = bin, sums[33] = before, sums[34] = hist[bin];
    }
    consumer_sync();
    const u32 bin = sums[32], above = sums[33], within = sums[34], need = TOP_K - above;
    u32 n_above = 0, n_within = 0;
    each([&](u32, u32 key) {
        n_above += key >> SELECT_SHIFT > bin;
        n_within += key >> SELECT_SHIFT == bin;
    });
    u32 at = scan(n_above, sums, tid, all), listed = scan(n_within, sums, tid, all);
    const bool lists = within <= SELECT_LIST;
    u32 *keys = hist, *indices = hist + SELECT_LIST;
    each([&](u32 index, u32 key) {
        if (key >> SELECT_SHIFT > bin) {
            if (at >= lo && at < hi) out[at - lo] = index;
            at++;
        } else if (lists && key >> SELECT_SHIFT == bin) keys[listed] = key, indices[listed] = index, listed++;
    });
    consumer_sync();
    if (lists) {
#pragma unroll 1
        for (u32 i = tid; i < within; i += 512) {
            const u32 key = keys[i], index = indices[i];
            u32 rank = 0;
#pragma unroll 4
            for (u32 j = 0; j < within; j++) rank += keys[j] > key || (keys[j] == key && indices[j] < index);
            if (rank < need && above + rank >= lo && above + rank < hi) out[above + rank - lo] = index;
        }
        warp_sync();
        return;
    }
    // Thousands of scores that agree in their upper bits: the threshold bit by bit, then the first of the
    // equal ones.
    u32 threshold = bin << SELECT_SHIFT;
#pragma unroll 1
    for (u32 bit = 1u << (SELECT_SHIFT - 1); bit; bit >>= 1) {
        u32 count = 0;
        each([&](u32, u32 key) { count += key >= (threshold | bit); });
        scan(count, sums, tid, all);
        if (all >= TOP_K) threshold |= bit;
    }
    u32 greater = 0;
    each([&](u32, u32 key) { greater += key > threshold && key >> SELECT_SHIFT == bin; });
    at = above + scan(greater, sums, tid, all);
    u32 taken = above + all;
    each([&](u32 index, u32 key) {
        if (key > threshold && key >> SELECT_SHIFT == bin) {
            if (at >= lo && at < hi) out[at - lo] = index;
            at++;
        }
    });
#pragma unroll 1
    for (u32 i = 0; i * 2048 < n; i++) { // in order of index
        const Keys k = read(i);
        u32 equal = 0;
#pragma unroll
        for (u32 j = 0; j < 4; j++) equal += k.v[j] == threshold;
        warp_sync();
        u32 to = taken + scan(equal, sums, tid, all);
#pragma unroll
        for (u32 j = 0; j < 4; j++)
            if (k.v[j] == threshold) {
                if (to < TOP_K && to >= lo && to < hi) out[to - lo] = i * 2048 + tid * 4 + j;
                to++;
            }
        taken += all;
        warp_sync();
    }
}

// ---- attention -------------------------------------------------------------------------------------

template <int R> DS4_DEV void attend(Block<R> &k, u32 kind, const Ds4DecodeCache &cache, u32 csa, u32 number) {
    using B = Block<R>;
    const u32 group = k.b / SPLITS, split = k.b % SPLITS, g = k.lane >> 2, t = k.lane & 3, w = k.w, lane = k.lane;
    u8 *kv = shared_memory() + B::S::kv;
    float *S = k.f(B::S::scores), *small = k.f(B::S::small); // small: squares [4][8], factors [8] at 32, sums at 64
    u8 *P = shared_memory() + B::S::probs;
    u32 *chosen = (u32 *)(shared_memory() + B::S::chosen);
    if (k.tid < 1 + (kind != DS4_SLIDING) + (kind == DS4_CSA)) wait_flag(k.flag(k.tid), number); // window, rows, index
    if (k.tid == 3 && kind == DS4_CSA && k.s->selects) {
        const u32 want = W * ((k.epoch - 1) * k.s->n_csa + csa + 1);
        u32 spins = 0;
        while ((int)(load_acquire(k.scored()) - want) < 0 && !DS4_EXPERIMENT(1)) DS4_SPIN_GUARD(spins);
    }
    consumer_sync();
    k.mark(27);
    for (u32 r = 0; r < R; r++) {
        const u32 position = k.position(r), n_window = position + 1 < WINDOW ? position + 1 : WINDOW;
        const u32 ratio = kind == DS4_CSA ? CSA_RATIO : HCA_RATIO, n_visible = kind == DS4_SLIDING ? 0 : (position + 1) / ratio;
        const bool selected = kind == DS4_CSA && n_visible > TOP_K;
        const u32 n = n_window + (selected ? TOP_K : n_visible), begin = n * split / SPLITS, end = n * (split + 1) / SPLITS;
        if (selected) {
            const u32 lo = begin > n_window ? begin - n_window : 0, hi = end > n_window ? end - n_window : 0;
            const float *scores = (const float *)(k.ws + B::X::scores) + (size_t)r * k.s->score_stride;
            consumer_sync();
            select_rows(scores, n_visible, lo, hi, chosen, (u32 *)kv, k.tid);
            consumer_sync();
            k.mark(26);
        }
        const u16 *window = cache.window + (size_t)k.ring_slot(r) * cache.window_rows * HEAD;
        const u32 ring = (position + 1 - n_window) % cache.window_rows;
        const u16 *rows = kind == DS4_SLIDING ? nullptr : cache.rows + (size_t)(k.base(r) / ratio) * HEAD;
        // A warp of the first twelve: tile of 16 attended rows w % 3, quarter of the channels w / 3.
        const u32 tile = w % 3, quarter = w / 3;
        u32 q[8][2];
        float o[2][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}}, top = -1e30f, sum = 0;
        for (u32 c0 = begin; c0 == begin || c0 < end; c0 += KV_ROWS) {
            const u32 m = end - c0 < KV_ROWS ? end - c0 : KV_ROWS;
            if (c0 != begin) consumer_sync(); // the chunk before is used up
#pragma unroll 1
            for (u32 i = k.tid; i < m * 64; i += 512) {
                const u32 j = c0 + i / 64, at = ring + j;
                const u16 *from;
                if (j < n_window) from = window + (size_t)(at < cache.window_rows ? at : at - cache.window_rows) * HEAD;
                else from = rows + (size_t)(selected ? chosen[j - (begin > n_window ? begin : n_window)] : j - n_window) * HEAD;
                async_copy16(smem_addr(kv + i / 64 * KV_STRIDE + i % 64 * 16), from + i % 64 * 8);
            }
            if (c0 == begin && w < 12) {
                const u8 *from = k.ws + B::X::q + (r * Q + (group * 8 + g) * HEAD + quarter * 128 + 2 * t) * 4;
                float squares = 0;
                const float *angles = k.angles(r, kind == DS4_SLIDING ? 0 : 1);
#pragma unroll
                for (u32 half = 0; half < 2; half++) {
                    u32 spins = 0;
                    Two raw[8];
                    for (;;) {
                        u32 bad = 0;
#pragma unroll
                        for (u32 i = 0; i < 8; i++) {
                            raw[i] = load_two(from + (half * 8 + i) * 32);
                            bad |= (raw[i].v[0] ^ number) | (raw[i].v[1] ^ number);
                        }
                        if (!(bad & 3) || DS4_EXPERIMENT(1)) break;
                        DS4_SPIN_GUARD(spins);
                    }
                    warp_sync();
#pragma unroll
                    for (u32 i = 0; i < 8; i++) {
                        float x = unstamp(raw[i].v[0]), y = unstamp(raw[i].v[1]);
                        squares += x * x + y * y;
                        if (half && quarter == 3) {
                            const u32 a = i * 4 + t;
                            const float c = angles[2 * a], s = angles[2 * a + 1], z = x;
                            x = z * c - y * s;
                            y = z * s + y * c;
                        }
                        q[half * 4 + i / 2][i & 1] = pack_bf16(x, y);
                    }
                }
                squares += xor_f(squares, 1);
                squares += xor_f(squares, 2);
                if (tile == 0 && t == 0) small[quarter * 8 + g] = squares;
            }
            async_wait();
            consumer_sync();
            k.mark(10);
            if (w < 12 && tile * 16 < m) {
                float c[4] = {0, 0, 0, 0};
                u32 row = tile * 16 + (lane & 15);
                if (row >= m) row = m - 1;
                const u32 at = smem_addr(kv + row * KV_STRIDE + quarter * 256 + (lane >> 4) * 16);
#pragma unroll
                for (u32 i = 0; i < 8; i++) {
                    u32 a[4];
                    ldmatrix(a, at + i * 32);
                    mma_bf16(c, a[0], a[1], a[2], a[3], q[i][0], q[i][1]);
                }
                float *to = S + (quarter * 48 + tile * 16 + g) * 8 + 2 * t;
                to[0] = c[0], to[1] = c[1], to[64] = c[2], to[65] = c[3];
            }
            consumer_sync();
            if (w < 8) { // head w of the group
                const float squares = (small[w] + small[8 + w]) + (small[16 + w] + small[24 + w]);
                const float scale = rsqrt_f(squares * (1.f / HEAD) + DS4_RMS_EPS) * 0.04419417382415922f; // 512^-1/2
                float z[2], chunk_top = -1e30f;
#pragma unroll
                for (u32 h = 0; h < 2; h++) {
                    const u32 row = lane + 32 * h;
                    z[h] = -1e30f;
                    if (row < m) {
                        const float *p = S + row * 8 + w;
                        z[h] = ((p[0] + p[48 * 8]) + (p[2 * 48 * 8] + p[3 * 48 * 8])) * scale;
                    }
                    chunk_top = fmaxf(chunk_top, z[h]);
                }
#pragma unroll
                for (u32 s = 16; s; s >>= 1) chunk_top = fmaxf(chunk_top, xor_f(chunk_top, s));
                const float new_top = fmaxf(top, chunk_top), factor = exp_f(top - new_top);
                float part = 0;
#pragma unroll
                for (u32 h = 0; h < 2; h++) {
                    const u32 row = lane + 32 * h;
                    const float p = row < m ? exp_f(z[h] - new_top) : 0.f;
                    part += p;
                    if (row < 48) *(u16 *)(P + (w * P_STRIDE + row) * 2) = (u16)pack_bf16(p, 0.f);
                }
                sum = sum * factor + warp_sum(part);
                top = new_top;
                if (lane == 0) small[32 + w] = factor;
            }
            consumer_sync();
            // o^T, 32 channels of a warp by 8 heads.
            const float fa = small[32 + 2 * t], fb = small[33 + 2 * t];
#pragma unroll
            for (u32 d = 0; d < 2; d++) o[d][0] *= fa, o[d][1] *= fb, o[d][2] *= fa, o[d][3] *= fb;
            for (u32 i = 0; i * 16 < m; i++) {
                u32 row = i * 16 + (lane >> 4) * 8 + (lane & 7);
                if (row >= m) row = m - 1;
                const u32 at = smem_addr(kv + row * KV_STRIDE + w * 64 + (lane >> 3 & 1) * 16);
                const u32 b0 = *(const u32 *)(P + (g * P_STRIDE + i * 16 + 2 * t) * 2), b1 = *(const u32 *)(P + (g * P_STRIDE + i * 16 + 8 + 2 * t) * 2);
#pragma unroll
                for (u32 d = 0; d < 2; d++) {
                    u32 a[4];
                    ldmatrix_trans(a, at + d * 32);
                    mma_bf16(o[d], a[0], a[1], a[2], a[3], b0, b1);
                }
            }
        }
        const size_t unit = (r * GROUPS + group) * SPLITS + split;
        if (w < 8 && lane < 2) store_one(k.ws + B::X::ml + (unit * 16 + w * 2 + lane) * 4, stamp(lane ? sum : top, number));
        u8 *to = k.ws + B::X::part + (unit * 8 * HEAD + 2 * t * HEAD + w * 32 + g) * 4;
#pragma unroll
        for (u32 d = 0; d < 2; d++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) store_one(to + ((i & 1) * HEAD + d * 16 + (i >> 1) * 8) * 4, stamp(o[d][i], number));
        consumer_sync();
    }
}

// Joins the parts: block b has half a head, its lines of the output projection's input.
template <int R> DS4_DEV void combine(Block<R> &k, u32 kind, const float *sinks, u32 number) {
    using B = Block<R>;
    const u32 group = k.b / SPLITS, h = k.b % SPLITS / 2, half = k.b & 1, head = group * 8 + h, lane = k.lane;
    for (u32 r = 0; r < R; r++) {
        const size_t unit = (r * GROUPS + group) * SPLITS;
        u32 spins = 0;
        Two ml;
        for (;;) {
            ml = load_two(k.ws + B::X::ml + ((unit + (lane & 15)) * 16 + h * 2) * 4);
            if (!(((ml.v[0] ^ number) | (ml.v[1] ^ number)) & 3) || DS4_EXPERIMENT(1)) break;
            DS4_SPIN_GUARD(spins);
        }
        warp_sync();
        const float mine = unstamp(ml.v[0]);
        float top = mine;
#pragma unroll
        for (u32 m = 8; m; m >>= 1) top = fmaxf(top, xor_f(top, m));
        top = fmaxf(top, sinks[head]);
        const float weight = exp_f(mine - top);
        float sum = unstamp(ml.v[1]) * weight;
#pragma unroll
        for (u32 m = 8; m; m >>= 1) sum += xor_f(sum, m);
        sum += exp_f(sinks[head] - top);
        float *parts = k.partials();
        {
            const u32 pair = k.tid >> 6, at = k.tid & 63;
            const float wa = shfl_f(weight, 2 * pair), wb = shfl_f(weight, 2 * pair + 1);
            float v[8];
            poll_fours<2>(v, k.ws + B::X::part + ((unit + 2 * pair) * 8 * HEAD + h * HEAD + half * 256 + at * 4) * 4, 8 * HEAD * 4, number);
            warp_sync();
#pragma unroll
            for (u32 j = 0; j < 4; j++) parts[pair * 256 + at * 4 + j] = v[j] * wa + v[4 + j] * wb;
        }
        consumer_sync();
        k.mark(12);
        if (k.w == 8 && r == 0) fetch_gates(k, TURN_ATTN, number);
        if (k.w < 8) {
            const u32 at = k.w * 32 + lane, channel = half * 256 + at;
            float v = ((parts[at] + parts[256 + at]) + (parts[512 + at] + parts[768 + at])) +
                      ((parts[1024 + at] + parts[1280 + at]) + (parts[1536 + at] + parts[1792 + at]));
            v *= rcp_f(sum);
            const float other = xor_f(v, 1);
            if (channel >= HEAD - ROPE) {
                const float *a = k.angles(r, kind == DS4_SLIDING ? 0 : 1) + ((channel - (HEAD - ROPE)) & ~1u);
                v = lane & 1 ? v * a[0] - other * a[1] : v * a[0] + other * a[1];
            }
            warp_sync();
            store_block(k.ws + B::X::o + ((size_t)r * Q + head * HEAD + half * 256 + k.w * 32) * 2, v, lane, number);
        }
    }
}

} // namespace ds4
