// How weights lie in device memory: the one place that all kernels, the repacking and the host
// agree on. Plain C++ as well as CUDA, so that every map is tested on the host.
//
// Kept as in the file (row-major, no repacking): F32, F16 and BF16 of any role except the `fn` of
// hyper-connections, and every quantised type that has no layout here ("raw").
//
//   weight                                        layout     bytes a 16 x 256 tile (file)
//   Q8_0 matrix [n_out, n_in]                     Q8         4,352 (4,352)
//   IQ2_XXS gate and up of an expert, together    IQ2 pair   1,120 (1,056)
//   Q2_K down of an expert                        Q2K        1,344 (1,344)
//   F16 `fn` of a hyper-connection                HC         same bytes as the file
//
// A layout is used when n_out is a multiple of 16 (IQ2 pair, Q2K: of 32) and n_in of 256; otherwise
// the weight stays raw. Records are contiguous and follow each other by (row tile, column block),
// columns fastest, so a run of row tiles is one run of bytes.
//
// Lanes: in every tile lane `4 g + t` (g < 8, t < 4) holds weights of rows g and g + 8, as
// mma.sync m16n8k32 wants its A operand: a0 row g, a1 row g + 8 (k of its first half), a2, a3 the
// same rows, k of the second half.
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef __CUDACC__
#define DS4_BOTH __host__ __device__ __forceinline__
#else
#define DS4_BOTH static inline
#endif

// ---- Q8: 16 rows x 256 columns -----------------------------------------------------------------
//
// offset   bytes
// 0        4,096   codes: block b of 32 columns (512 B each), lane (16 B each), operand a (4 B each):
//                  byte j is row g + 8 (a & 1), column 32 b + 8 t + 4 (a >> 1) + j
// 4,096    256     f16 scales: lane (8 B each), h (4 B each), q: row g + 8 h, block 2 t + q
#define DS4_Q8_RECORD 4352
#define DS4_Q8_SCALES 4096

// ---- IQ2 pair: 32 rows x 256 columns of gate and of up -----------------------------------------
//
// Four tiles: gate rows 0..16, gate rows 16..32, up rows 0..16, up rows 16..32; each
// offset   bytes
// 0        512     grid indices: lane (16 B each), block b of 32 columns (2 B each), h: row g + 8 h,
//                  columns 32 b + 8 t .. + 8. In A operands of block b: weights 0..4 are a0 (a1 for
//                  h = 1), weights 4..8 are a2 (a3).
// 512      512     signs: lane (16 B each), pair of blocks p (4 B each): bit 4 j + 2 of the word
//                  shifted left by i (i < 3) or right by 1 (i = 3) is set when weight j of group
//                  i = 2 (b & 1) + h, b = 2 p + (b & 1), is negative. All 8 signs of a group, so the
//                  parity that the file leaves out is in here.
// 1,024    64      scale nibbles: lane (2 B each), h: low nibble block 2 t, high nibble block 2 t + 1,
//                  of row g + 8 h
// 1,088    32      f16 d: g (4 B each), h: row g + 8 h
// Weight = d (0.5 + scale) / 4 * sign * {8, 25, 43}[grid].
#define DS4_IQ2_TILE 1120
#define DS4_IQ2_SIGNS 512
#define DS4_IQ2_NIBBLES 1024
#define DS4_IQ2_D 1088
#define DS4_IQ2_PAIR 4480

// ---- Q2K: 32 rows x 256 columns ----------------------------------------------------------------
//
// Two tiles (rows 0..16, rows 16..32), each
// offset   bytes
// 0        1,024   codes: half n of 128 columns (512 B each), lane (16 B each), operand a (4 B each):
//                  byte j, bits 2 r and 2 r + 1: row g + 8 (a & 1),
//                  column 128 n + 32 r + 16 (a >> 1) + 4 t + j
// 1,024    256     scale and min bytes: lane (8 B each), h (4 B each), n (2 B each), q: row g + 8 h,
//                  16 columns number 8 n + 2 t + q; scale in the low nibble, min in the high one
// 1,280    64      f16 d, dmin: g (8 B each), h (4 B each)
// Weight = d (scale) code - dmin (min).
#define DS4_Q2K_TILE 1344
#define DS4_Q2K_SCALES 1024
#define DS4_Q2K_D 1280
#define DS4_Q2K_PAIR 2688

// ---- HC: `fn` [n_mix, n_hc * n_embd] by 32 channels --------------------------------------------
//
// f16, [n_embd / 32][n_mix][n_hc][32]: channel tile, mix row, stream, channel.

// ---- sizes -------------------------------------------------------------------------------------

DS4_BOTH size_t ds4_q8_bytes(size_t n_out, size_t n_in) { return n_out / 16 * (n_in / 256) * DS4_Q8_RECORD; }
// Gate and up of one expert.
DS4_BOTH size_t ds4_iq2_pair_bytes(size_t n_out, size_t n_in) { return n_out / 32 * (n_in / 256) * DS4_IQ2_PAIR; }
DS4_BOTH size_t ds4_q2k_bytes(size_t n_out, size_t n_in) { return n_out / 32 * (n_in / 256) * DS4_Q2K_PAIR; }

// ---- repacking: destination 32-bit word `word`, gathered from the file's rows -----------------

DS4_BOTH uint32_t ds4_load16(const uint8_t *p) { return (uint32_t)p[0] | (uint32_t)p[1] << 8; }
DS4_BOTH uint32_t ds4_load32(const uint8_t *p) { return ds4_load16(p) | ds4_load16(p + 2) << 16; }

// `src`: rows of n_in / 32 blocks of 34 bytes (f16 d, 32 codes).
DS4_BOTH uint32_t ds4_q8_word(const uint8_t *src, size_t n_in, size_t word) {
    const size_t record = word / (DS4_Q8_RECORD / 4), n_kc = n_in / 256;
    const uint32_t w = (uint32_t)(word % (DS4_Q8_RECORD / 4));
    const size_t row0 = record / n_kc * 16, block0 = record % n_kc * 8;
    if (w < DS4_Q8_SCALES / 4) {
        const uint32_t b = w >> 7, lane = w >> 2 & 31, a = w & 3, g = lane >> 2, t = lane & 3;
        const uint8_t *block = src + ((row0 + g + 8 * (a & 1)) * (n_in / 32) + block0 + b) * 34;
        return ds4_load32(block + 2 + 8 * t + 4 * (a >> 1));
    }
    const uint32_t v = w - DS4_Q8_SCALES / 4, lane = v >> 1, h = v & 1, g = lane >> 2, t = lane & 3;
    const uint8_t *block = src + ((row0 + g + 8 * h) * (n_in / 32) + block0 + 2 * t) * 34;
    return ds4_load16(block) | ds4_load16(block + 34) << 16;
}

// The sign byte of a 7-bit code: the eighth sign makes their number even.
DS4_BOTH uint32_t ds4_iq2_signs(uint32_t code) {
    uint32_t parity = code ^ code >> 4;
    parity ^= parity >> 2;
    parity ^= parity >> 1;
    return code | (parity & 1) << 7;
}

// `gate`, `up`: rows of n_in / 256 blocks of 66 bytes (f16 d, 8 times 4 grid indices and a word of
// 4 sign codes of 7 bits and a scale of 4 bits), of one expert.
DS4_BOTH uint32_t ds4_iq2_pair_word(const uint8_t *gate, const uint8_t *up, size_t n_in, size_t word) {
    const size_t record = word / (DS4_IQ2_PAIR / 4), n_kc = n_in / 256;
    uint32_t w = (uint32_t)(word % (DS4_IQ2_PAIR / 4));
    const uint32_t tile = w / (DS4_IQ2_TILE / 4);
    w %= DS4_IQ2_TILE / 4;
    const size_t row0 = record / n_kc * 32 + (tile & 1) * 16, kc = record % n_kc;
    const uint8_t *src = tile & 2 ? up : gate;
#define DS4_IQ2_BLOCK(row) (src + ((row0 + (row)) * n_kc + kc) * 66)
    uint32_t out = 0;
    if (w < DS4_IQ2_SIGNS / 4) { // two blocks' indices
        const uint32_t lane = w >> 2, g = lane >> 2, t = lane & 3;
        for (uint32_t i = 0; i < 4; i++)
            out |= (uint32_t)DS4_IQ2_BLOCK(g + 8 * (i & 1))[2 + 8 * (2 * (w & 3) + (i >> 1)) + t] << (8 * i);
    } else if (w < DS4_IQ2_NIBBLES / 4) {
        const uint32_t v = w - DS4_IQ2_SIGNS / 4, lane = v >> 2, p = v & 3, g = lane >> 2, t = lane & 3;
        for (uint32_t i = 0; i < 4; i++) {
            const uint32_t codes = ds4_load32(DS4_IQ2_BLOCK(g + 8 * (i & 1)) + 6 + 8 * (2 * p + (i >> 1)));
            const uint32_t signs = ds4_iq2_signs(codes >> (7 * t) & 127);
            for (uint32_t j = 0; j < 8; j++)
                if (signs >> j & 1) out |= 1u << (i < 3 ? 4 * j + 2 - i : 4 * j + 3);
        }
    } else if (w < DS4_IQ2_D / 4) {
        const uint32_t v = w - DS4_IQ2_NIBBLES / 4; // two lanes
        for (uint32_t i = 0; i < 8; i++) {
            const uint32_t lane = 2 * v + (i >> 2), h = i >> 1 & 1, b = 2 * (lane & 3) + (i & 1);
            const uint32_t scale = ds4_load32(DS4_IQ2_BLOCK((lane >> 2) + 8 * h) + 6 + 8 * b) >> 28;
            out |= scale << (4 * i);
        }
    } else {
        const uint32_t g = w - DS4_IQ2_D / 4;
        out = ds4_load16(DS4_IQ2_BLOCK(g)) | ds4_load16(DS4_IQ2_BLOCK(g + 8)) << 16;
    }
#undef DS4_IQ2_BLOCK
    return out;
}

// `src`: rows of n_in / 256 blocks of 84 bytes (16 scale and min bytes, 64 of codes, f16 d, f16 dmin).
DS4_BOTH uint32_t ds4_q2k_word(const uint8_t *src, size_t n_in, size_t word) {
    const size_t record = word / (DS4_Q2K_PAIR / 4), n_kc = n_in / 256;
    uint32_t w = (uint32_t)(word % (DS4_Q2K_PAIR / 4));
    const uint32_t tile = w / (DS4_Q2K_TILE / 4);
    w %= DS4_Q2K_TILE / 4;
    const size_t row0 = record / n_kc * 32 + tile * 16, kc = record % n_kc;
#define DS4_Q2K_BLOCK(row) (src + ((row0 + (row)) * n_kc + kc) * 84)
    if (w < DS4_Q2K_SCALES / 4) {
        const uint32_t n = w >> 7, lane = w >> 2 & 31, a = w & 3, g = lane >> 2, t = lane & 3;
        return ds4_load32(DS4_Q2K_BLOCK(g + 8 * (a & 1)) + 16 + 32 * n + 16 * (a >> 1) + 4 * t);
    }
    if (w < DS4_Q2K_D / 4) {
        const uint32_t v = w - DS4_Q2K_SCALES / 4, lane = v >> 1, h = v & 1, g = lane >> 2, t = lane & 3;
        const uint8_t *block = DS4_Q2K_BLOCK(g + 8 * h);
        return ds4_load16(block + 2 * t) | ds4_load16(block + 8 + 2 * t) << 16;
    }
    const uint32_t v = w - DS4_Q2K_D / 4, g = v >> 1, h = v & 1;
    return ds4_load32(DS4_Q2K_BLOCK(g + 8 * h) + 80);
#undef DS4_Q2K_BLOCK
}

// `src`: f16 [n_mix, n_hc * n_embd]. A word is two channels.
DS4_BOTH uint32_t ds4_hc_word(const uint8_t *src, size_t n_mix, size_t n_hc, size_t n_embd, size_t word) {
    const size_t at = word * 2, channel = at % 32, stream = at / 32 % n_hc, row = at / (32 * n_hc) % n_mix,
                 tile = at / (32 * n_hc * n_mix);
    return ds4_load32(src + 2 * ((row * n_hc + stream) * n_embd + 32 * tile + channel));
}

// ---- single weights, for checks and plain kernels ----------------------------------------------

// Where the code and the f16 scale of a weight of a Q8 matrix are.
DS4_BOTH size_t ds4_q8_code_at(size_t n_in, size_t row, size_t column) {
    const size_t record = row / 16 * (n_in / 256) + column / 256;
    const uint32_t r = row & 15, c = column & 255, lane = (r & 7) * 4 + (c >> 3 & 3), a = (r >> 3) + 2 * (c >> 2 & 1);
    return record * DS4_Q8_RECORD + (c >> 5) * 512 + lane * 16 + a * 4 + (c & 3);
}
DS4_BOTH size_t ds4_q8_scale_at(size_t n_in, size_t row, size_t column) {
    const size_t record = row / 16 * (n_in / 256) + column / 256;
    const uint32_t r = row & 15, b = column >> 5 & 7;
    return record * DS4_Q8_RECORD + DS4_Q8_SCALES + ((r & 7) * 4 + (b >> 1)) * 8 + (r >> 3) * 4 + (b & 1) * 2;
}
