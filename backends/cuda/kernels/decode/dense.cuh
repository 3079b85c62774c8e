// Q8 records and f16 rows against the activations of R rows.
#pragma once
#include "stream.cuh"

namespace ds4 {

// Eight elements of a vector, fetched before the words that they are to multiply are waited for.
DS4_DEV void load_weights(float (&v)[8], const float *weight, u32 column) {
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = 1;
    if (weight) {
        const uint4 a = load_const16(weight + column), b = load_const16(weight + column + 4);
        v[0] = bits_f(a.x), v[1] = bits_f(a.y), v[2] = bits_f(a.z), v[3] = bits_f(a.w);
        v[4] = bits_f(b.x), v[5] = bits_f(b.y), v[6] = bits_f(b.z), v[7] = bits_f(b.w);
    }
}

// The activations of one column block of 256, as the B operand of a Q8 record. D = 8 / R blocks of 32
// share a product: column n of B is block `D q + n % D` of row n / D and zero for the other blocks, so
// every column of the accumulator is the integer sum of one block of one row.
template <int R> struct Acts {
    static constexpr int D = 8 / R;
    u32 x[R][2];        // this lane's codes of block D q + g % D of row g / D, columns 8 t .. 8 t + 8
    float fa[R], fb[R]; // scales of the accumulator's columns 2 t and 2 t + 1
    DS4_DEV void scales(const float (&s)[R], u32 t) {
#pragma unroll
        for (int q = 0; q < R; q++) {
            fa[q] = shfl_f(s[q], 8 * t);
            fb[q] = shfl_f(s[q], 8 * t + 4);
        }
    }
    // From lines: row r's begin at `lines + r * row_bytes`; `kc`: column block.
    DS4_DEV void start(Line (&l)[R], const u8 *lines, size_t row_bytes, u32 kc, u32 lane) {
        const u32 g = lane >> 2, t = lane & 3;
#pragma unroll
        for (int q = 0; q < R; q++) l[q] = load_line(lines + g / D * row_bytes + ((kc * 8 + q * D + g % D) * 4 + t) * 16);
    }
    DS4_DEV void finish(Line (&l)[R], const u8 *lines, size_t row_bytes, u32 kc, u32 lane, u32 number) {
        const u32 g = lane >> 2, t = lane & 3;
        float s[R];
#pragma unroll
        for (int q = 0; q < R; q++) {
            if (l[q].tag != number) l[q] = poll_line(lines + g / D * row_bytes + ((kc * 8 + q * D + g % D) * 4 + t) * 16, number);
            x[q][0] = l[q].lo, x[q][1] = l[q].hi;
            s[q] = bits_f(l[q].scale);
        }
        warp_sync();
        scales(s, t);
    }
    // From stamped floats, times `weight` if there is one. `squares`: sum of squares of the column block
    // before the weight, of row g / D.
    DS4_DEV void quantise(const u8 *from, size_t row_bytes, const float *weight, u32 kc, u32 lane, u32 tag, float *squares) {
        const u32 g = lane >> 2, t = lane & 3;
        float s[R], ss = 0, hold = 0;
#pragma unroll
        for (int q = 0; q < R; q++) {
            const u32 column = kc * 256 + (q * D + g % D) * 32 + t * 8;
            float v[8], wv[8];
            load_weights(wv, weight, column);
            poll_fours<2>(v, from + g / D * row_bytes + column * 4, 16, tag);
            float part = 0, top = 0;
#pragma unroll
            for (int j = 0; j < 8; j++) {
                part += v[j] * v[j];
                v[j] *= wv[j];
                top = fmaxf(top, fabsf(v[j]));
                if (!(fabsf(v[j]) < 3.4e38f)) top = bits_f(0x7f800000u);
            }
            warp_sync();
            part += xor_f(part, 1);
            part += xor_f(part, 2);
            top = fmaxf(top, xor_f(top, 1));
            top = fmaxf(top, xor_f(top, 2));
            const bool zero = !(top > 1e-36f && top < 3.4e38f);
            const float inverse = 127.f * rcp_f(top);
            s[q] = top < 3.4e38f ? (zero ? 0.f : top * (1.f / 127.f)) : bits_f(0x7fc00000u);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                u32 c = 0;
#pragma unroll
                for (int j = 0; j < 4; j++) c |= (zero ? 0u : (u32)round_i(v[4 * h + j] * inverse) & 255u) << (8 * j);
                x[q][h] = c;
            }
            // Sum over the blocks of the row in the same order for every R: neighbours first.
            if (D >= 2) part += xor_f(part, 4);
            if (D >= 4) part += xor_f(part, 8);
            if (D >= 8) part += xor_f(part, 16);
            if (R == 8) ss += part;
            else if (q == 0) ss = part;
            else if (R == 2) ss += part;
            else { // R == 4: (0 + 1) + (2 + 3)
                if (q == 1) ss += part;
                if (q == 2) hold = part;
                if (q == 3) ss += hold + part;
            }
        }
        *squares = ss;
        scales(s, t);
    }
};

// Sums of one 16-row tile of this warp: rows g and g + 8, R rows of activations, kept apart by quarters
// of the column block so that every R adds in the same order.
template <int R> struct Sums {
    float v[2][R];
    DS4_DEV void clear() {
#pragma unroll
        for (int q = 0; q < R; q++) v[0][q] = v[1][q] = 0;
    }
    DS4_DEV void add_q8(const u8 *record, const Acts<R> &a, u32 lane) {
        constexpr int D = 8 / R;
        const u32 g = lane >> 2, t = lane & 3;
#pragma unroll
        for (int q = 0; q < R; q++) {
            int c[4] = {0, 0, 0, 0}, d[4] = {0, 0, 0, 0};
#pragma unroll
            for (int j = 0; j < D; j++) {
                const uint4 w = *(const uint4 *)(record + (q * D + j) * 512 + lane * 16);
                const bool mine = g % D == (u32)j;
                mma_s8(j & 1 ? d : c, w.x, w.y, w.z, w.w, mine ? a.x[q][0] : 0u, mine ? a.x[q][1] : 0u);
            }
            const u32 pair = (q * D + 2 * t % D) / 2;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const u32 s = *(const u32 *)(record + DS4_Q8_SCALES + (g * 4 + pair) * 8 + h * 4);
                v[h][q] += fmaf((float)(c[2 * h + 1] + d[2 * h + 1]) * half_hi(s), a.fb[q], (float)(c[2 * h] + d[2 * h]) * half_lo(s) * a.fa[q]);
            }
        }
    }
    // Writes the tile's sums to `out[row of activations * 16 + row]`.
    DS4_DEV void store(float *out, u32 lane) {
        const u32 g = lane >> 2, t = lane & 3;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float s;
            if (R == 1) {
                s = v[h][0] + xor_f(v[h][0], 1);
                s += xor_f(s, 2);
                if (t == 0) out[g + 8 * h] = s;
            } else if (R == 2) {
                const float a = v[h][0] + xor_f(v[h][0], 1), b = v[h][R - 1] + xor_f(v[h][R - 1], 1);
                s = a + b;
                if ((t & 1) == 0) out[(t >> 1) * 16 + g + 8 * h] = s;
            } else {
                s = (v[h][0] + v[h][1 % R]) + (v[h][2 % R] + v[h][3 % R]);
                out[t * 16 + g + 8 * h] = s;
            }
        }
    }
};

// Eight values of a lane become their sums over the warp: value (lane >> 2) of them comes back.
DS4_DEV float reduce_eight(const float (&v)[8], u32 lane) {
    float a[4], b[2], c;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const bool up = lane & 16;
        a[i] = (up ? v[4 + i] : v[i]) + xor_f(up ? v[i] : v[4 + i], 16);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const bool up = lane & 8;
        b[i] = (up ? a[2 + i] : a[i]) + xor_f(up ? a[i] : a[2 + i], 8);
    }
    c = (lane & 4 ? b[1] : b[0]) + xor_f(lane & 4 ? b[0] : b[1], 4);
    c += xor_f(c, 2);
    c += xor_f(c, 1);
    return c;
}

// f32 activations of a lane for f16 rows: 8 columns of each row.
template <int R> struct Floats {
    float v[R][8];
    DS4_DEV void load(const u8 *from, size_t row_bytes, u32 column, const float *weight, u32 tag) {
        float wv[8];
        load_weights(wv, weight, column);
#pragma unroll
        for (int r = 0; r < R; r++) {
            poll_fours<2>(v[r], from + r * row_bytes + column * 4, 16, tag);
#pragma unroll
            for (int j = 0; j < 8; j++) v[r][j] *= wv[j];
        }
        warp_sync();
    }
    DS4_DEV float dot(uint4 w, int r) const {
        const u32 h[4] = {w.x, w.y, w.z, w.w};
        float s = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            s = fmaf(half_lo(h[i]), v[r][2 * i], s);
            s = fmaf(half_hi(h[i]), v[r][2 * i + 1], s);
        }
        return s;
    }
};

// `n` slots of rows against x; sums over the warp go to `out[(row * R + r)]`, R <= 4.
template <int R> DS4_DEV void float_rows(Consumer &c, u32 n, const Floats<R> &x, float *out) {
    constexpr u32 PER = 8 / R; // rows at once
    for (u32 i = 0; i < n; i += PER) {
        float v[8];
#pragma unroll
        for (u32 k = 0; k < PER; k++) {
            if (i + k < n) {
                const uint4 w = *(const uint4 *)(c.rows() + c.lane * 16);
#pragma unroll
                for (int r = 0; r < R; r++) v[k * R + r] = x.dot(w, r);
                c.rows_done();
            } else
#pragma unroll
                for (int r = 0; r < R; r++) v[k * R + r] = 0;
        }
        const float s = reduce_eight(v, c.lane);
        const u32 at = c.lane >> 2;
        if ((c.lane & 3) == 0 && i + at / R < n) out[i * R + at] = s;
    }
}

// Sum of `n` partials (a multiple of 4), `step` floats apart, in one order.
DS4_DEV float sum_parts(const float *p, u32 step, u32 n) {
    float a = 0;
#pragma unroll 4
    for (u32 i = 0; i < n; i += 4, p += 4 * step) a += (p[0] + p[step]) + (p[2 * step] + p[3 * step]);
    return a;
}

} // namespace ds4
