// The instructions the prefill kernels are made of, each with its fragment layout. No header of the
// toolkit is needed, so the run-time compiler takes these files as they are; bench/emulate.h gives
// every function here a second body for the host.
#pragma once

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;
typedef unsigned long long u64;

#define FULL_WARP 0xffffffffu

#ifdef DS4_EMULATE

typedef u32 smem_addr;
inline smem_addr smem(const void* p) {
    size_t at = (const unsigned char*)p - emulate::shared_memory;
    assert(at < emulate::shared_bytes);
    return (smem_addr)at;
}
#define DYNAMIC_SHARED(name) unsigned char* name = emulate::shared_memory

inline float h2f(u16 h) { _Float16 x; memcpy(&x, &h, 2); return (float)x; }
inline u16 f2h(float f) { _Float16 x = (_Float16)f; u16 h; memcpy(&h, &x, 2); return h; }
inline float bf2f(u16 h) { return __uint_as_float((u32)h << 16); }
inline u16 f2bf(float f) { u32 u = __float_as_uint(f); return (u16)((u + 0x7fff + ((u >> 16) & 1)) >> 16); }
inline u32 pack_h(float lo, float hi) { return f2h(lo) | (u32)f2h(hi) << 16; }
inline u32 pack_bf(float lo, float hi) { return f2bf(lo) | (u32)f2bf(hi) << 16; }
inline u32 tf32(float x) { u32 u = __float_as_uint(x); return (u + 0x1000) & ~0x1fffu; }
inline u32 h2_op(u32 a, u32 b, int op) {
    float x[2] = {h2f(a), h2f(a >> 16)}, y[2] = {h2f(b), h2f(b >> 16)};
    for (int i = 0; i < 2; i++) x[i] = op == 0 ? x[i] + y[i] : op == 1 ? x[i] - y[i] : x[i] * y[i];
    return pack_h(x[0], x[1]);
}
inline u32 hadd2(u32 a, u32 b) { return h2_op(a, b, 0); }
inline u32 hsub2(u32 a, u32 b) { return h2_op(a, b, 1); }
inline u32 hmul2(u32 a, u32 b) { return h2_op(a, b, 2); }
inline u32 hfma2(u32 a, u32 b, u32 c) {
    return pack_h((float)((double)h2f(a) * h2f(b) + h2f(c)), (float)((double)h2f(a >> 16) * h2f(b >> 16) + h2f(c >> 16)));
}
inline u32 prmt(u32 a, u32 b, u32 s) {
    u64 v = a | (u64)b << 32; u32 r = 0;
    for (int i = 0; i < 4; i++) { u32 n = s >> (4 * i) & 15; u32 byte = v >> (8 * (n & 7)) & 255; if (n & 8) byte = byte & 128 ? 255 : 0; r |= byte << (8 * i); }
    return r;
}
inline void cp16(smem_addr to, const void* from, bool valid) {
    assert(to % 16 == 0 && (!valid || (size_t)from % 16 == 0));
    if (valid) memcpy(emulate::shared_memory + to, from, 16); else memset(emulate::shared_memory + to, 0, 16);
}
inline void cp_commit() {}
template <int N> inline void cp_wait() {}
inline void ldm4_impl(u32* r, smem_addr a, bool trans) {
    struct Out { u32 r[4]; };
    Out o = emulate::together<u32, Out>(a, [trans](const u32* in, Out* out) {
        for (int m = 0; m < 4; m++) for (int lane = 0; lane < 32; lane++) {
            u16 v[2];
            for (int e = 0; e < 2; e++) {
                int row = trans ? 2 * (lane & 3) + e : lane >> 2, col = trans ? lane >> 2 : 2 * (lane & 3) + e;
                assert(in[m * 8 + row] % 16 == 0);
                memcpy(&v[e], emulate::shared_memory + in[m * 8 + row] + 2 * col, 2);
            }
            out[lane].r[m] = v[0] | (u32)v[1] << 16;
        }
    });
    for (int i = 0; i < 4; i++) r[i] = o.r[i];
}
inline void ldm4(u32* r, smem_addr a) { ldm4_impl(r, a, false); }
inline void ldm4t(u32* r, smem_addr a) { ldm4_impl(r, a, true); }
struct MmaIn { float c[4]; u32 a[4], b[2]; };
struct MmaOut { float c[4]; };
template <int KIND> inline void mma_emulated(float* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    MmaIn in = {{c[0], c[1], c[2], c[3]}, {a0, a1, a2, a3}, {b0, b1}};
    MmaOut o = emulate::together<MmaIn, MmaOut>(in, [](const MmaIn* l, MmaOut* out) {
        constexpr int K = KIND == 2 ? 8 : 16;
        float A[16][16], B[16][8];
        auto half = [](u32 v, int e) { u16 h = (u16)(v >> (16 * e)); return KIND == 0 ? h2f(h) : bf2f(h); };
        for (int i = 0; i < 32; i++) {
            int g = i >> 2, t = i & 3;
            if (KIND == 2) {
                for (int j = 0; j < 4; j++) A[g + 8 * (j & 1)][t + 4 * (j >> 1)] = __uint_as_float(l[i].a[j] & ~0x1fffu);
                for (int j = 0; j < 2; j++) B[t + 4 * j][g] = __uint_as_float(l[i].b[j] & ~0x1fffu);
            } else {
                for (int j = 0; j < 4; j++) for (int e = 0; e < 2; e++) A[g + 8 * (j & 1)][2 * t + e + 8 * (j >> 1)] = half(l[i].a[j], e);
                for (int j = 0; j < 2; j++) for (int e = 0; e < 2; e++) B[2 * t + e + 8 * j][g] = half(l[i].b[j], e);
            }
        }
        for (int i = 0; i < 32; i++) for (int j = 0; j < 4; j++) {
            int row = (i >> 2) + 8 * (j >> 1), col = 2 * (i & 3) + (j & 1);
            float s = l[i].c[j];
            for (int k = 0; k < K; k++) s += A[row][k] * B[k][col];
            out[i].c[j] = s;
        }
    });
    for (int i = 0; i < 4; i++) c[i] = o.c[i];
}
inline void mma_f16(float* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) { mma_emulated<0>(c, a0, a1, a2, a3, b0, b1); }
inline void mma_bf16(float* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) { mma_emulated<1>(c, a0, a1, a2, a3, b0, b1); }
inline void mma_tf32(float* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) { mma_emulated<2>(c, a0, a1, a2, a3, b0, b1); }
struct ImmaIn { int c[4]; u32 a[4], b[2]; };
struct ImmaOut { int c[4]; };
template <bool SIGNED> inline void imma_emulated(int* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    ImmaIn in = {{c[0], c[1], c[2], c[3]}, {a0, a1, a2, a3}, {b0, b1}};
    ImmaOut o = emulate::together<ImmaIn, ImmaOut>(in, [](const ImmaIn* l, ImmaOut* out) {
        int A[16][32], B[32][8];
        for (int i = 0; i < 32; i++) for (int e = 0; e < 4; e++) {
            int g = i >> 2, t = i & 3;
            for (int j = 0; j < 4; j++) { u32 v = l[i].a[j] >> (8 * e) & 255; A[g + 8 * (j & 1)][4 * t + e + 16 * (j >> 1)] = SIGNED ? (signed char)v : (int)v; }
            for (int j = 0; j < 2; j++) B[4 * t + e + 16 * j][g] = (signed char)(l[i].b[j] >> (8 * e));
        }
        for (int i = 0; i < 32; i++) for (int j = 0; j < 4; j++) {
            int s = l[i].c[j];
            for (int k = 0; k < 32; k++) s += A[(i >> 2) + 8 * (j >> 1)][k] * B[k][2 * (i & 3) + (j & 1)];
            out[i].c[j] = s;
        }
    });
    for (int i = 0; i < 4; i++) c[i] = o.c[i];
}
inline void mma_s8(int* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) { imma_emulated<true>(c, a0, a1, a2, a3, b0, b1); }
inline void mma_u8s8(int* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) { imma_emulated<false>(c, a0, a1, a2, a3, b0, b1); }
inline void mma_s8_new(int* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) { c[0] = c[1] = c[2] = c[3] = 0; mma_s8(c, a0, a1, a2, a3, b0, b1); }
inline void mma_u8s8_new(int* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) { c[0] = c[1] = c[2] = c[3] = 0; mma_u8s8(c, a0, a1, a2, a3, b0, b1); }
inline float exp2_fast(float x) { return std::exp2(x); }
inline void bar_named(int id, int n) { emulate::meet(emulate::named[id], n); }
inline uint4 load_streamed(const void* p) { uint4 v; memcpy(&v, p, 16); return v; }

#else

typedef u32 smem_addr;
__device__ __forceinline__ smem_addr smem(const void* p) { return (u32)__cvta_generic_to_shared(p); }
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]

__device__ __forceinline__ float h2f(u16 h) { float f; asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h)); return f; }
__device__ __forceinline__ u16 f2h(float f) { u16 h; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f)); return h; }
__device__ __forceinline__ float bf2f(u16 h) { return __uint_as_float((u32)h << 16); }
__device__ __forceinline__ u16 f2bf(float f) { u16 h; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(f)); return h; }
/// Two halves, the first argument in the low bits.
__device__ __forceinline__ u32 pack_h(float lo, float hi) { u32 r; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo)); return r; }
__device__ __forceinline__ u32 pack_bf(float lo, float hi) { u32 r; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo)); return r; }
__device__ __forceinline__ u32 tf32(float x) { u32 r; asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x)); return r; }
__device__ __forceinline__ u32 hadd2(u32 a, u32 b) { u32 r; asm("add.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b)); return r; }
__device__ __forceinline__ u32 hsub2(u32 a, u32 b) { u32 r; asm("sub.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b)); return r; }
__device__ __forceinline__ u32 hmul2(u32 a, u32 b) { u32 r; asm("mul.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b)); return r; }
__device__ __forceinline__ u32 hfma2(u32 a, u32 b, u32 c) { u32 r; asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c)); return r; }
__device__ __forceinline__ u32 prmt(u32 a, u32 b, u32 s) { u32 r; asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(s)); return r; }
/// Copies 16 bytes asynchronously, or writes zeros.
__device__ __forceinline__ void cp16(smem_addr to, const void* from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}
__device__ __forceinline__ void cp_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ __forceinline__ void cp_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }
/// Four 8x8 matrices of halves; lane 8m + r gives the address of row r of matrix m and gets, of each
/// matrix, row lane / 4, columns 2 (lane % 4) and the next.
__device__ __forceinline__ void ldm4(u32* r, smem_addr a) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a) : "memory");
}
/// The same with every matrix transposed.
__device__ __forceinline__ void ldm4t(u32* r, smem_addr a) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a) : "memory");
}
// c (16x8) += a (16xk) b (kx8). With g = lane / 4 and t = lane % 4: c0, c1 are row g, columns 2t, 2t+1;
// c2, c3 row g+8. For halves (k = 16): a0 is row g, k 2t and 2t+1; a1 row g+8; a2, a3 the same at k+8;
// b0 is column g, k 2t and 2t+1; b1 at k+8. For tf32 (k = 8): a0 row g, k t; a1 row g+8; a2, a3 at k+4;
// b0 k t, b1 k t+4, column g.
__device__ __forceinline__ void mma_f16(float* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma_bf16(float* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma_tf32(float* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// Bytes (k = 32): a0 is row g, k 4t to 4t+3; a1 row g+8; a2, a3 the same at k+16; b0 is column g, k 4t
// to 4t+3; b1 at k+16.
__device__ __forceinline__ void mma_s8(int* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma_u8s8(int* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// The same, starting from zero.
__device__ __forceinline__ void mma_s8_new(int* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
        : "=r"(c[0]), "=r"(c[1]), "=r"(c[2]), "=r"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "r"(0));
}
__device__ __forceinline__ void mma_u8s8_new(int* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
        : "=r"(c[0]), "=r"(c[1]), "=r"(c[2]), "=r"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "r"(0));
}
__device__ __forceinline__ float exp2_fast(float x) { float r; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
/// A barrier of `n` threads of the block, by number (1 to 15).
__device__ __forceinline__ void bar_named(int id, int n) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n) : "memory"); }
/// 16 bytes that are read once.
__device__ __forceinline__ uint4 load_streamed(const void* p) {
    uint4 v;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}

#endif

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(FULL_WARP, v, o);
    return v;
}
/// A finite half: larger magnitudes become the largest.
__device__ __forceinline__ float clamp_h(float x) { return fminf(fmaxf(x, -65504.0f), 65504.0f); }
/// Byte offset of 16-byte chunk `chunk` of row `row` in a tile of 128-byte rows; rows that a warp reads
/// or writes at once fall into different banks, and it is the 128-byte swizzle of the matrix units.
__device__ __forceinline__ u32 swizzled(u32 row, u32 chunk) { return row * 128 + ((chunk ^ (row & 7)) << 4); }
