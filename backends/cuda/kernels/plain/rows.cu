// Norms, rotations and rounding of rows, in place. One block a row unless said.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256) rms_norm(Rows rows, const float* weight, float eps, float* x, u32 width) {
    __shared__ float scratch[32];
    u32 r = blockIdx.x;
    if (rows.slot[r] == PAD_SLOT) return;
    x += (u64)r * width;
    float square = 0.0f;
    for (u32 c = threadIdx.x; c < width; c += blockDim.x) square += x[c] * x[c];
    float inv = 1.0f / sqrtf(block_sum(square, scratch) / (float)width + eps);
    for (u32 c = threadIdx.x; c < width; c += blockDim.x) x[c] = weight[c] * (x[c] * inv);
}

// Without weight, over every head of `head_dim` channels. Grid (heads, rows), a warp each.
extern "C" __global__ void __launch_bounds__(32) head_norm(Rows rows, u32 head_dim, float eps, float* x, u32 width) {
    u32 r = blockIdx.y;
    if (rows.slot[r] == PAD_SLOT) return;
    x += (u64)r * width + blockIdx.x * head_dim;
    float square = 0.0f;
    for (u32 c = threadIdx.x; c < head_dim; c += 32) square += x[c] * x[c];
    float inv = 1.0f / sqrtf(warp_sum(square) / (float)head_dim + eps);
    for (u32 c = threadIdx.x; c < head_dim; c += 32) x[c] *= inv;
}

// Neighbours of the last rope_dim channels of every head, by the row's angles. Grid (heads, rows).
extern "C" __global__ void __launch_bounds__(32) rope(
    Rows rows, u32 table, float sign, u32 head_dim, u32 rope_dim, float* x, u32 width) {
    u32 r = blockIdx.y;
    if (rows.slot[r] == PAD_SLOT) return;
    const float* angles = rows.angles + ((u64)r * 4 + table) * rope_dim;
    x += (u64)r * width + (blockIdx.x + 1) * head_dim - rope_dim;
    for (u32 i = threadIdx.x; i < rope_dim / 2; i += 32) {
        float a = x[2 * i], b = x[2 * i + 1], cosine = angles[2 * i], sine = sign * angles[2 * i + 1];
        x[2 * i] = a * cosine - b * sine;
        x[2 * i + 1] = a * sine + b * cosine;
    }
}

// Blocks of 64 channels to E4M3 with a power-of-two scale, the rotated ones to
// bf16; a warp takes a block of channels.
extern "C" __global__ void __launch_bounds__(256) kv_round(Rows rows, u32 rope_dim, float* x, u32 width) {
    u32 r = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (rows.slot[r] == PAD_SLOT) return;
    x += (u64)r * width;
    u32 plain = width - rope_dim;
    for (u32 start = warp * 64; start < plain; start += blockDim.x / 32 * 64) {
        u32 end = min(start + 64, plain);
        float most = 0.0f;
        for (u32 c = start + lane; c < end; c += 32) most = fmaxf(most, fabsf(x[c]));
        most = warp_max(most);
        float scale = exp2_int(ceil_log2(fmaxf(most, 1e-4f) * (1.0f / 448.0f)));
        for (u32 c = start + lane; c < end; c += 32)
            x[c] = e4m3_round(fminf(fmaxf(x[c] / scale, -448.0f), 448.0f)) * scale;
    }
    for (u32 c = plain + threadIdx.x; c < width; c += blockDim.x) x[c] = bf16_value(bf16_code(x[c]));
}

// Every head of `dim` channels: Hadamard, then blocks of 32 to E2M1 with a
// power-of-two scale. `root` is dim^-0.5. Grid (heads, rows); dim floats of shared memory.
extern "C" __global__ void __launch_bounds__(128) index_round(Rows rows, u32 dim, float root, float* x, u32 width) {
    extern __shared__ float head[];
    u32 r = blockIdx.y;
    if (rows.slot[r] == PAD_SLOT) return;
    x += (u64)r * width + blockIdx.x * dim;
    for (u32 c = threadIdx.x; c < dim; c += blockDim.x) head[c] = x[c];
    for (u32 half = 1; half < dim; half *= 2) {
        __syncthreads();
        for (u32 p = threadIdx.x; p < dim / 2; p += blockDim.x) {
            u32 i = p / half * 2 * half + p % half;
            float a = head[i], b = head[i + half];
            head[i] = a + b;
            head[i + half] = a - b;
        }
    }
    __syncthreads();
    for (u32 start = threadIdx.x / 32 * 32; start < dim; start += blockDim.x) {
        u32 c = start + threadIdx.x % 32;
        float value = c < dim ? head[c] * root : 0.0f;
        float most = fmaxf(warp_max(fabsf(value)), 6.0f * 1.17549435e-38f);
        float scale = exp2_int(max(ceil_log2(most * (1.0f / 6.0f)), -126));
        if (c < dim) x[c] = e2m1_round(fminf(fmaxf(value / scale, -6.0f), 6.0f)) * scale;
    }
}

// out += x. Grid (rows).
extern "C" __global__ void __launch_bounds__(256) add(Rows rows, const float* x, float* out, u32 width) {
    u32 r = blockIdx.x;
    if (rows.slot[r] == PAD_SLOT) return;
    for (u32 c = threadIdx.x; c < width; c += blockDim.x) out[(u64)r * width + c] += x[(u64)r * width + c];
}
