// Selection on the host, as fibers, against a stable sort: few and many scores, ties, zeros, all equal.
//   c++ -std=c++17 -O2 -DDS4_EMULATE select_emulate.cpp -o select_emulate && ./select_emulate
#include <cstdint>
typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
#include "simt.h"
#include "../kernels/decode/attend.cuh"
#include <algorithm>
#include <random>
#include <set>

int main() {
    using namespace ds4;
    std::mt19937 rng(3);
    int bad = 0, n_tests = 0;
    for (u32 n : {513u, 525u, 2048u, 2049u, 8191u, 8192u, 20001u, 32768u})
        for (int kind = 0; kind < 5; kind++) {
            std::vector<float> s((n + 63) / 64 * 64, 1e30f);
            for (u32 i = 0; i < n; i++) {
                const float u = rng() / 4294967296.f;
                s[i] = kind == 0 ? u * 10 : kind == 1 ? std::max(0.f, u - 0.9f) : kind == 2 ? (float)(rng() % 7) : kind == 3 ? 1.f : (u - 0.5f) * std::exp2(20 * (rng() / 4294967296.f) - 10);
            }
            std::vector<u32> want(n);
            for (u32 i = 0; i < n; i++) want[i] = i;
            std::stable_sort(want.begin(), want.end(), [&](u32 a, u32 b) { return s[a] > s[b]; });
            want.resize(TOP_K);
            std::vector<u32> got(TOP_K, ~0u);
            for (u32 part = 0; part < 4; part++)
                simt::run(1, 512, (SELECT_BINS + 64) * 4, [&] { select_rows(s.data(), n, part * 128, part * 128 + 128, got.data() + part * 128, (u32 *)shared_memory(), tid_x()); });
            const bool same = std::set<u32>(got.begin(), got.end()) == std::set<u32>(want.begin(), want.end());
            n_tests++, bad += !same;
            if (!same) printf("n %u kind %d differs\n", n, kind);
        }
    printf("%d selections, %d differ\n", n_tests, bad);
    return bad != 0;
}
