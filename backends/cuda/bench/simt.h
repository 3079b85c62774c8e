// A grid of CUDA threads on the host: every thread is a fiber with its own stack, run by one host
// thread. It serves to find index errors and missing waits of kernels that talk across blocks, before
// a device sees them. Memory is sequentially consistent here, so it cannot find missing fences.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define DS4_DEV inline
#define DS4_EXPERIMENT(bit) false
#define DS4_FULL 0xffffffffu
#define DS4_SPIN_GUARD(n) simt::wait_elsewhere()

struct uint4 { u32 x, y, z, w; };
struct uint2 { u32 x, y; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
static inline float2 make_float2(float a, float b) { return {a, b}; }

namespace simt {
struct Fiber { void *sp; bool done; int wait; };
struct Mma { u32 a[4], b[2], c[4]; };
struct Warp { u32 arg[32], out[32][4]; Mma mma[32]; int n; u64 gen; };
struct Bar { u64 gen; int n; };
struct Block { std::vector<uint8_t> smem; std::vector<Warp> warps; Bar named, all; };
static std::vector<Block> blocks;
static std::vector<Fiber> fibers;
static int n_threads, current;
static void *main_sp;
static std::function<void()> entry;
static u64 progress; // changes whenever something happened that a waiting fiber may wait for

extern "C" void simt_switch(void **from, void *to);
asm(R"(
.text
.globl simt_switch
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
static inline void yield_to_scheduler() { simt_switch(&fibers[current].sp, main_sp); }
static inline void wait_in_warp() { fibers[current].wait = 1; yield_to_scheduler(); }
static inline void wait_elsewhere() { fibers[current].wait = 2; yield_to_scheduler(); }
static void trampoline() {
    entry();
    fibers[current].done = true;
    for (;;) yield_to_scheduler();
}
static inline Warp &warp() { return blocks[current / n_threads].warps[current % n_threads / 32]; }
static inline int lane() { return current % 32; }
// Every lane gives its argument; the last computes; all go on.
template <class F> static inline void collective(F last) {
    Warp &w = warp();
    const u64 gen = w.gen;
    if (++w.n == 32) { last(w); w.n = 0; w.gen++; }
    else while (w.gen == gen) wait_in_warp();
}
static void run(int grid, int threads, size_t smem, std::function<void()> f) {
    n_threads = threads;
    entry = f;
    blocks.assign(grid, {});
    for (auto &b : blocks) { b.smem.assign(smem, 0xff); b.warps.assign(threads / 32, {}); b.named = {}; }
    const size_t stack = 32 << 10, n = (size_t)grid * threads;
    static uint8_t *stacks; static size_t have;
    if (have < n * stack) { if (stacks) free(stacks); stacks = (uint8_t *)aligned_alloc(4096, n * stack); have = n * stack; }
    fibers.assign(n, {});
    for (size_t i = 0; i < n; i++) {
        void **sp = (void **)(stacks + (i + 1) * stack) - 2;
        *sp = (void *)trampoline;
        sp -= 6;
        fibers[i] = {sp, false, 0};
    }
    size_t alive = n / 32, idle = 0;
    std::vector<char> dead(n / 32, 0);
    u64 seen = ~0ull;
    while (alive) {
        const u64 before = progress;
        for (size_t w = 0; w < n / 32; w++) {
            if (dead[w]) continue;
            // Run the warp's lanes until all of them wait for something outside the warp.
            for (bool again = true; again;) {
                again = false;
                int n_done = 0;
                for (int l = 0; l < 32; l++) {
                    Fiber &f = fibers[w * 32 + l];
                    if (f.done) { n_done++; continue; }
                    const u64 gen = blocks[w * 32 / n_threads].warps[w * 32 % n_threads / 32].gen;
                    f.wait = 0;
                    current = w * 32 + l;
                    simt_switch(&main_sp, f.sp);
                    if (blocks[w * 32 / n_threads].warps[w * 32 % n_threads / 32].gen != gen) again = true, progress++;
                    if (f.done) progress++;
                }
                if (n_done == 32) { dead[w] = 1; alive--; again = false; }
            }
        }
        if (progress == before && seen == before) {
            if (++idle > 2000) { fprintf(stderr, "simt: no progress, %zu warps alive\n", alive);
                for (size_t w = 0, k = 0; w < n / 32 && k < 20; w++) if (!dead[w]) { fprintf(stderr, " block %zu warp %zu wait %d\n", w * 32 / n_threads, w * 32 % n_threads / 32, fibers[w * 32].wait); k++; }
                abort(); }
        } else idle = 0;
        seen = progress;
    }
}
static inline uint8_t *smem() { return blocks[current / n_threads].smem.data(); }
} // namespace simt

static inline u32 tid_x() { return simt::current % simt::n_threads; }
static inline u32 block_x() { return simt::current / simt::n_threads; }
static inline u8 *shared_memory() { return simt::smem(); }
static inline u32 smem_addr(const void *p) { return (u32)((const uint8_t *)p - simt::smem()); }

static inline u32 load_shared(u32 a) { u32 v; memcpy(&v, simt::smem() + a, 4); return v; }

// mbarrier: [phase:1 | pending count | expected | tx]
struct EmuBar { u16 phase, expected; int16_t pending; u16 pad; };
static inline std::vector<int> &emu_tx() { static std::vector<int> v; return v; }
static inline EmuBar &ebar(u32 a) { return *(EmuBar *)(simt::smem() + a); }
static int &etx(u32 a) { static std::vector<std::vector<int>> tx; const size_t b = block_x(); if (tx.size() <= b) tx.resize(b + 1); if (tx[b].size() <= a) tx[b].resize(a + 8); return tx[b][a]; }
static inline void ebar_check(u32 a) { EmuBar &b = ebar(a); if (b.pending == 0 && etx(a) == 0) { b.phase ^= 1; b.pending = b.expected; simt::progress++; } if (b.pending < 0) { fprintf(stderr, "mbarrier over-arrival at %u\n", a); abort(); } }
static inline void mbar_init(u32 a, u32 n) { ebar(a) = {0, (u16)n, (int16_t)n, 0}; etx(a) = 0; }
static inline void mbar_init_fence() {}
static inline void mbar_expect(u32 a, u32 bytes) { etx(a) += bytes; ebar(a).pending--; ebar_check(a); }
static inline void mbar_arrive(u32 a, u32 n) { ebar(a).pending -= n; ebar_check(a); }
static inline bool mbar_try(u32 a, u32 parity) { return ebar(a).phase != parity; }
static inline void mbar_wait(u32 a, u32 parity) { while (!mbar_try(a, parity)) simt::wait_elsewhere(); }
static inline u64 stream_policy() { return 0; }
static inline void bulk_copy(u32 to, const void *from, u32 bytes, u32 bar, u64) {
    if ((to | bytes | (uintptr_t)from) & 15) { fprintf(stderr, "bulk copy misaligned: to %u from %p bytes %u\n", to, from, bytes); abort(); }
    memcpy(simt::smem() + to, from, bytes);
    etx(bar) -= bytes;
    ebar_check(bar);
}
static inline void async_copy16(u32 to, const void *from) { if ((to | (uintptr_t)from) & 15) abort(); memcpy(simt::smem() + to, from, 16); }
static inline void async_copy8(u32 to, const void *from) { if ((to | (uintptr_t)from) & 7) abort(); memcpy(simt::smem() + to, from, 8); }
static inline void async_wait() {}
static inline void renew(u32 &) {}
static inline void renew(u8 *&) {}
static inline void more_registers() {}
static inline void fewer_registers() {}
static inline void consumer_sync() {
    simt::Bar &b = simt::blocks[block_x()].named;
    const u64 gen = b.gen;
    if (++b.n == 512) { b.n = 0; b.gen++; simt::progress++; }
    else while (b.gen == gen) simt::wait_elsewhere();
}
static inline void block_sync() {
    simt::Bar &b = simt::blocks[block_x()].all;
    const u64 gen = b.gen;
    if (++b.n == simt::n_threads) { b.n = 0; b.gen++; simt::progress++; }
    else while (b.gen == gen) simt::wait_elsewhere();
}
#define EMU_LANES for (int l = 0; l < 32; l++)
static inline u32 shfl_u(u32 v, u32 from) { using namespace simt; Warp &w = warp(); w.arg[lane()] = v; u32 me = lane(); collective([](Warp &w) { EMU_LANES w.out[l][0] = w.arg[l]; }); return w.out[from & 31][0]; (void)me; }
static inline float shfl_f(float v, u32 from) { u32 b; memcpy(&b, &v, 4); b = shfl_u(b, from); memcpy(&v, &b, 4); return v; }
static inline u32 xor_u(u32 v, u32 mask) { return shfl_u(v, simt::lane() ^ mask); }
static inline float xor_f(float v, u32 mask) { return shfl_f(v, simt::lane() ^ mask); }
static inline u32 warp_max_u(u32 v) { using namespace simt; Warp &w = warp(); w.arg[lane()] = v; collective([](Warp &w) { u32 m = 0; EMU_LANES m = w.arg[l] > m ? w.arg[l] : m; EMU_LANES w.out[l][0] = m; }); return w.out[lane()][0]; }
static inline u32 warp_ballot(bool v) { using namespace simt; Warp &w = warp(); w.arg[lane()] = v; collective([](Warp &w) { u32 m = 0; EMU_LANES m |= w.arg[l] << l; EMU_LANES w.out[l][0] = m; }); return w.out[lane()][0]; }
static inline bool warp_any(bool v) { return warp_ballot(v) != 0; }
static inline void warp_sync() { simt::collective([](simt::Warp &) {}); }
static inline u32 popc(u32 v) { return __builtin_popcount(v); }
static inline u32 lowest(u32 v) { return __builtin_ctz(v); }
static inline u32 shared_add(u32 *p, u32 v) { u32 o = *p; *p += v; return o; }
static inline u32 f_bits(float x) { u32 b; memcpy(&b, &x, 4); return b; }
static inline float bits_f(u32 x) { float f; memcpy(&f, &x, 4); return f; }
static inline float emu_half(u32 h) { const int e = h >> 10 & 31, m = h & 1023; const float v = e == 31 ? (m ? NAN : INFINITY) : e ? ldexpf(1024.f + m, e - 25) : ldexpf((float)m, -24); return h >> 15 & 1 ? -v : v; }
static inline float half_lo(u32 h) { return emu_half(h & 0xffff); }
static inline float half_hi(u32 h) { return emu_half(h >> 16); }
static inline u32 emu_bf16(float x) { u32 b = f_bits(x); return (b + 0x7fff + (b >> 16 & 1)) >> 16; }
static inline u32 pack_bf16(float lo, float hi) { return emu_bf16(lo) | emu_bf16(hi) << 16; }
static inline int round_i(float x) { return (int)lrintf(x); }
static inline u32 prmt(u32 a, u32 b, u32 s) { const u64 v = (u64)b << 32 | a; u32 r = 0; for (int i = 0; i < 4; i++) { u32 n = s >> (4 * i) & 15; u32 byte = v >> (8 * (n & 7)) & 255; if (n & 8) byte = byte & 128 ? 255 : 0; r |= byte << (8 * i); } return r; }
static inline int dot4(u32 a, u32 b, int c) { for (int i = 0; i < 4; i++) c += (int8_t)(a >> 8 * i) * (int8_t)(b >> 8 * i); return c; }
static inline float exp_f(float x) { return expf(x); }
static inline float rcp_f(float x) { return 1.f / x; }
static inline float rsqrt_f(float x) { return 1.f / sqrtf(x); }
static inline float sqrt_f(float x) { return sqrtf(x); }

typedef simt::Mma EmuMma;
template <bool UNSIGNED> static inline void emu_imma(EmuMma *m) {
    static int8_t A[16][32]; static uint8_t AU[16][32]; static int8_t B[8][32];
    for (int l = 0; l < 32; l++) { const int g = l >> 2, t = l & 3;
        for (int i = 0; i < 4; i++) memcpy(&A[g + 8 * (i & 1)][4 * t + 16 * (i >> 1)], &m[l].a[i], 4);
        for (int i = 0; i < 2; i++) memcpy(&B[g][4 * t + 16 * i], &m[l].b[i], 4); }
    memcpy(AU, A, 512);
    for (int n = 0; n < 8; n++) {
        u32 any = 0; for (int k = 0; k < 32; k++) any |= (u8)B[n][k];
        if (!any) continue;
        for (int r = 0; r < 16; r++) { int s = 0; if (UNSIGNED) for (int k = 0; k < 32; k++) s += AU[r][k] * B[n][k]; else for (int k = 0; k < 32; k++) s += A[r][k] * B[n][k];
            m[(r & 7) * 4 + n / 2].c[(r >> 3) * 2 + (n & 1)] += s; } }
}
template <class F> static inline void emu_mma(void *c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1, F f) {
    EmuMma &m = simt::warp().mma[simt::lane()];
    m = {{a0, a1, a2, a3}, {b0, b1}, {}}; memcpy(m.c, c, 16);
    simt::collective([&](simt::Warp &w) { f(w.mma); for (int l = 0; l < 32; l++) memcpy(w.out[l], w.mma[l].c, 16); });
    memcpy(c, simt::warp().out[simt::lane()], 16);
}
static inline void mma_s8(int *c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) { emu_mma(c, a0, a1, a2, a3, b0, b1, emu_imma<false>); }
static inline void mma_u8(int *c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) { emu_mma(c, a0, a1, a2, a3, b0, b1, emu_imma<true>); }
static inline void mma_bf16(float *c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    emu_mma(c, a0, a1, a2, a3, b0, b1, [](EmuMma *m) {
        float A[16][16], B[8][16];
        for (int l = 0; l < 32; l++) { const int g = l >> 2, t = l & 3;
            for (int i = 0; i < 4; i++) for (int z = 0; z < 2; z++) A[g + 8 * (i & 1)][2 * t + 8 * (i >> 1) + z] = bits_f((m[l].a[i] >> 16 * z) << 16);
            for (int i = 0; i < 2; i++) for (int z = 0; z < 2; z++) B[g][2 * t + 8 * i + z] = bits_f((m[l].b[i] >> 16 * z) << 16); }
        for (int r = 0; r < 16; r++) for (int n = 0; n < 8; n++) { float s = 0; for (int k = 0; k < 16; k++) s += A[r][k] * B[n][k];
            u32 &c = m[(r & 7) * 4 + n / 2].c[(r >> 3) * 2 + (n & 1)]; c = f_bits(bits_f(c) + s); } });
}
template <bool T> static inline void emu_ldmatrix(u32 *r, u32 a) {
    using namespace simt; Warp &w = warp(); w.arg[lane()] = a;
    collective([](Warp &w) { u16 m[4][8][8];
        for (int i = 0; i < 32; i++) { if (w.arg[i] & 15) abort(); memcpy(m[i / 8][i % 8], smem() + w.arg[i], 16); }
        EMU_LANES for (int i = 0; i < 4; i++) { const int g = l >> 2, t = l & 3; w.out[l][i] = T ? m[i][2 * t][g] | (u32)m[i][2 * t + 1][g] << 16 : m[i][g][2 * t] | (u32)m[i][g][2 * t + 1] << 16; } });
    memcpy(r, w.out[lane()], 16);
}
static inline void ldmatrix(u32 *r, u32 a) { emu_ldmatrix<false>(r, a); }
static inline void ldmatrix_trans(u32 *r, u32 a) { emu_ldmatrix<true>(r, a); }

struct Line { u32 lo, hi, scale, tag; };
struct Four { u32 v[4]; };
struct Two { u32 v[2]; };
template <class T> static inline T emu_load(const void *p) { if ((uintptr_t)p % sizeof(T)) { fprintf(stderr, "misaligned load\n"); abort(); } T v; memcpy(&v, p, sizeof v); return v; }
static inline Line load_line(const void *p) { return emu_load<Line>(p); }
static inline void store_line(void *p, Line l) { if ((uintptr_t)p & 15) abort(); memcpy(p, &l, 16); simt::progress++; }
static inline Four load_four(const void *p) { return emu_load<Four>(p); }
static inline Two load_two(const void *p) { return emu_load<Two>(p); }
static inline u32 load_one(const void *p) { return emu_load<u32>(p); }
static inline void store_one(void *p, u32 v) { memcpy(p, &v, 4); simt::progress++; }
static inline u32 load_acquire(const u32 *p) { return *p; }
static inline void store_release(u32 *p, u32 v) { *p = v; simt::progress++; }
static inline void add_release(u32 *p, u32 v) { *p += v; simt::progress++; }
static inline void fence_gpu() {}
static inline uint4 load_const16(const void *p) { return emu_load<uint4>(p); }
static inline uint2 load_const8(const void *p) { return emu_load<uint2>(p); }
static inline uint4 load_fresh16(const void *p) { return emu_load<uint4>(p); }
