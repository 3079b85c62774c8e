// Routed experts on Hopper's asynchronous tensor cores: a warp unpacks its 16 rows of weights into the
// A fragments in registers, and the tokens, 64 at most, are B in shared memory. While one warp of a
// scheduler multiplies, three others unpack.
#include "prefill/experts.cuh"

#if (defined(__CUDACC__) && !defined(__CUDA_ARCH__)) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#include "prefill/wgmma.cuh"

#define USED 6
#define EMBD 4096
#define HIDDEN 2048
#define THREADS 512
#define TOKENS EXPERTS_WGMMA_TOKENS
#define X_BYTES (4 * TOKENS * 128) // 256 columns: four tiles of 64, rows of 128 bytes, swizzled
#define GATE_UP_STAGE (8 * DS4_IQ2_PAIR + X_BYTES)
#define DOWN_STAGE (16 * DS4_Q2K_PAIR + X_BYTES)

namespace {

// Copies 256 columns of the tile's tokens (512 bytes from `column_bytes` on).
__device__ __forceinline__ void swizzled_tokens(smem_addr x, const u64* rows, u32 column_bytes, u32 n_tokens) {
    u32 chunk = threadIdx.x & 31;
    for (u32 token = threadIdx.x >> 5; token < n_tokens; token += THREADS / 32)
        cp16(x + (chunk >> 3) * (TOKENS * 128) + swizzled(token, chunk & 7), (const unsigned char*)rows[token] + column_bytes + chunk * 16, true);
}

// Starts two k-steps of 16 for a row tile, and waits for the product before: what a warp unpacks next
// goes to the registers of that one, while this one is under way.
template <int N> __device__ __forceinline__ void multiply_block(float* c, const u32 (*a)[4], u64 b) {
    wgmma_fence();
    WgmmaRegisters<N>::multiply(c, a[0], b);
    WgmmaRegisters<N>::multiply(c, a[1], b + 2);
    wgmma_commit();
    wgmma_wait<1>();
}

template <int N, int P, int ODD> __device__ __forceinline__ void gate_up_block(const Iq2Half& gate, const Iq2Half& up, const u32* dg, const u32* du, const unsigned char* lut, u64 x, float* cg, float* cu) {
    u32 ag[2][4], au[2][4];
    u64 b = x + (P * (TOKENS * 128 / 16) + ODD * 4);
    gate.block<P, ODD, 32>(lut, dg, ag);
    multiply_block<N>(cg, ag, b);
    up.block<P, ODD, 32>(lut, du, au);
    multiply_block<N>(cu, au, b);
}

template <int N> __device__ __forceinline__ void gate_up(const Experts& p) {
    DYNAMIC_SHARED(shared);
    ExpertTile t;
    expert_tile(p, t);
    // The stages come first: the tokens' tiles must be aligned to 1,024 bytes.
    unsigned char* lut = shared + 2 * GATE_UP_STAGE;
    u64* rows = (u64*)(lut + 32768);
    volatile u32* n_tokens = (volatile u32*)(rows + TOKENS);
    constexpr u32 N_KC = EMBD / 256;
    u32 tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, q = lane & 3;
    const u32* list = p.lists + (u64)t.expert * p.n_rows + t.first;
    if (tid < TOKENS) rows[tid] = tid < t.n ? (u64)(p.x + (u64)(list[tid] / USED) * EMBD) : 0;
    if (tid == 0) *n_tokens = t.n;
    for (u32 i = tid; i < 8192; i += THREADS) ((u32*)lut)[i] = iq2_grid[i >> 5];
    __syncthreads();
    const unsigned char* w = (const unsigned char*)p.gate_up[t.expert] + ((u64)blockIdx.x * 8 + (warp >> 1)) * N_KC * DS4_IQ2_PAIR + (warp & 1) * DS4_IQ2_TILE;
    smem_addr base = smem(shared);
    u32 my_tile = X_BYTES + (warp >> 1) * DS4_IQ2_PAIR + (warp & 1) * DS4_IQ2_TILE;
    auto fill = [&](u32 s, u32 kc) {
        smem_addr tile = base + s * GATE_UP_STAGE + my_tile;
        warp_copy<DS4_IQ2_TILE / 16>(tile, w + kc * DS4_IQ2_PAIR);
        warp_copy<DS4_IQ2_TILE / 16>(tile + 2 * DS4_IQ2_TILE, w + kc * DS4_IQ2_PAIR + 2 * DS4_IQ2_TILE);
        swizzled_tokens(base + s * GATE_UP_STAGE, rows, kc * 512, *n_tokens);
        cp_commit();
    };
    fill(0, 0);
    float cg[N / 2], cu[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; i++) cg[i] = cu[i] = 0.0f;
    const unsigned char* my_lut = lut + lane * 4;
#pragma unroll 1
    for (u32 kc = 0; kc < N_KC; kc++) {
        cp_wait<0>();
        fence_async_shared();
        __syncthreads();
        if (kc + 1 < N_KC) fill((kc + 1) & 1, kc + 1);
        const unsigned char* tile = shared + (kc & 1) * GATE_UP_STAGE + my_tile;
        u64 x = wgmma_descriptor(base + (kc & 1) * GATE_UP_STAGE);
        u32 dg[2], du[2];
        iq2_d64(tile, lane, dg);
        iq2_d64(tile + 2 * DS4_IQ2_TILE, lane, du);
#pragma unroll 1
        for (u32 half = 0; half < 2; half++, x += 2 * (TOKENS * 128 / 16)) {
            Iq2Half gate, up;
            gate.load(tile, lane, half);
            up.load(tile + 2 * DS4_IQ2_TILE, lane, half);
            gate_up_block<N, 0, 0>(gate, up, dg, du, my_lut, x, cg, cu);
            gate_up_block<N, 0, 1>(gate, up, dg, du, my_lut, x, cg, cu);
            gate_up_block<N, 1, 0>(gate, up, dg, du, my_lut, x, cg, cu);
            gate_up_block<N, 1, 1>(gate, up, dg, du, my_lut, x, cg, cu);
        }
        // The stage is written again after the next barrier.
        wgmma_wait<0>();
    }
    __syncthreads();
    expert_tile(p, t);
    list = p.lists + (u64)t.expert * p.n_rows + t.first;
    // Through shared memory to whole lines: [token][channel], in order 2.
    constexpr u32 CHANNELS = 256, LINE = CHANNELS * 2 + 16, PER_LINE = CHANNELS / 8;
#pragma unroll
    for (int n = 0; n < N / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            u32 token = 8 * n + 2 * q + (e & 1), channel = warp * 16 + g + 8 * (e >> 1);
            if (token < t.n) {
                float gate = fminf(cg[4 * n + e] * (1.0f / 512), p.clamp), up = fminf(fmaxf(cu[4 * n + e] * (1.0f / 512), -p.clamp), p.clamp);
                float h = p.weights[list[token]] * gate / (1.0f + __expf(-gate)) * up;
                u32 place = (channel & ~15u) + 8 * (channel & 1) + 2 * (channel >> 2 & 3) + (channel >> 1 & 1);
                *(u16*)(shared + token * LINE + place * 2) = f2h(clamp_h(h));
            }
        }
    __syncthreads();
    for (u32 i = tid; i < t.n * PER_LINE; i += THREADS) {
        u32 token = i / PER_LINE, chunk = i % PER_LINE;
        *(uint4*)(p.hidden + (u64)list[token] * HIDDEN + blockIdx.x * CHANNELS + chunk * 8) = *(const uint4*)(shared + token * LINE + chunk * 16);
    }
}

template <int N, int R> __device__ __forceinline__ void down_block(const Q2kHalf* tiles, const u32 (*d)[2], u64 x, float* c0, float* c1) {
    u32 a[2][2][4];
    u64 b = x + ((R >> 1) * (TOKENS * 128 / 16) + (R & 1) * 4);
    tiles[0].step<R, 0>(d[0], a[0][0]);
    tiles[0].step<R, 1>(d[0], a[0][1]);
    multiply_block<N>(c0, a[0], b);
    tiles[1].step<R, 0>(d[1], a[1][0]);
    tiles[1].step<R, 1>(d[1], a[1][1]);
    multiply_block<N>(c1, a[1], b);
}

template <int N> __device__ __forceinline__ void down(const Experts& p) {
    DYNAMIC_SHARED(shared);
    ExpertTile t;
    expert_tile(p, t);
    u64* rows = (u64*)(shared + 2 * DOWN_STAGE);
    volatile u32* n_tokens = (volatile u32*)(rows + TOKENS);
    constexpr u32 N_KC = HIDDEN / 256;
    u32 tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, q = lane & 3;
    const u32* list = p.lists + (u64)t.expert * p.n_rows + t.first;
    if (tid < TOKENS) rows[tid] = tid < t.n ? (u64)(p.hidden + (u64)list[tid] * HIDDEN) : 0;
    if (tid == 0) *n_tokens = t.n;
    __syncthreads();
    const unsigned char* w = (const unsigned char*)p.down[t.expert] + ((u64)blockIdx.x * 16 + warp) * N_KC * DS4_Q2K_PAIR;
    smem_addr base = smem(shared);
    auto fill = [&](u32 s, u32 kc) {
        warp_copy<DS4_Q2K_PAIR / 16>(base + s * DOWN_STAGE + X_BYTES + warp * DS4_Q2K_PAIR, w + kc * DS4_Q2K_PAIR);
        swizzled_tokens(base + s * DOWN_STAGE, rows, kc * 512, *n_tokens);
        cp_commit();
    };
    fill(0, 0);
    float c0[N / 2], c1[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; i++) c0[i] = c1[i] = 0.0f;
#pragma unroll 1
    for (u32 kc = 0; kc < N_KC; kc++) {
        cp_wait<0>();
        fence_async_shared();
        __syncthreads();
        if (kc + 1 < N_KC) fill((kc + 1) & 1, kc + 1);
        const unsigned char* pair = shared + (kc & 1) * DOWN_STAGE + X_BYTES + warp * DS4_Q2K_PAIR;
        u64 x = wgmma_descriptor(base + (kc & 1) * DOWN_STAGE);
        u32 d[2][2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            uint2 dd = *(const uint2*)(pair + i * DS4_Q2K_TILE + DS4_Q2K_D + g * 8);
            d[i][0] = hmul2(dd.x, 0xc4005400u);
            d[i][1] = hmul2(dd.y, 0xc4005400u);
        }
#pragma unroll 1
        for (u32 half = 0; half < 2; half++, x += 2 * (TOKENS * 128 / 16)) {
            Q2kHalf tiles[2];
            tiles[0].load(pair, lane, half);
            tiles[1].load(pair + DS4_Q2K_TILE, lane, half);
            down_block<N, 0>(tiles, d, x, c0, c1);
            down_block<N, 1>(tiles, d, x, c0, c1);
            down_block<N, 2>(tiles, d, x, c0, c1);
            down_block<N, 3>(tiles, d, x, c0, c1);
        }
        wgmma_wait<0>();
    }
    __syncthreads();
    expert_tile(p, t);
    list = p.lists + (u64)t.expert * p.n_rows + t.first;
    constexpr u32 CHANNELS = 512, LINE = CHANNELS * 2 + 16, PER_LINE = CHANNELS / 8;
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int n = 0; n < N / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                u32 token = 8 * n + 2 * q + (e & 1), channel = warp * 32 + 16 * i + g + 8 * (e >> 1);
                if (token < t.n) *(u16*)(shared + token * LINE + channel * 2) = f2h(clamp_h((i ? c1 : c0)[4 * n + e] * (1.0f / 64)));
            }
    __syncthreads();
    for (u32 i = tid; i < t.n * PER_LINE; i += THREADS) {
        u32 token = i / PER_LINE, chunk = i % PER_LINE;
        *(uint4*)(p.part + (u64)list[token] * EMBD + blockIdx.x * CHANNELS + chunk * 8) = *(const uint4*)(shared + token * LINE + chunk * 16);
    }
}

} // namespace

extern "C" __global__ void __launch_bounds__(THREADS, 1) experts_wgmma_gate_up(const __grid_constant__ Experts p) {
    ExpertTile t;
    if (!expert_tile(p, t)) return;
    if (t.n <= 16) gate_up<16>(p);
    else if (t.n <= 32) gate_up<32>(p);
    else if (t.n <= 48) gate_up<48>(p);
    else if (t.n <= 56) gate_up<56>(p);
    else gate_up<64>(p);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) experts_wgmma_down(const __grid_constant__ Experts p) {
    ExpertTile t;
    if (!expert_tile(p, t)) return;
    if (t.n <= 16) down<16>(p);
    else if (t.n <= 32) down<32>(p);
    else if (t.n <= 48) down<48>(p);
    else if (t.n <= 56) down<56>(p);
    else down<64>(p);
}
#endif
