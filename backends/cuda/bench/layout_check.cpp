// Host check of layout.cuh: random blocks of the file's formats are repacked word by word, and every
// weight is read back through the documentation's own formulas and compared with a decoder of the
// file's blocks. Exhaustive over the positions of two row tiles and two column blocks, and over all
// grid rows, sign codes and scales by random draws.
//   c++ -std=c++17 -O1 -I../kernels layout_check.cpp -o layout_check && ./layout_check
#include "layout.cuh"
#include "iq2_grid.cuh"
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

static const uint32_t GRID[256] = DS4_IQ2_GRID;
static const int LEVEL[3] = {8, 25, 43};
static float half(uint32_t h) {
    const int e = h >> 10 & 31, m = h & 1023;
    const float v = e ? std::ldexp(1024.f + m, e - 25) : std::ldexp((float)m, -24);
    return h >> 15 ? -v : v;
}

struct Iq2 { int code; float scale; };
static Iq2 file_iq2(const uint8_t *block, int c) {
    const uint8_t *group = block + 2 + c / 32 * 8;
    const uint32_t word = ds4_load32(group + 4);
    const int l = c % 32 / 8, j = c % 8;
    const int signs = word >> (7 * l) & 127;
    const bool negative = j < 7 ? signs >> j & 1 : __builtin_parity(signs);
    const int level = LEVEL[GRID[group[l]] >> (4 * j) & 15];
    return {negative ? -level : level, half(ds4_load16(block)) * (0.5f + (word >> 28)) / 4};
}
static Iq2 tile_iq2(const uint8_t *tile, int r, int c) {
    const int g = r & 7, h = r >> 3, b = c >> 5, t = c >> 3 & 3, j = c & 7, lane = 4 * g + t, i = 2 * (b & 1) + h;
    const int index = tile[lane * 16 + b * 2 + h];
    uint32_t signs = ds4_load32(tile + DS4_IQ2_SIGNS + lane * 16 + (b >> 1) * 4);
    signs = i < 3 ? signs << i : signs >> 1;
    const bool negative = signs >> (4 * j + 2) & 1;
    const int level = LEVEL[GRID[index] >> (4 * j) & 15];
    const int scale_lane = 4 * g + (b >> 1), nibble = tile[DS4_IQ2_NIBBLES + scale_lane * 2 + h] >> (4 * (b & 1)) & 15;
    return {negative ? -level : level, half(ds4_load16(tile + DS4_IQ2_D + g * 4 + h * 2)) * (0.5f + nibble) / 4};
}

int main() {
    std::mt19937 rng(1);
    auto fill = [&](std::vector<uint8_t> &v) { for (auto &x : v) x = rng(); };
    size_t bad = 0, n = 0;
    const int K = 512;
    { // Q8
        std::vector<uint8_t> src(32 * K / 32 * 34);
        fill(src);
        std::vector<uint32_t> out(ds4_q8_bytes(32, K) / 4);
        for (size_t w = 0; w < out.size(); w++) out[w] = ds4_q8_word(src.data(), K, w);
        const uint8_t *o = (const uint8_t *)out.data();
        for (int r = 0; r < 32; r++)
            for (int c = 0; c < K; c++, n++) {
                const uint8_t *block = &src[(r * (K / 32) + c / 32) * 34];
                bad += o[ds4_q8_code_at(K, r, c)] != block[2 + c % 32];
                bad += ds4_load16(o + ds4_q8_scale_at(K, r, c)) != ds4_load16(block);
            }
    }
    for (int draw = 0; draw < 64; draw++) { // IQ2 pair
        std::vector<uint8_t> gate(64 * K / 256 * 66), up(gate.size());
        fill(gate), fill(up);
        for (auto *v : {&gate, &up}) for (size_t i = 0; i < v->size(); i += 66) (*v)[i + 1] &= 0x3f;
        std::vector<uint32_t> out(ds4_iq2_pair_bytes(64, K) / 4);
        for (size_t w = 0; w < out.size(); w++) out[w] = ds4_iq2_pair_word(gate.data(), up.data(), K, w);
        for (int part = 0; part < 2; part++)
            for (int r = 0; r < 64; r++)
                for (int c = 0; c < K; c++, n++) {
                    const Iq2 a = file_iq2(&(part ? up : gate)[(r * (K / 256) + c / 256) * 66], c % 256);
                    const uint8_t *tile = (const uint8_t *)out.data() + (size_t)(r / 32 * (K / 256) + c / 256) * DS4_IQ2_PAIR +
                                          (2 * part + (r / 16 & 1)) * DS4_IQ2_TILE;
                    const Iq2 b = tile_iq2(tile, r & 15, c % 256);
                    bad += a.code != b.code || a.scale != b.scale;
                }
    }
    { // Q2K
        std::vector<uint8_t> src(64 * K / 256 * 84);
        fill(src);
        std::vector<uint32_t> out(ds4_q2k_bytes(64, K) / 4);
        for (size_t w = 0; w < out.size(); w++) out[w] = ds4_q2k_word(src.data(), K, w);
        for (int r = 0; r < 64; r++)
            for (int c = 0; c < K; c++, n++) {
                const uint8_t *block = &src[(r * (K / 256) + c / 256) * 84];
                const int e = c % 256, q = e % 128 / 32;
                const int code = block[16 + e / 128 * 32 + e % 32] >> (2 * q) & 3;
                const uint8_t *tile = (const uint8_t *)out.data() + (size_t)(r / 32 * (K / 256) + c / 256) * DS4_Q2K_PAIR + (r / 16 & 1) * DS4_Q2K_TILE;
                const int g = r & 7, h = r >> 3 & 1, t = e % 16 / 4, a = h + 2 * (e % 32 / 16), lane = 4 * g + t;
                bad += (tile[e / 128 * 512 + lane * 16 + a * 4 + e % 4] >> (2 * q) & 3) != code;
                const int sub = e / 16, sl = 4 * g + (sub % 8) / 2;
                bad += tile[DS4_Q2K_SCALES + sl * 8 + h * 4 + sub / 8 * 2 + sub % 2] != block[sub];
                bad += ds4_load32(tile + DS4_Q2K_D + g * 8 + h * 4) != ds4_load32(block + 80);
            }
    }
    { // HC
        const int M = 24, H = 4, E = 64;
        std::vector<uint8_t> src(2 * M * H * E);
        fill(src);
        std::vector<uint32_t> out(src.size() / 4);
        for (size_t w = 0; w < out.size(); w++) out[w] = ds4_hc_word(src.data(), M, H, E, w);
        const uint8_t *o = (const uint8_t *)out.data();
        for (int m = 0; m < M; m++) for (int s = 0; s < H; s++) for (int c = 0; c < E; c++, n++)
            bad += ds4_load16(o + 2 * (((c / 32 * M + m) * H + s) * 32 + c % 32)) != ds4_load16(&src[2 * ((m * H + s) * E + c)]);
    }
    printf("%zu weights, %zu differences\n", n, bad);
    return bad != 0;
}
