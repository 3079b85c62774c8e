// The decode step: one persistent kernel that takes 1, 2 or 4 rows from embedding to logits.
//
//   kernel                    grid  threads  dynamic shared        per step
//   ds4_decode_epoch          1     1        0                     first: begins a step of one workspace
//   ds4_decode_step_r1        132   640      ds4_decode_smem()     phases 0 .. n_phases
//   ds4_decode_step_r2, _r4   same
//
// The 132 blocks wait for each other, so all of them must be resident: one block on each of at least
// 132 multiprocessors, sm_90 or later, 228 KB of shared memory; launch cooperatively, or alone.
// Parameters: Ds4Step by value. Everything that changes between steps is read from device memory
// (`rows`), so one captured launch serves every position.
//
// Phases are numbered 0 (embedding), 1 + 13 layer + k, then head; [first, end) of a launch selects
// some. Launching them one at a time gives bit for bit what one launch gives; that is the test of the
// waits, and nothing else uses it.
//
// What it demands (else the plain kernels run): Flash geometry (geometry.cuh); Q8_0 for q_a, q_b, kv,
// out_a, out_b, the shared expert and the output, in layout Q8; F16 compressors, indexer, router and
// embedding as in the file; F16 `fn` in layout HC; experts IQ2_XXS / Q2_K in layouts IQ2 pair / Q2K;
// cache rounding on (bf16 rows); causal rows (see_end = row + 1); no taps; every row an output.
// Rows of one slot may be several (a draft to verify) if the window ring has n_rows - 1 more rows than
// the window and the frontier ring n_rows - 1 more than it pools.
// A row is bit for bit the same whichever rows share its step, and with 1, 2 or 4 of them.
#pragma once
#include "../layout.cuh"

#define DS4_DECODE_WORKERS 128
#define DS4_DECODE_BLOCKS 132
#define DS4_DECODE_THREADS 640
#define DS4_PHASES_PER_LAYER 13

enum Ds4LayerKind { DS4_SLIDING = 0, DS4_CSA = 1, DS4_HCA = 2 };

// Weights of one layer. Vectors are f32. All fields are device addresses.
struct Ds4DecodeLayer {
    uint64_t kind;                                                     // Ds4LayerKind
    const void *fn_attn, *fn_ffn;                                      // layout HC
    const float *base_attn, *scale_attn, *norm_attn;                   // [24], [3], [n_embd]
    const float *base_ffn, *scale_ffn, *norm_ffn;
    const void *q_a, *kv, *q_b;                                        // layout Q8
    const float *q_a_norm, *kv_norm, *sinks;
    const void *out_a, *out_b;                                         // layout Q8
    const void *comp_kv, *comp_gate;                                   // f16 [dim, n_embd]; null in sliding layers
    const float *comp_ape, *comp_norm;                                 // [ratio, dim], [head_dim]
    const void *index_kv, *index_gate, *index_proj, *index_q_b;        // f16; null outside CSA layers
    const float *index_ape, *index_norm;
    const void *router;                                                // f16 [n_experts, n_embd]
    const float *bias;                                                 // [n_experts]; null in hash layers
    const int32_t *ids;                                                // [n_vocab, n_used]; null outside hash layers
    const void *const *gate_up;                                        // [n_experts] addresses, layout IQ2 pair
    const void *const *down;                                           // [n_experts] addresses, layout Q2K
    const void *shared_gate, *shared_up, *shared_down;                 // layout Q8
    float expert_clamp, shared_clamp;
};

// Caches of one layer, for all slots.
struct Ds4DecodeCache {
    uint16_t *window;       // bf16 [n_slots, window_rows, head_dim]
    uint16_t *rows;         // bf16 [n_tokens / ratio, head_dim]; null in sliding layers
    float *frontier;        // f32 [n_slots, frontier_rows, 2 dim]
    uint16_t *index_rows;   // bf16 [n_tokens / 4, index_dim]; null outside CSA layers
    float *index_frontier;  // f32 [n_slots, frontier_rows, 2 index dim]
    uint32_t window_rows, frontier_rows;
};

// Per-step numbers, device addresses, as RowsImage has them.
struct Ds4DecodeRows {
    const uint32_t *token, *position, *slot, *base; // [n_rows]
    const float *angles;                            // [n_rows, 4 tables, rope_dim / 2, (cos, sin)]
};

struct Ds4Step {
    const Ds4DecodeLayer *layers;  // device [n_layers]
    const Ds4DecodeCache *caches;  // device [n_layers]
    Ds4DecodeRows rows;
    const void *embedding;         // f16 [n_vocab, n_embd]
    const void *head_fn;           // layout HC with 4 rows
    const float *head_base, *head_scale, *head_norm;
    const void *output;            // layout Q8 [n_vocab, n_embd]
    float *logits;                 // [n_rows, n_vocab]
    void *workspace;               // zeroed once; one for each (kernel, selects) pair
    uint32_t score_stride;         // index rows that a row of scores has room for, a multiple of 64;
                                   // at least (longest position + 1) / 4 of the rows, 64 at least
    uint32_t n_layers, n_csa;      // layers, and those of kind CSA
    uint32_t selects;              // 1 when some row sees more than index_top_k index rows
    uint32_t head;                 // 1: phases after the layers run
    uint32_t first, end;           // phases
    uint32_t in_flight;            // copies in flight of each of a block's two producer warps, 1..8; 2 is best
#ifdef DS4_STAMPS
    uint32_t *marks;               // [132][DS4_STAMPS] clocks, for the bench
#endif
};

// Phases of a step, head included.
DS4_BOTH uint32_t ds4_decode_phases(uint32_t n_layers) { return 1 + DS4_PHASES_PER_LAYER * n_layers + 2; }

// Bytes of a workspace for `n_rows` (1, 2 or 4) rows: of what blocks exchange, then scores. Checked against
// the kernel's own layout where it is compiled (exchange.cuh).
DS4_BOTH uint64_t ds4_decode_exchange(uint64_t n_rows) { return 4096 + n_rows * 2583296; }
DS4_BOTH uint64_t ds4_decode_workspace(uint64_t n_rows, uint64_t score_stride) { return ds4_decode_exchange(n_rows) + n_rows * score_stride * 4; }
// Dynamic shared memory of the step kernel.
DS4_BOTH uint32_t ds4_decode_smem(uint32_t n_rows) { return 219648 + n_rows * 880; }
