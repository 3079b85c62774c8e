// Arguments of the prefill kernels: plain structs, passed by value. The launch of each kernel (grid,
// block, dynamic shared memory) stands above its argument. Fields are in declaration order with C's
// alignment; pointers are device pointers.
//
// `n_rows` is the number of rows a step was recorded for (padding included). Halves (f16) and bf16
// are `unsigned short`.
#pragma once

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;
typedef unsigned long long u64;

// What a block of this architecture may hold in shared memory decides the number of stages.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200)
#define DS4_SHARED_KB 99
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define DS4_SHARED_KB 163
#else
#define DS4_SHARED_KB 227
#endif

// Dense products ------------------------------------------------------------------------------

#define GEMM_F32 0u      // store f32
#define GEMM_ADD_F32 1u  // add to f32
#define GEMM_F16 2u      // store halves, clamped to finite
#define GEMM_BF16 3u     // store bf16
#define GEMM_PIECES 8

#if DS4_SHARED_KB == 99
#define GEMM_256_STAGES 2
#define GEMM_128_STAGES 3
#define GEMM_64_STAGES 2
#elif DS4_SHARED_KB == 163
#define GEMM_256_STAGES 3
#define GEMM_128_STAGES 4
#define GEMM_64_STAGES 3
#else
#define GEMM_256_STAGES 4
#define GEMM_128_STAGES 5
#define GEMM_64_STAGES 4
#endif
#define GEMM_WGMMA_256_STAGES 4
#define GEMM_WGMMA_128_STAGES 6

/// One matrix of a launch and where its product goes.
struct GemmPiece {
    const u16* w;      // halves [n_groups * n_out, k], row-major, 16-byte aligned
    const u16* w_low;  // what the halves miss of f32 weights, times 1; only with n_passes = 3
    void* out;         // [n_rows, ld_out], 8-byte aligned
    u32 n_out;         // rows of w of one group, even
    u32 ld_out;        // elements between rows of out, even
    u32 first_tile;    // sum over earlier pieces of ceil(n_out / BN)
    u32 kind;          // GEMM_F32 ...
};

/// Products of the same rows with up to GEMM_PIECES matrices.
///
/// gemm_256, gemm_128, gemm_64 (mma.sync) and gemm_wgmma_256, gemm_wgmma_128 (sm_90a only), BN = 256,
/// 128 or 64: grid (ceil(n_rows / 128), tiles of all pieces, n_groups), block 256, shared memory
/// STAGES * (128 + BN) * 128 bytes. k is a multiple of 64.
/// Groups (grid z): group g reads columns g k .. of x and rows g n_out .. of w, and writes columns
/// g n_out .. of out.
/// n_passes: 1: x w; 2: (x + x_low) w; 3: (x + x_low) w + x w_low, which is f32 accuracy.
struct Gemm {
    const u16* x;      // halves [n_rows, ld_x], 16-byte aligned
    const u16* x_low;  // same shape
    u32 n_rows, ld_x, k, n_passes, n_pieces, pad;
    GemmPiece pieces[GEMM_PIECES];
};

// Rows ------------------------------------------------------------------------------------------

#define PAD_SLOT 0xffffffffu

/// The per-step numbers on the device, arrays of n_rows in the order of RowsImage; the same layout as
/// `Rows` of common.cuh.
struct StepRows {
    const u32* token;
    const u32* position;
    const u32* slot;          // PAD_SLOT: the row exists only to fill the step
    const u32* base;          // first token of the slot's range in the shared token space
    const u32* first_row;
    const u32* end_row;
    const u32* see_end;
    const u32* window_start;  // lowest position the window part of attention sees
    const u32* source;
    const float* inv_temperature;
    const float* angles;      // [n_rows, 4 tables, ROPE_DIM / 2, (cosine, sine)]
};

// Attention -------------------------------------------------------------------------------------

#if DS4_SHARED_KB == 99
#define ATTEND_BN 16
#elif DS4_SHARED_KB == 163
#define ATTEND_BN 32
#else
#define ATTEND_BN 64
#endif

/// attend: grid (n_rows, n_splits), block 256, shared memory
/// 65,536 (queries) + 2 * ATTEND_BN * 1,024 (rows, two stages) + 64 * (ATTEND_BN * 2 + 16) (weights)
/// + 2,048 bytes: ATTEND_SHARED. A block is one query with all 64 heads and one share of its rows.
/// attend_combine: only with n_splits > 1, grid (n_rows, 8), block 256, no shared memory.
struct Attend {
    StepRows rows;
    const u16* q;           // bf16 [n_rows, 64 * 512], normed and rotated
    const u16* kv;          // bf16 [n_rows, 512], the rows of the batch
    const u16* ring;        // bf16 [n_slots, n_ring, 512]
    const u16* cache;       // bf16 [tokens / ratio, 512], or null: no compressed rows
    const u32* selected;    // [n_rows, top_k] ascending, or null: all visible rows
    const float* sinks;     // [64]
    u16* out;               // halves [n_rows, 64 * 512], rotated back by table `table`
    float* out_f32;         // f32 [n_rows, 64 * 512], not rotated back, or null; then `out` is not written
    float* part;            // with n_splits > 1: f32 [n_rows, n_splits, 64, 512]
    float* part_max;        // f32 [n_rows, n_splits, 64, 2]: largest score (base 2), sum
    u32 n_ring, ratio, top_k, table, n_splits, n_rows;
};
#define ATTEND_SHARED (65536 + 2 * ATTEND_BN * 1024 + 64 * (ATTEND_BN * 2 + 16) + 2048)

// Routed experts --------------------------------------------------------------------------------
//
// A pair is (row, i): row r's i-th expert, number 6 r + i. Pairs are grouped by expert in ascending
// order, cut into tiles of TOKENS, and each product kernel runs a worst-case grid whose surplus blocks
// leave at once. Activations and hidden layers are halves, stored in the order the weights unpack in:
// column c of x (`x_experts` of Turn, order 1 of rows_to_half) lies, within its 32, at
// 16 (c / 4 % 2) + 8 (c / 2 % 2) + 2 (c / 8 % 4) + c % 2; channel c of a hidden layer (order 2), within its 16, at
// 8 (c % 2) + 2 (c / 4 % 4) + c / 2 % 2.
//
//   experts_group        grid (256 experts), block 256
//   experts_tiles        grid (1), block 256
//   then for up to 512 rows (tokens = EXPERTS_FEW_TOKENS; not on architectures of 99 KB):
//     experts_few_codes    grid (n_rows), block 512
//     experts_few_gate_up  grid (8, max_tiles), block 512, EXPERTS_FEW_GATE_UP_SHARED
//     experts_few_down     grid (8, max_tiles), block 512, EXPERTS_FEW_DOWN_SHARED
//   or, above 512 rows:
//     experts_wgmma_gate_up, experts_wgmma_down on sm_90a (tokens = EXPERTS_WGMMA_TOKENS), elsewhere
//     experts_gate_up_many, experts_down_many (tokens = EXPERTS_MANY_TOKENS), below
//   experts_sum          grid (n_rows), block 256: y = sum of the six, in order, plus `shared` if not null
// with max_tiles = min(256, 6 n_rows) + 6 n_rows / tokens.

#define EXPERTS_FEW_TOKENS 16
#define EXPERTS_WGMMA_TOKENS 64
#define EXPERTS_WARPS 16      // of a block of the few kernels
#define EXPERTS_MANY_WARPS 8  // of a block of the many kernels
#if DS4_SHARED_KB == 99
#define EXPERTS_MANY_TOKENS 32
#else
#define EXPERTS_MANY_TOKENS 64
#define EXPERTS_FEW_STAGES (DS4_SHARED_KB == 163 ? 2 : 4)
#endif
#define EXPERTS_GRID_BYTES 8192
#define EXPERTS_GATE_UP_STAGE(tokens) (EXPERTS_MANY_WARPS / 2 * 4480 + (tokens) * 528)
#define EXPERTS_DOWN_STAGE(tokens) (EXPERTS_MANY_WARPS * 2688 + (tokens) * 528)
#define EXPERTS_HEAD_BYTES 1024
#define EXPERTS_WGMMA_GATE_UP_SHARED (1024 + 2 * (8 * 4480 + 4 * 8192) + 32768)
#define EXPERTS_WGMMA_DOWN_SHARED (1024 + 2 * (16 * 2688 + 4 * 8192))
#define EXPERTS_FEW_HEAD 2048      // addresses, scales, then zeros
#define EXPERTS_FEW_ZEROS_AT 1152
#define EXPERTS_FEW_ZEROS 512
#define EXPERTS_FEW_GRID 32768
#define EXPERTS_FEW_SUMS (EXPERTS_FEW_TOKENS * 272)
#define EXPERTS_FEW_GATE_UP_SHARED (EXPERTS_FEW_HEAD + EXPERTS_FEW_GRID + EXPERTS_FEW_STAGES * (EXPERTS_WARPS / 2 * 4480 + EXPERTS_FEW_TOKENS * 576))
#define EXPERTS_FEW_DOWN_SHARED (EXPERTS_FEW_HEAD + EXPERTS_FEW_SUMS + EXPERTS_FEW_STAGES * (EXPERTS_WARPS * 2688 + EXPERTS_FEW_TOKENS * 576))

/// experts_gate_up_many: grid (16, max_tiles), block 256, shared memory EXPERTS_HEAD_BYTES + EXPERTS_GRID_BYTES + 2 * EXPERTS_GATE_UP_STAGE(EXPERTS_MANY_TOKENS).
/// experts_down_many: grid (16, max_tiles), block 256, shared memory EXPERTS_HEAD_BYTES + 2 * EXPERTS_DOWN_STAGE(EXPERTS_MANY_TOKENS).
/// experts_wgmma_gate_up, experts_wgmma_down (sm_90a only): grids (8, max_tiles), block
/// 512, shared memory EXPERTS_WGMMA_GATE_UP_SHARED, EXPERTS_WGMMA_DOWN_SHARED.
struct Experts {
    const u32* slot;        // [n_rows]
    const u32* experts;     // [n_rows, 6]
    const float* weights;   // [n_rows, 6]
    const u16* x;           // halves [n_rows, 4096], order 1
    const u64* gate_up;     // [256] addresses of IQ2 pairs
    const u64* down;        // [256] addresses of Q2K records
    u32* lists;             // [256, n_rows] pairs of each expert
    u32* counts;            // [256]
    u32* tiles;             // [4 + 4 max_tiles]: number, 3 unused; then (expert, first pair in its list, pairs, 0)
    u16* hidden;            // halves [6 n_rows, 2048], order 2
    u16* part;              // halves [6 n_rows, 4096]
    const float* shared;    // f32 [n_rows, 4096] or null
    float* y;               // f32 [n_rows, 4096]
    u32 n_rows, tokens;     // tokens: 16 or EXPERTS_MANY_TOKENS
    float clamp;
    u32 pad;
    // The few path, which keeps x and the hidden layers (in `hidden`) as codes of two bytes:
    const float* x_f32;     // f32 [n_rows, 4096]
    u8* x_codes;            // [n_rows, 8192]
    float* x_scale;         // [n_rows, 16]
    u16* hidden_sums;       // halves [6 n_rows, 128]
    float* hidden_scale;    // [6 n_rows, 8]
};

// Indexer ---------------------------------------------------------------------------------------

#define INDEX_TILE 512            // index rows of a block
#define INDEX_QUERY_BYTES 20480   // 64 heads of 128 bf16, 320 bytes apart
#define INDEX_STAGES 3
#define INDEX_SCORES_SHARED (INDEX_STAGES * (INDEX_QUERY_BYTES + 256))
#define TOP_K_CACHED 16384        // scores a block keeps in shared memory
#define TOP_K_SHARED(cached) (8192 + (cached) * 4)

/// index_scores: grid (ceil(largest n_visible / 512), ceil(n / queries)), block 256, shared memory
/// INDEX_SCORES_SHARED. `queries`: 32 for prefill, 1 when rows are of different slots.
/// index_top_k: grid (n), block 512, shared memory TOP_K_SHARED(cached), cached <= TOP_K_CACHED a
/// multiple of 4; rows that see more read their scores again from memory.
struct IndexSelect {
    StepRows rows;
    const u16* iq;          // bf16 [n_rows, 64 * 128], rotated and rounded
    const float* weights;   // f32 [n_rows, ld_weights]
    const u16* cache;       // bf16 [cache_rows, 128]
    float* scores;          // f32: row r at (r - first) * stride
    u32* selected;          // [n_rows, 512], ascending
    u32 first, n;           // rows first .. first + n of the step
    u32 stride, cache_rows, queries, ld_weights, cached, pad;
};

// Hyper-connections -----------------------------------------------------------------------------

/// hc_post of one sublayer, then hc_pre_norm of the next, for f16 `fn` in the HC layout.
///
/// turn_mix: grid (ceil(n_rows / 16), 64 / steps), block 256, no dynamic shared memory. `steps`
/// (1 to 16, a power of two) is the number of 64-channel steps a block makes: 4 for prefill, 1 for a
/// few rows. It writes streams' (when y is given) and `part`.
/// turn_pre: grid (n_rows), block 288, no dynamic shared memory. It writes gates and x.
struct Turn {
    const u32* slot;         // [n_rows]
    const float* y;          // f32 [n_rows, 4096], or null: the streams stay
    const float* y2;         // added to y, or null
    float* gates;            // f32 [n_rows, 24]: read by turn_mix (post, comb), written by turn_pre
    float* streams;          // f32 [n_rows, 4 * 4096]
    const u16* fn;           // HC layout, 24 mix rows
    const float* base;       // [24]
    const float* scale;      // [3]
    const float* norm;       // [4096]
    float* part;             // f32 [64 / steps, n_rows, 32]
    float* x;                // f32 [n_rows, 4096] or null
    u16* x_half;             // halves of x or null
    u16* x_low;              // what the halves miss, or null
    u16* x_experts;          // halves of x in order 1, or null
    u32 n_rows, steps;
};

// Rows ------------------------------------------------------------------------------------------

/// rows_to_half: grid (ceil(n_rows * width / 2048)), block 256. out = halves of x (clamped to finite);
/// low = halves of what is missing, or null. `order`: 0 as it is; 1, 2 as experts want x and hidden
/// layers (low is not written then). rows_from_half: same launch; x = f32 of out, order 0 or 2.
/// norm_half: grid (n_rows), block 256: x = weight * rms norm of x, in place; out and low as above.
/// width: a multiple of 8; of 256 and at most 4,096 for norm_half. gate_half: same launch as
/// rows_to_half: out = halves of silu(min(gate, clamp)) * clamp(up), gate in x, up in x2.
struct RowsHalf {
    float* x;
    const float* x2;
    const float* weight;
    u16* out;
    u16* low;
    u32 n_rows, width, order;
    float clamp;
};

/// q_prepare: grid (n_rows, 8), block 256: q = bf16 of rope(head norm(x)), 64 heads of 512.
/// iq_prepare: grid (n_rows, 8), block 256: bf16 of the rotated and, when `rounded`, rounded
/// (Hadamard, E2M1) index queries, 64 heads of 128.
/// kv_prepare: grid (ceil(n_rows / 8)), block 256: kv = rms norm, rope, rounding when `rounded`, in
/// place, and bf16 of it.
struct Prepare {
    StepRows rows;
    float* x;
    u16* out;             // bf16, same shape
    const float* weight;  // kv_prepare: [512]
    const u16* x_half;    // q_prepare: halves instead of x, or null
    u32 n_rows, table, rounded, pad;
};

// Matrices ---------------------------------------------------------------------------------------

/// expand_q8: grid (n_out / 16 * n_in / 256 / 8, rounded up), block 256: halves [n_out, n_in] of a Q8
/// matrix, for the dense products. `split_f32`: grid (ceil(n / 2048)), block 256: halves of f32
/// weights and of what they miss, n elements.
struct Expand {
    const void* w;
    u16* out;
    u16* out_low;   // split_f32 only
    u32 n_out, n_in;
};

#define SKINNY_Q8 0u
#define SKINNY_F16 1u

struct SkinnyPiece {
    const void* w;      // Q8 records, or halves [n_out, k] row-major
    void* out;          // [n_rows, ld_out]
    u32 n_out;          // a multiple of 16; all groups together
    u32 ld_out;
    u32 first_block;    // sum over earlier pieces of their blocks
    u32 kind;           // GEMM_F32 ...
};

/// Products of 1 to 64 rows that stream the weights once. skinny_q8_R_T, skinny_f16_R_T with R = 16, 32
/// or 64 rows (n_rows <= R) and T = 1 or 2 (R = 64: 1) row tiles of 16 for a warp.
/// With kw = min(8, k / 256) warps along k, a block has T * 8 / kw tiles: a piece takes
/// ceil(n_out / (16 T 8 / kw)) blocks; grid (blocks of all pieces), block 256, no dynamic shared
/// memory. k: a multiple of 256, k / 256 a power of two or a multiple of 8.
/// T: the largest that leaves 200 blocks or more.
/// f16 pieces multiply x and x_low (f32 accuracy); q8 ones x alone.
/// Groups: output rows g (n_out / n_groups) .. take columns g k .. of x.
struct Skinny {
    const u16* x;       // halves [n_rows, ld_x]
    const u16* x_low;   // f16 only
    u32 n_rows, ld_x, k, n_groups, n_pieces, pad;
    SkinnyPiece pieces[GEMM_PIECES];
};


// Compressed rows and rings ------------------------------------------------------------------------

/// A compressor of a layer: attention rows (dim 512) or index rows (dim 128).
struct CompressPart {
    const float* kv;        // f32 [n_rows, width]
    const float* gate;      // f32 [n_rows, width], without its position bias
    const float* ape;       // f32 [ratio, width]
    const float* norm;      // [dim]
    float* frontier;        // f32 [n_slots, n_frontier, 2 * width]: kv, then gate with its bias
    u16* cache;             // bf16 [tokens / ratio, dim]
    u32 width;              // 2 dim for ratio 4, dim for ratio 128
    u32 dim, ratio;
    u32 n_frontier;         // rows of a slot's ring
};

/// compress_rows: grid (n_rows, n_parts), block 128: the compressed rows that the step completes: pooled,
/// normed, rotated, rounded when `rounded`, stored. Reads the frontier, so it comes before store_rows.
/// store_rows: grid (n_rows, n_parts + 1), block 128, after `attend`: the projections into the frontier
/// rings, the window rows into theirs.
struct CompressRows {
    StepRows rows;
    const u16* window_rows; // bf16 [n_rows, 512]
    u16* window;            // bf16 [n_slots, n_ring, 512]
    u32 n_ring, rounded, n_parts, pad;
    CompressPart parts[2];
};
