// The services: blocks without weights that finish what the products of the normed input begin, beside
// the large query product. One block makes the window row, one the compressed row, one the index row;
// each says by a flag that its rows are in memory.
#pragma once
#include "attend.cuh"
#include "block.cuh"

namespace ds4 {

// x to the nearest E4M3 value, |x| <= 448.
DS4_DEV float to_e4m3(float x) {
    const u32 exponent = f_bits(x) >> 23 & 255;
    const float step = bits_f(((exponent < 121 ? 121 : exponent) - 3) << 23);
    return (float)round_i(x * pow2_inverse(step)) * step;
}

// Norm, rotation, rounding and storing of a row of 512 by one warp (model.md 5.1, 8.1).
DS4_DEV void finish_row(float (&v)[16], const float *norm, const float *angles, u16 *to, u32 lane) {
    float squares = 0;
#pragma unroll
    for (u32 i = 0; i < 16; i++) squares += v[i] * v[i];
    const float inv = rsqrt_f(warp_sum(squares) * (1.f / HEAD) + DS4_RMS_EPS);
    float top = 0;
#pragma unroll
    for (u32 i = 0; i < 16; i++) {
        v[i] = norm[lane * 16 + i] * (v[i] * inv);
        top = fmaxf(top, fabsf(v[i]));
    }
    top = fmaxf(top, xor_f(top, 1));
    top = fmaxf(top, xor_f(top, 2)); // of the block of 64
    if (lane >= 28) {
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            const u32 a = (lane - 28) * 8 + i;
            const float c = angles[2 * a], s = angles[2 * a + 1], x = v[2 * i], y = v[2 * i + 1];
            v[2 * i] = x * c - y * s;
            v[2 * i + 1] = x * s + y * c;
        }
    } else {
        const float scale = pow2_at_least(fmaxf(top, 1e-4f) * (1.f / 448.f)), inverse = pow2_inverse(scale);
#pragma unroll
        for (u32 i = 0; i < 16; i++) v[i] = to_e4m3(clamp(v[i] * inverse, -448.f, 448.f)) * scale;
    }
    u32 p[8];
#pragma unroll
    for (u32 i = 0; i < 8; i++) p[i] = pack_bf16(v[2 * i], v[2 * i + 1]);
    *(uint4 *)(to + lane * 16) = uint4{p[0], p[1], p[2], p[3]};
    *(uint4 *)(to + lane * 16 + 8) = uint4{p[4], p[5], p[6], p[7]};
}

DS4_DEV void raise(u32 *flag, u32 number, u32 tid) {
    consumer_sync();
    if (tid == 0) {
        fence_gpu();
        store_release(flag, number);
    }
}

template <int R> DS4_DEV void window_service(Block<R> &k, u32 kind, const Ds4DecodeLayer &l, const Ds4DecodeCache &cache, u32 number) {
    using B = Block<R>;
    if (k.w < R) {
        const u32 r = k.w;
        float v[16];
        poll_fours<4>(v, k.ws + B::X::kv + (r * HEAD + k.lane * 16) * 4, 16, number);
        warp_sync();
        if (k.slot(r) != PAD) {
            u16 *to = cache.window + ((size_t)k.slot(r) * cache.window_rows + k.position(r) % cache.window_rows) * HEAD;
            finish_row(v, l.kv_norm, k.angles(r, kind == DS4_SLIDING ? 0 : 1), to, k.lane);
        }
    }
    raise(k.flag(FLAG_WINDOW), number, k.tid);
}

// A compressor after its products: the frontier, and the rows that this step completes.
// `at_kv`, `at_gate`: [R][stride] stamped products.
template <int R, bool INDEX>
DS4_DEV void compress_service(Block<R> &k, u32 kind, size_t at_kv, size_t at_gate, u32 stride, const float *ape, const float *norm, float *frontier,
                              u32 n_frontier, u16 *rows, u32 *flag, u32 number) {
    using B = Block<R>;
    constexpr u32 D = INDEX ? IDIM : HEAD;
    const u32 ratio = kind == DS4_CSA ? CSA_RATIO : HCA_RATIO, dim = kind == DS4_CSA ? 2 * D : D, n_pooled = kind == DS4_CSA ? 8 : HCA_RATIO;
    for (u32 r = 0; r < R; r++) {
        const u32 position = k.position(r);
        float *to = frontier + ((size_t)k.ring_slot(r) * n_frontier + position % n_frontier) * 2 * dim;
        const bool pad = k.slot(r) == PAD;
        for (u32 i = k.tid; i < dim; i += 512) {
            const float a = poll_one(k.ws + at_kv + (r * stride + i) * 4, number), g = poll_one(k.ws + at_gate + (r * stride + i) * 4, number);
            if (!pad) to[i] = a, to[dim + i] = g + ape[position % ratio * dim + i];
        }
    }
    float *pooled = k.f(B::S::scores);
    for (u32 r = 0; r < R; r++) {
        const u32 end = k.position(r) + 1;
        if (k.slot(r) == PAD || end % ratio) continue;
        consumer_sync(); // the frontier is written, the row before used
        if (k.tid < D) {
            const float *ring = frontier + (size_t)k.slot(r) * n_frontier * 2 * dim;
            const u32 first = end > n_pooled ? end - n_pooled : 0;
            float top = -3.4e38f, weight = 0, sum = 0;
            constexpr u32 U = 8; // loads in flight
            for (u32 p0 = first; p0 < end; p0 += U) {
                float a[U], g[U];
#pragma unroll
                for (u32 i = 0; i < U; i++) {
                    const u32 p = p0 + i < end ? p0 + i : end - 1;
                    const float *row = ring + (size_t)(p % n_frontier) * 2 * dim + (kind == DS4_CSA && p + ratio >= end ? D : 0) + k.tid;
                    a[i] = row[0], g[i] = row[dim];
                }
#pragma unroll
                for (u32 i = 0; i < U; i++)
                    if (p0 + i < end) {
                        const float high = fmaxf(top, g[i]), keep = exp_f(top - high), p = exp_f(g[i] - high);
                        weight = weight * keep + p;
                        sum = sum * keep + p * a[i];
                        top = high;
                    }
            }
            pooled[k.tid] = sum * rcp_f(weight);
        }
        consumer_sync();
        if (k.w == 0) {
            u16 *to = rows + ((size_t)(k.base(r) / ratio) + end / ratio - 1) * D;
            const float *angles = k.angles(r, kind == DS4_CSA ? 2 : 3);
            if (INDEX) {
                float v[4], squares = 0;
#pragma unroll
                for (u32 j = 0; j < 4; j++) {
                    v[j] = pooled[k.lane * 4 + j];
                    squares += v[j] * v[j];
                }
                const float inv = rsqrt_f(warp_sum(squares) * (1.f / IDIM) + DS4_RMS_EPS);
#pragma unroll
                for (u32 j = 0; j < 4; j++) v[j] = norm[k.lane * 4 + j] * (v[j] * inv);
                const float scale = index_round(v, angles, k.lane);
                *(uint2 *)(to + k.lane * 4) = uint2{pack_bf16(v[0] * scale, v[1] * scale), pack_bf16(v[2] * scale, v[3] * scale)};
            } else {
                float v[16];
#pragma unroll
                for (u32 j = 0; j < 16; j++) v[j] = pooled[k.lane * 16 + j];
                finish_row(v, norm, angles, to, k.lane);
            }
        }
    }
    raise(flag, number, k.tid);
}

} // namespace ds4
