// Dense products on tensor cores: out[r, o] = sum over k of x[r, k] w[o, k], halves in, f32 sums.
// `gemm_*` (mma.sync, compute capability 8.0 and up) and `gemm_wgmma_*` (9.0a) take the same argument
// and share the tile in shared memory: rows of 64 halves (128 bytes), swizzled.
#include "prefill/device.cuh"
#include "prefill/prefill.h"

#define GEMM_BM 128
#define GEMM_BK 64

namespace {

// Where a block works.
struct Tile {
    const GemmPiece* piece;
    u32 row0, col0, group;
};

__device__ __forceinline__ Tile tile_of(const Gemm& p, int bn) {
    u32 tile = blockIdx.y, i = 0;
    while (i + 1 < p.n_pieces && tile >= p.pieces[i + 1].first_tile) i++;
    Tile t;
    t.piece = &p.pieces[i];
    t.row0 = blockIdx.x * GEMM_BM;
    t.col0 = (tile - t.piece->first_tile) * bn;
    t.group = blockIdx.z;
    return t;
}

// Asynchronous copies of k-step `step` into a stage: BM rows of x, then BN rows of w.
template <int BN> __device__ __forceinline__ void load_stage(const Gemm& p, const Tile& t, smem_addr stage, u32 step) {
    u32 steps = p.k / GEMM_BK, pass = step / steps, k = (step - pass * steps) * GEMM_BK;
    const u16* x = (pass == 1 ? p.x_low : p.x) + (u64)t.group * p.k + k;
    const u16* w = (pass == 2 ? t.piece->w_low : t.piece->w) + (u64)t.group * t.piece->n_out * p.k + k;
    u32 row = threadIdx.x >> 3, chunk = threadIdx.x & 7;
#pragma unroll
    for (int i = 0; i < GEMM_BM / 32; i++) {
        u32 r = row + 32 * i, at = t.row0 + r;
        cp16(stage + swizzled(r, chunk), x + (u64)min(at, p.n_rows - 1) * p.ld_x + chunk * 8, at < p.n_rows);
    }
    smem_addr b = stage + GEMM_BM * 128;
#pragma unroll
    for (int i = 0; i < BN / 32; i++) {
        u32 r = row + 32 * i, at = t.col0 + r, n = t.piece->n_out;
        cp16(b + swizzled(r, chunk), w + (u64)min(at, n - 1) * p.k + chunk * 8, at < n);
    }
}

__device__ __forceinline__ void store2(const Gemm& p, const Tile& t, u32 row, u32 col, float a, float b) {
    const GemmPiece* q = t.piece;
    if (row >= p.n_rows || col >= q->n_out) return;
    u64 at = (u64)row * q->ld_out + (u64)t.group * q->n_out + col;
    if (q->kind == GEMM_F32) {
        *(float2*)((float*)q->out + at) = make_float2(a, b);
    } else if (q->kind == GEMM_ADD_F32) {
        float2* o = (float2*)((float*)q->out + at);
        float2 v = *o;
        *o = make_float2(v.x + a, v.y + b);
    } else if (q->kind == GEMM_F16) {
        *(u32*)((u16*)q->out + at) = pack_h(clamp_h(a), clamp_h(b));
    } else {
        *(u32*)((u16*)q->out + at) = pack_bf(a, b);
    }
}

// WM x WN warps; every warp owns (BM / WM) x (BN / WN) of the tile.
template <int BN, int WM, int WN, int STAGES> __device__ __forceinline__ void gemm_mma(const Gemm& p) {
    constexpr int MT = GEMM_BM / WM / 16, NT = BN / WN / 8, STAGE = (GEMM_BM + BN) * 128;
    static_assert(WM * WN == 8 && NT % 2 == 0, "");
    DYNAMIC_SHARED(shared);
    smem_addr base = smem(shared);
    Tile t = tile_of(p, BN);
    u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    u32 wm = warp % WM * (GEMM_BM / WM), wn = warp / WM * (BN / WN);
    float c[MT][NT][4];
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) c[i][j][e] = 0.0f;

    u32 steps = p.k / GEMM_BK * p.n_passes;
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        if ((u32)s < steps) load_stage<BN>(p, t, base + s * STAGE, s);
        cp_commit();
    }
    // Rows of the four 8x8 matrices a lane addresses: of x, (rows, rows + 8) x (k, k + 8); of w, the
    // k halves first.
    u32 ar = wm + (lane & 15), ac = lane >> 4;
    u32 br = wn + (lane & 7) + ((lane >> 4) << 3), bc = (lane >> 3) & 1;
    u32 slot = 0;
    for (u32 step = 0; step < steps; step++) {
        cp_wait<STAGES - 2>();
        __syncthreads();
        u32 next = step + STAGES - 1, fill = slot == 0 ? STAGES - 1 : slot - 1;
        if (next < steps) load_stage<BN>(p, t, base + fill * STAGE, next);
        cp_commit();
        smem_addr a = base + slot * STAGE, b = a + GEMM_BM * 128;
#pragma unroll
        for (int kk = 0; kk < GEMM_BK / 16; kk++) {
            u32 x[MT][4], w[NT / 2][4];
#pragma unroll
            for (int i = 0; i < MT; i++) ldm4(x[i], a + swizzled(ar + 16 * i, 2 * kk + ac));
#pragma unroll
            for (int j = 0; j < NT / 2; j++) ldm4(w[j], b + swizzled(br + 16 * j, 2 * kk + bc));
#pragma unroll
            for (int i = 0; i < MT; i++)
#pragma unroll
                for (int j = 0; j < NT; j++)
                    mma_f16(c[i][j], x[i][0], x[i][1], x[i][2], x[i][3], w[j / 2][j % 2 * 2], w[j / 2][j % 2 * 2 + 1]);
        }
        slot = slot + 1 == STAGES ? 0 : slot + 1;
    }
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
        for (int j = 0; j < NT; j++) {
            u32 row = t.row0 + wm + 16 * i + (lane >> 2), col = t.col0 + wn + 8 * j + 2 * (lane & 3);
            store2(p, t, row, col, c[i][j][0], c[i][j][1]);
            store2(p, t, row + 8, col, c[i][j][2], c[i][j][3]);
        }
}

} // namespace

extern "C" __global__ void __launch_bounds__(256, 1) gemm_256(const __grid_constant__ Gemm p) { gemm_mma<256, 2, 4, GEMM_256_STAGES>(p); }
extern "C" __global__ void __launch_bounds__(256, 1) gemm_128(const __grid_constant__ Gemm p) { gemm_mma<128, 2, 4, GEMM_128_STAGES>(p); }
extern "C" __global__ void __launch_bounds__(256, 2) gemm_64(const __grid_constant__ Gemm p) { gemm_mma<64, 4, 2, GEMM_64_STAGES>(p); }

#if (defined(__CUDACC__) && !defined(__CUDA_ARCH__)) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#include "prefill/wgmma.cuh"

namespace {

// Two warpgroups, each 64 rows of the tile by BN columns. All threads copy; the tensor cores read
// both operands from shared memory.
template <int BN, int STAGES> __device__ __forceinline__ void gemm_warpgroups(const Gemm& p) {
    constexpr int STAGE = (GEMM_BM + BN) * 128;
    DYNAMIC_SHARED(shared);
    smem_addr base = smem(shared);
    Tile t = tile_of(p, BN);
    u32 warpgroup = threadIdx.x >> 7;
    float c[BN / 2];
#pragma unroll
    for (int i = 0; i < BN / 2; i++) c[i] = 0.0f;
    u32 steps = p.k / GEMM_BK * p.n_passes;
#pragma unroll
    for (int s = 0; s < STAGES - 2; s++) {
        if ((u32)s < steps) load_stage<BN>(p, t, base + s * STAGE, s);
        cp_commit();
    }
    u32 slot = 0, fill = STAGES - 2;
    for (u32 step = 0; step < steps; step++) {
        cp_wait<STAGES - 3>();
        fence_async_shared();
        __syncthreads();
        // The product of the step before last is done everywhere, so its stage is free.
        u32 next = step + STAGES - 2;
        if (next < steps) load_stage<BN>(p, t, base + fill * STAGE, next);
        cp_commit();
        smem_addr a = base + slot * STAGE;
        u64 da = wgmma_descriptor(a + warpgroup * 64 * 128), db = wgmma_descriptor(a + GEMM_BM * 128);
        wgmma_fence();
#pragma unroll
        for (int kk = 0; kk < GEMM_BK / 16; kk++) Wgmma<BN>::multiply(c, da + 2 * kk, db + 2 * kk);
        wgmma_commit();
        wgmma_wait<1>();
        slot = slot + 1 == STAGES ? 0 : slot + 1;
        fill = fill + 1 == STAGES ? 0 : fill + 1;
    }
    wgmma_wait<0>();
    u32 lane = threadIdx.x & 31, row = t.row0 + (threadIdx.x >> 5) * 16 + (lane >> 2);
#pragma unroll
    for (int j = 0; j < BN / 8; j++) {
        u32 col = t.col0 + 8 * j + 2 * (lane & 3);
        store2(p, t, row, col, c[4 * j], c[4 * j + 1]);
        store2(p, t, row + 8, col, c[4 * j + 2], c[4 * j + 3]);
    }
}

} // namespace

extern "C" __global__ void __launch_bounds__(256, 1) gemm_wgmma_256(const __grid_constant__ Gemm p) { gemm_warpgroups<256, GEMM_WGMMA_256_STAGES>(p); }
extern "C" __global__ void __launch_bounds__(256, 1) gemm_wgmma_128(const __grid_constant__ Gemm p) { gemm_warpgroups<128, GEMM_WGMMA_128_STAGES>(p); }
#endif
