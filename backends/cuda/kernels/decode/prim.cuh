// What the decode kernels ask of the machine: shared-memory barriers, bulk copies, tensor-core
// products, loads and stores that other blocks see. No toolkit header, so that NVRTC needs none.
// With DS4_EMULATE the same names are functions of bench/simt.h, which runs a grid on the host.
#pragma once
#include "../layout.cuh"

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#ifndef DS4_EMULATE
#define DS4_DEV __device__ __forceinline__
#define DS4_FULL 0xffffffffu

#ifdef DS4_STAMPS
// Experiments of the bench: 1 waits for no data of other blocks, 2 multiplies nothing, 4 copies nothing,
// 8 copies without a cache hint; bits 8 .. 20 and 20 .. 32 are the pauses of workers and services, ns. What is computed then means nothing.
__constant__ u32 ds4_experiment;
#define DS4_EXPERIMENT(bit) (ds4_experiment & (bit))
#else
#define DS4_EXPERIMENT(bit) false
#endif

// A spin that waits longer than this many polls stops the kernel: what it waits for will not come.
#ifndef DS4_SPIN_LIMIT
#define DS4_SPIN_LIMIT 4000000
#endif
// Polls of a few words by all blocks at once crowd the parts of the cache that hold them, through which
// the weights must come as well: pauses between polls are worth a fifth of a step. Services wait long
// and are never in a hurry.
#ifdef DS4_STAMPS
#define DS4_PAUSE(service) ((service) ? ds4_experiment >> 20 : ds4_experiment >> 8 & 0xfff)
#else
#ifndef DS4_WORKER_PAUSE
#define DS4_WORKER_PAUSE 400
#endif
#ifndef DS4_SERVICE_PAUSE
#define DS4_SERVICE_PAUSE 1000
#endif
#define DS4_PAUSE(service) ((service) ? DS4_SERVICE_PAUSE : DS4_WORKER_PAUSE)
#endif
#define DS4_SPIN_GUARD(n)                                                                            \
    do {                                                                                             \
        __nanosleep(DS4_PAUSE(blockIdx.x >= 128));                                                   \
        if (++(n) > DS4_SPIN_LIMIT) __trap();                                                        \
    } while (0)

// The 20 warps of a block share 61,440 registers: 16 that multiply take more of them than 4 that copy.
#ifndef DS4_CONSUMER_REGISTERS
#define DS4_CONSUMER_REGISTERS 104
#define DS4_PRODUCER_REGISTERS 64
#endif

DS4_DEV u32 tid_x() { return threadIdx.x; }
DS4_DEV u32 block_x() { return blockIdx.x; }
extern __shared__ __align__(128) u8 dynamic_shared_memory[];
DS4_DEV u8 *shared_memory() { return dynamic_shared_memory; }
DS4_DEV u32 smem_addr(const void *p) { return (u32)__cvta_generic_to_shared(p); }

DS4_DEV u32 load_shared(u32 at) {
    u32 v;
    asm("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at));
    return v;
}

DS4_DEV u32 clock_now() { return (u32)clock64(); }

// The same value, of which the compiler knows nothing: what is computed from it is computed after this
// and not kept in registers from before a loop.
DS4_DEV void renew(u32 &v) { asm volatile("" : "+r"(v)); }
DS4_DEV void renew(u8 *&v) { asm volatile("" : "+l"(v)); }

// mbarriers ---------------------------------------------------------------------------------------
DS4_DEV void mbar_init(u32 bar, u32 count) { asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(bar), "r"(count)); }
DS4_DEV void mbar_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DS4_DEV void mbar_expect(u32 bar, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
DS4_DEV void mbar_arrive(u32 bar, u32 count) {
    asm volatile("mbarrier.arrive.shared.b64 _, [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}
DS4_DEV bool mbar_try(u32 bar, u32 parity) {
    u32 done;
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(bar), "r"(parity)
                 : "memory");
    return done != 0;
}
DS4_DEV void mbar_wait(u32 bar, u32 parity) {
    u32 n = 0;
    while (!mbar_try(bar, parity))
        if (++n > DS4_SPIN_LIMIT) __trap();
}
// One contiguous copy into shared memory; `bytes` and both addresses are multiples of 16.
DS4_DEV u64 stream_policy() {
    u64 policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
DS4_DEV void bulk_copy(u32 to, const void *from, u32 bytes, u32 bar, u64 policy) {
    if (DS4_EXPERIMENT(8)) {
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from), "r"(bytes), "r"(bar) : "memory");
        return;
    }
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(bar), "l"(policy)
                 : "memory");
}
DS4_DEV void async_copy16(u32 to, const void *from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
DS4_DEV void async_copy8(u32 to, const void *from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(to), "l"(from) : "memory");
}
DS4_DEV void async_wait() { asm volatile("cp.async.commit_group;\ncp.async.wait_group 0;" ::: "memory"); }

// The 512 threads of the consumer warps.
DS4_DEV void consumer_sync() { asm volatile("bar.sync 1, 512;" ::: "memory"); }

DS4_DEV void block_sync() { __syncthreads(); }

// Registers of a thread from here on, of all warps of a group of four.
DS4_DEV void more_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(DS4_CONSUMER_REGISTERS)); }
DS4_DEV void fewer_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(DS4_PRODUCER_REGISTERS)); }

// Warps -------------------------------------------------------------------------------------------
DS4_DEV u32 shfl_u(u32 v, u32 lane) { return __shfl_sync(DS4_FULL, v, lane); }
DS4_DEV float shfl_f(float v, u32 lane) { return __shfl_sync(DS4_FULL, v, lane); }
DS4_DEV u32 xor_u(u32 v, u32 mask) { return __shfl_xor_sync(DS4_FULL, v, mask); }
DS4_DEV float xor_f(float v, u32 mask) { return __shfl_xor_sync(DS4_FULL, v, mask); }
DS4_DEV u32 warp_max_u(u32 v) { return __reduce_max_sync(DS4_FULL, v); }
DS4_DEV bool warp_any(bool v) { return __any_sync(DS4_FULL, v); }
DS4_DEV u32 warp_ballot(bool v) { return __ballot_sync(DS4_FULL, v); }
DS4_DEV void warp_sync() { __syncwarp(); }
DS4_DEV u32 popc(u32 v) { return __popc(v); }
DS4_DEV u32 lowest(u32 v) { return __ffs(v) - 1; }
DS4_DEV u32 shared_add(u32 *p, u32 v) { return atomicAdd(p, v); }

// Bits and small floats -----------------------------------------------------------------------------
DS4_DEV u32 f_bits(float x) { return __float_as_uint(x); }
DS4_DEV float bits_f(u32 x) { return __uint_as_float(x); }
DS4_DEV float half_lo(u32 h) {
    float f;
    asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %1;\ncvt.f32.f16 %0, l;\n}" : "=f"(f) : "r"(h));
    return f;
}
DS4_DEV float half_hi(u32 h) {
    float f;
    asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %1;\ncvt.f32.f16 %0, h;\n}" : "=f"(f) : "r"(h));
    return f;
}
// `lo` in the low 16 bits, both rounded to nearest even.
DS4_DEV u32 pack_bf16(float lo, float hi) {
    u32 v;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(hi), "f"(lo));
    return v;
}
DS4_DEV int round_i(float x) { return __float2int_rn(x); }
DS4_DEV u32 prmt(u32 a, u32 b, u32 sel) { // not __byte_perm, which clears bit 3 of every nibble of `sel` first
    u32 v;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(b), "r"(sel));
    return v;
}
DS4_DEV int dot4(u32 a, u32 b, int c) { return __dp4a((int)a, (int)b, c); }
// Short forms, good to a few units in the last place: code size matters more than that here, since a step
// runs through all of it once a layer.
DS4_DEV float exp_f(float x) { return __expf(x); }
DS4_DEV float rcp_f(float x) {
    float r;
    asm("rcp.approx.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}
DS4_DEV float rsqrt_f(float x) { return rsqrtf(x); }
DS4_DEV float sqrt_f(float x) {
    float r;
    asm("sqrt.approx.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

// Products on tensor cores: c += A B, A 16 rows, B 8 columns -------------------------------------------
DS4_DEV void mma_s8(int *c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
DS4_DEV void mma_u8(int *c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
DS4_DEV void mma_bf16(float *c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// Four 8 x 8 matrices of 16-bit values; lane i gives the address of row i % 8 of matrix i / 8.
DS4_DEV void ldmatrix(u32 *r, u32 a) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(a)
                 : "memory");
}
DS4_DEV void ldmatrix_trans(u32 *r, u32 a) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(a)
                 : "memory");
}

// Between blocks ------------------------------------------------------------------------------------
// A line: 16 bytes that are written and seen as one.
struct Line {
    u32 lo, hi, scale, tag;
};
DS4_DEV Line load_line(const void *p) {
    u64 a, b;
    asm volatile("{\n.reg .b128 v;\nld.relaxed.gpu.global.b128 v, [%2];\nmov.b128 {%0, %1}, v;\n}" : "=l"(a), "=l"(b) : "l"(p) : "memory");
    Line l = {(u32)a, (u32)(a >> 32), (u32)b, (u32)(b >> 32)};
    return l;
}
DS4_DEV void store_line(void *p, Line l) {
    const u64 a = (u64)l.hi << 32 | l.lo, b = (u64)l.tag << 32 | l.scale;
    asm volatile("{\n.reg .b128 v;\nmov.b128 v, {%1, %2};\nst.relaxed.gpu.global.b128 [%0], v;\n}" ::"l"(p), "l"(a), "l"(b) : "memory");
}
struct Four {
    u32 v[4];
};
DS4_DEV Four load_four(const void *p) {
    Four f;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(f.v[0]), "=r"(f.v[1]), "=r"(f.v[2]), "=r"(f.v[3])
                 : "l"(p)
                 : "memory");
    return f;
}
struct Two {
    u32 v[2];
};
DS4_DEV Two load_two(const void *p) {
    Two f;
    asm volatile("ld.relaxed.gpu.global.v2.u32 {%0,%1}, [%2];" : "=r"(f.v[0]), "=r"(f.v[1]) : "l"(p) : "memory");
    return f;
}
DS4_DEV u32 load_one(const void *p) {
    u32 v;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}
DS4_DEV void store_one(void *p, u32 v) { asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory"); }
DS4_DEV u32 load_acquire(const u32 *p) {
    u32 v;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}
DS4_DEV void store_release(u32 *p, u32 v) { asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory"); }
DS4_DEV void add_release(u32 *p, u32 v) { asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory"); }
DS4_DEV void fence_gpu() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }
// Loads of weights and cache rows that this kernel does not write.
DS4_DEV uint4 load_const16(const void *p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}
DS4_DEV uint2 load_const8(const void *p) {
    uint2 v;
    asm volatile("ld.global.nc.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
    return v;
}
// Rows that another block of this kernel may have written before an acquired flag: not through L1.
DS4_DEV uint4 load_fresh16(const void *p) {
    uint4 v;
    asm volatile("ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
    return v;
}
#else
#include "../../bench/simt.h"
#endif
