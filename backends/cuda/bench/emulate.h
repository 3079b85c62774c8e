// Runs the kernels' own source on the host, one block at a time: every CUDA thread is a fibre, and a
// barrier, shuffle or tensor-core instruction is a meeting point of its block or warp. It exists to
// check index maps, bounds and arithmetic where there is no GPU; it says nothing about speed or races.
#pragma once
#include <cassert>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __restrict__
#define __shared__ static
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __constant__ static
#define __grid_constant__

struct dim3 { unsigned x = 1, y = 1, z = 1; dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {} };
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) int4 { int x, y, z, w; };
inline float2 make_float2(float a, float b) { return {a, b}; }
inline float4 make_float4(float a, float b, float c, float d) { return {a, b, c, d}; }
inline uint2 make_uint2(unsigned a, unsigned b) { return {a, b}; }
inline uint4 make_uint4(unsigned a, unsigned b, unsigned c, unsigned d) { return {a, b, c, d}; }

namespace emulate {

extern "C" void emulate_switch(void** from, void* to);
asm(R"(
.text
.globl emulate_switch
emulate_switch:
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

constexpr size_t stack_bytes = 192 << 10;
constexpr size_t shared_bytes = 228 << 10;
alignas(1024) inline unsigned char shared_memory[shared_bytes];

struct Meeting { unsigned arrived = 0, generation = 0; };
struct Warp : Meeting { unsigned char slot[32][64]; unsigned char result[32][64]; };
struct Fibre { void* sp = nullptr; bool done = false; dim3 thread; };

inline std::vector<Fibre> fibres;
inline std::vector<Warp> warps;
inline Meeting block_meeting, named[16];
inline void* main_sp;
inline unsigned current;
inline const std::function<void()>* body;
inline dim3 block_id, block_dim, grid_dim;

inline void yield() {
    // The next live fibre; with none left, back to the launcher.
    unsigned n = (unsigned)fibres.size(), from = current;
    for (unsigned i = 1; i <= n; i++) {
        unsigned next = (from + i) % n;
        if (!fibres[next].done) {
            if (next == from) return;
            current = next;
            emulate_switch(&fibres[from].sp, fibres[next].sp);
            return;
        }
    }
    void* gone;
    emulate_switch(&gone, main_sp);
}
inline void entry() {
    (*body)();
    fibres[current].done = true;
    yield();
    abort();
}
inline void meet(Meeting& m, unsigned count) {
    unsigned generation = m.generation;
    if (++m.arrived == count) { m.arrived = 0; m.generation++; return; }
    unsigned spins = 0;
    while (m.generation == generation) {
        if (++spins > 200000) { fprintf(stderr, "deadlock: thread %u waits in block %u,%u,%u\n", current, block_id.x, block_id.y, block_id.z); abort(); }
        yield();
    }
}
// Every lane gives `in`; the last to come computes; every lane gets its `out`.
template <class In, class Out> Out together(const In& in, const std::function<void(const In*, Out*)>& compute) {
    Warp& w = warps[current / 32];
    static_assert(sizeof(In) <= 64 && sizeof(Out) <= 64, "");
    memcpy(w.slot[current % 32], &in, sizeof(In));
    if (w.arrived == 31) {
        In all[32]; Out out[32];
        for (int i = 0; i < 32; i++) memcpy(&all[i], w.slot[i], sizeof(In));
        compute(all, out);
        for (int i = 0; i < 32; i++) memcpy(w.result[i], &out[i], sizeof(Out));
    }
    meet(w, 32);
    Out o; memcpy(&o, w.result[current % 32], sizeof(Out));
    // Nobody may overwrite the results before all have read them.
    meet(w, 32);
    return o;
}
inline void launch(dim3 grid, dim3 block, const std::function<void()>& f) {
    grid_dim = grid; block_dim = block; body = &f;
    unsigned n = block.x * block.y * block.z;
    std::vector<unsigned char*> stacks(n);
    for (auto& s : stacks) s = (unsigned char*)aligned_alloc(64, stack_bytes);
    for (unsigned z = 0; z < grid.z; z++) for (unsigned y = 0; y < grid.y; y++) for (unsigned x = 0; x < grid.x; x++) {
        block_id = dim3(x, y, z);
        memset(shared_memory, 0xff, shared_bytes); // NaNs: reading what nobody wrote shows
        fibres.assign(n, Fibre()); warps.assign((n + 31) / 32, Warp()); block_meeting = Meeting();
        for (auto& m : named) m = Meeting();
        for (unsigned i = 0; i < n; i++) {
            void** sp = (void**)(stacks[i] + stack_bytes - 64);
            *--sp = nullptr; *--sp = (void*)entry;
            for (int r = 0; r < 6; r++) *--sp = nullptr;
            fibres[i].sp = sp;
            fibres[i].thread = dim3(i % block.x, i / block.x % block.y, i / block.x / block.y);
        }
        current = 0;
        emulate_switch(&main_sp, fibres[0].sp);
    }
    for (auto s : stacks) free(s);
}
} // namespace emulate

#define threadIdx (emulate::fibres[emulate::current].thread)
#define blockIdx (emulate::block_id)
#define blockDim (emulate::block_dim)
#define gridDim (emulate::grid_dim)
inline void __syncthreads() {
    // Threads that returned no longer count.
    unsigned alive = 0;
    for (auto& f : emulate::fibres) alive += !f.done;
    emulate::meet(emulate::block_meeting, alive);
}
inline void __syncwarp(unsigned = ~0u) { emulate::meet(emulate::warps[emulate::current / 32], 32); }
template <class T> T __shfl_xor_sync(unsigned, T v, int o, int = 32) {
    return emulate::together<T, T>(v, [o](const T* in, T* out) { for (int i = 0; i < 32; i++) out[i] = in[i ^ o]; });
}
template <class T> T __shfl_sync(unsigned, T v, int lane, int width = 32) {
    struct In { T v; int lane; } in{v, lane};
    return emulate::together<In, T>(in, [width](const In* a, T* out) { for (int i = 0; i < 32; i++) out[i] = a[(i & ~(width - 1)) | (a[i].lane & (width - 1))].v; });
}
template <class T> T __shfl_up_sync(unsigned, T v, int d, int = 32) {
    return emulate::together<T, T>(v, [d](const T* in, T* out) { for (int i = 0; i < 32; i++) out[i] = i >= d ? in[i - d] : in[i]; });
}
template <class T> T __shfl_down_sync(unsigned, T v, int d, int = 32) {
    return emulate::together<T, T>(v, [d](const T* in, T* out) { for (int i = 0; i < 32; i++) out[i] = i + d < 32 ? in[i + d] : in[i]; });
}
inline unsigned __ballot_sync(unsigned, int p) {
    return emulate::together<int, unsigned>(p, [](const int* in, unsigned* out) { unsigned m = 0; for (int i = 0; i < 32; i++) m |= (unsigned)(in[i] != 0) << i; for (int i = 0; i < 32; i++) out[i] = m; });
}
inline int __any_sync(unsigned m, int p) { return __ballot_sync(m, p) != 0; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(unsigned x) { return x ? __builtin_clz(x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fdividef(float a, float b) { return a / b; }
inline unsigned __float_as_uint(float x) { unsigned u; memcpy(&u, &x, 4); return u; }
inline float __uint_as_float(unsigned u) { float x; memcpy(&x, &u, 4); return x; }
template <class T> T atomicAdd(T* p, T v) { T o = *p; *p = o + v; return o; }
template <class T> T atomicMax(T* p, T v) { T o = *p; if (v > o) *p = v; return o; }
inline void __threadfence() {}
template <class T> T __ldg(const T* p) { return *p; }
template <class T> T __ldcs(const T* p) { return *p; }
template <class T> T __ldcg(const T* p) { return *p; }
template <class T> void __stcs(T* p, T v) { *p = v; }
template <class T> T min(T a, T b) { return a < b ? a : b; }
template <class T> T max(T a, T b) { return a > b ? a : b; }
