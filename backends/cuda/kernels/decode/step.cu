// The decode step (step.h). Blocks 0 .. 128 are workers: each streams its share of every matrix through
// a ring (stream.cuh) and multiplies; blocks 128 .. 132 are services. What they tell each other is
// exchange.cuh. A block's 20 warps are 16 consumers, 2 producers
// and 2 that fill a group of four, whose registers the consumers take.
//
// Phases of a layer, and what a worker does in each:
//  0 turn        its 32 channels of the normed input (hyper.cuh); service 128: gates
//  1 in          q_a and kv: two tiles of 16 rows of blocks 0 .. 48; f16 rows of compressors and indexer
//  2 query       256 rows of q_b, 64 rows of the indexer's (when selecting); services 129 .. 131
//  3 index query one head of 64 blocks       4 scores  its tiles of 16 index rows   (both when selecting)
//  5 attend      selection; one sixteenth of the attended rows, 8 heads
//  6 combine     half a head's output, rotated back
//  7 out_a       64 rows      8 out_b  32 rows, hc_post, mixing products
//  9 turn        as 0
// 10 router      two rows; 16 gate and 16 up rows of the shared expert
// 11 gate_up     3 (slot, 32 channels) items a row
// 12 down        32 rows of all experts and the shared one, hc_post, mixing products
#include "attend.cuh"
#include "experts.cuh"
#include "hyper.cuh"
#include "service.cuh"

namespace ds4 {

constexpr u32 Q8_ROW = E / 256 * DS4_Q8_RECORD; // a tile of 16 rows by n_embd
enum Phase { TURN_A = 0, IN, QUERY, INDEX_QUERY, SCORE, ATTEND, COMBINE, OUT_A, OUT_B, TURN_F, ROUTER, GATE_UP, DOWN };

// f16 rows of the in phase: which of the layer's [kv, gate, index kv, index gate, index proj].
DS4_DEV u32 n_float_rows(u32 kind) { return kind == DS4_CSA ? 2 * CSA_DIM + 2 * INDEX_DIM2 + IHEADS : kind == DS4_HCA ? 2 * HCA_DIM : 0; }
// First f16 row of block b. Blocks below 48 have two tiles of Q8 as well.
constexpr u32 TILED = (QR + HEAD) / 32;
DS4_DEV u32 float_row(u32 kind, u32 b) {
    const u32 n = n_float_rows(kind), few = kind == DS4_CSA ? 10 : 0;
    return b < TILED ? b * few : TILED * few + (n - TILED * few) * (b - TILED) / (W - TILED);
}
DS4_DEV const void *float_row_at(const Ds4DecodeLayer &l, u32 row) {
    const u32 dim = l.kind == DS4_CSA ? CSA_DIM : HCA_DIM;
    const void *m = l.comp_kv;
    if (row >= dim) m = l.comp_gate, row -= dim;
    if (l.kind == DS4_CSA && m == l.comp_gate && row >= dim) {
        m = l.index_kv, row -= dim;
        if (row >= INDEX_DIM2) m = l.index_gate, row -= INDEX_DIM2;
        if (m == l.index_gate && row >= INDEX_DIM2) m = l.index_proj, row -= INDEX_DIM2;
    }
    return (const u8 *)m + (size_t)row * E * 2;
}

template <int R> DS4_DEV u32 float_row_out(u32 kind, u32 row, u32 r) { // offset in the workspace
    using X = Exchange<R>;
    const u32 dim = kind == DS4_CSA ? CSA_DIM : HCA_DIM;
    if (row < dim) return X::comp + (r * CSA_DIM + row) * 4;
    row -= dim;
    if (row < dim) return X::comp + ((R + r) * CSA_DIM + row) * 4;
    row -= dim;
    if (row < INDEX_DIM2) return X::icomp + (r * INDEX_DIM2 + row) * 4;
    row -= INDEX_DIM2;
    if (row < INDEX_DIM2) return X::icomp + ((R + r) * INDEX_DIM2 + row) * 4;
    return X::iw + (r * IHEADS + row - INDEX_DIM2) * 4;
}

// What blocks take at the same time lies together, so that memory pages are read whole: unit i of q_b (64
// rows) of block b is number b + 128 i; of out_a block b has two pairs of tiles of its group.
DS4_DEV u32 out_a_tile(u32 b, u32 i) { return b / SPLITS * (OUT_RANK / 16) + 2 * (b % SPLITS + SPLITS * (i >> 1)) + (i & 1); }

// Tiles of the output matrix of block b.
DS4_DEV u32 head_tile(u32 b) { return VOCAB / 16 * b / W; }

// What a worker does after a turn, in order.
enum Op { Q8_IN = 0, F_IN, Q8_QUERY, F_QUERY, INDEX_OP, SCORE_OP, ATTEND_OP, COMBINE_OP, Q8_OUT_A, Q8_OUT_B, F_ROUTER, Q8_SHARED, GATE_UP_OP, Q8_DOWN, DOWN_OP, Q8_HEAD, OPS };
DS4_DEV u32 phase_of(u32 op) { // Q8_HEAD: DOWN + 1
    constexpr u64 PHASES = 0xdccbaa8765432211ull; // nibble i: phase of op i
    return (u32)(PHASES >> (4 * op)) & 15;
}
static_assert(IN == 1 && QUERY == 2 && OUT_B == 8 && ROUTER == 10 && DOWN == 12, "phase_of");

// ---- producers ---------------------------------------------------------------------------------------------

// Copies what the worker's ops will take, in their order: of every op some runs of slots.
template <int R> DS4_DEV void produce(Block<R> &k, Producer &p) {
    const Ds4Step &s = *k.s;
    constexpr u32 ITEMS = USED * (F / 32) / W;
    const u32 b = k.b;
#pragma unroll 1
    for (u32 layer = 0; layer <= s.n_layers; layer++) {
        const bool last = layer == s.n_layers;
        if (last && !s.head) break;
        const Ds4DecodeLayer &l = s.layers[last ? 0 : layer];
        const u32 first = 1 + DS4_PHASES_PER_LAYER * layer, kind = (u32)l.kind, *ids = k.route_ids(layer);
        if (first + DOWN < s.first || first >= s.end) continue;
#pragma unroll 1
        for (u32 op = last ? Q8_HEAD : Q8_IN; op <= (last ? Q8_HEAD : DOWN_OP); op++) {
            if (!k.runs(last ? first + 1 : first + phase_of(op))) continue;
            if (op == GATE_UP_OP || (op == Q8_DOWN && !k.runs(first + GATE_UP))) choose_experts(k, l, layer, k.route_ids(layer), k.route_weights(layer));
            const u8 *from = nullptr;
            u32 bytes = 2 * DS4_Q8_RECORD, count = 8, runs = 1;
            size_t offset = 0;
            if (op == Q8_IN) from = (const u8 *)(b < QR / 32 ? l.q_a : l.kv), offset = (size_t)(b < QR / 32 ? b : b - QR / 32) * 2 * Q8_ROW, count = 16, runs = b < TILED;
            else if (op == F_IN) bytes = E * 2, count = 1, runs = float_row(kind, b + 1) - float_row(kind, b);
            else if (op == Q8_QUERY) from = (const u8 *)l.q_b, runs = 4;
            else if (op == F_QUERY) from = (const u8 *)l.index_q_b, offset = (size_t)b * (IQ / W) * QR * 2, bytes = E * 2, count = 16, runs = kind == DS4_CSA && s.selects;
            else if (op == Q8_OUT_A) from = (const u8 *)l.out_a, count = 16, runs = 2;
            else if (op == Q8_OUT_B) from = (const u8 *)l.out_b, offset = (size_t)b * 4 * Q8_ROW, count = 32;
            else if (op == F_ROUTER) from = (const u8 *)l.router, offset = (size_t)b * 2 * E * 2, bytes = E * 2, count = 2;
            else if (op == Q8_SHARED) runs = 2;
            else if (op == GATE_UP_OP) bytes = 2 * DS4_IQ2_PAIR, runs = ITEMS * R;
            else if (op == Q8_DOWN) from = (const u8 *)l.shared_down, offset = (size_t)b * 16 * DS4_Q8_RECORD;
            else if (op == DOWN_OP) bytes = 2 * DS4_Q2K_PAIR, count = 4, runs = USED * R;
            else if (op == Q8_HEAD) from = (const u8 *)s.output, offset = (size_t)head_tile(b) * Q8_ROW, count = 8 * (head_tile(b + 1) - head_tile(b));
            else runs = 0;
#pragma unroll 1
            for (u32 i = 0; i < runs; i++) {
                if (op == F_IN) from = (const u8 *)float_row_at(l, float_row(kind, b) + i);
                else if (op == Q8_QUERY) offset = (size_t)(b + W * i) * 16 * DS4_Q8_RECORD;
                else if (op == Q8_OUT_A) offset = (size_t)out_a_tile(b, 2 * i) * Q8_ROW;
                else if (op == Q8_SHARED) from = (const u8 *)(i ? l.shared_up : l.shared_gate), offset = (size_t)b * Q8_ROW;
                else if (op == GATE_UP_OP) {
                    const u32 item = b + W * i;
                    from = (const u8 *)l.gate_up[ids[item / (F / 32)]], offset = (size_t)(item % (F / 32)) * 16 * DS4_IQ2_PAIR;
                } else if (op == DOWN_OP) from = (const u8 *)l.down[ids[i]], offset = (size_t)b * 8 * DS4_Q2K_PAIR;
                p.run(from + offset, bytes, count);
            }
        }
    }
}

// ---- workers -------------------------------------------------------------------------------------------------
//
// A step runs through its code once a layer, so code that does not stay in the instruction caches costs
// more than what it computes: all Q8 products are one loop, all f16 products another, both turns of a
// layer and the head's one as well.

// The Q8 products of one op. Returns y of an output channel (Q8_OUT_B, warps below R); the partials of
// Q8_DOWN stay at `shared`.
template <int R> DS4_DEV float q8_op(Block<R> &k, Consumer &c, const Ds4DecodeLayer &l, u32 op, u32 number, u32 &shared) {
    using B = Block<R>;
    constexpr u32 BATCH = R >= 4 ? 2 : 4; // units of 16 (16, 8 or 4 parts) or 64 rows in a buffer of partials
    const u8 *from = k.ws;
    const float *weight = nullptr;
    u32 row_bytes = E * 2, kc = k.w, units = 2, parts = 16, first_tile = 0;
    bool two = false;
    if (op == Q8_IN) {
        if (k.b >= TILED) return 0;
        from += B::X::x + TURN_ATTN * R * E * 2;
    } else if (op == Q8_QUERY) from += B::X::qr, row_bytes = QR * 4, weight = l.q_a_norm, kc = k.w & 3, units = 4, parts = 4;
    else if (op == Q8_OUT_A) from += B::X::o + (size_t)(k.b / SPLITS) * 8 * HEAD * 2, row_bytes = Q * 2, units = 4;
    else if (op == Q8_OUT_B) from += B::X::u, row_bytes = U * 2, two = true;
    else if (op == Q8_SHARED) from += B::X::x + TURN_FFN * R * E * 2;
    else if (op == Q8_DOWN) from += B::X::shared, row_bytes = F * 4, kc = k.w & 7, units = 1, parts = 8;
    else from += B::X::x + TURN_HEAD * R * E * 2, first_tile = head_tile(k.b), units = head_tile(k.b + 1) - first_tile;
    Acts<R> a, b;
    float *squares = k.f(B::S::small), inv = 1; // [4 column blocks][R]
    if (op == Q8_QUERY || op == Q8_DOWN) {
        float part;
        a.quantise(from, row_bytes, weight, kc, k.lane, number, &part);
        if (op == Q8_QUERY && k.w < 4 && k.lane % (32 / R) == 0) squares[kc * R + k.lane / (32 / R)] = part;
        b = a;
    } else {
        Line la[R], lb[R];
        b.start(lb, from, row_bytes, kc, k.lane);
        if (two) a.start(la, from, row_bytes, kc + 16, k.lane);
        b.finish(lb, from, row_bytes, kc, k.lane, number);
        a = b;
        if (two) a.finish(la, from, row_bytes, kc + 16, k.lane, number);
    }
    k.mark(2 * phase_of(op));
    float v = 0;
#pragma unroll 1
    for (u32 first = 0; first < units; first += BATCH) {
        const u32 n = units - first < BATCH ? units - first : BATCH;
        float *red = k.partials(); // [tiles][parts][R][16]
#pragma unroll 1
        for (u32 i = 0; i < n; i++) {
            Sums<R> s;
            s.clear();
#pragma unroll 1
            for (u32 j = 0; j <= (u32)two; j++) {
                const u8 *record = c.pair(DS4_Q8_RECORD);
                if (!DS4_EXPERIMENT(2)) s.add_q8(record, b, k.lane);
                c.pair_done();
                if (two) {
                    const Acts<R> t = a;
                    a = b, b = t;
                }
            }
            s.store(red + (i * 16 + k.w) * R * 16, k.lane);
        }
        if (op == Q8_DOWN) {
            shared = B::S::red + k.flip * RED * 4;
            return 0;
        }
        consumer_sync();
        const u32 rows = n * (256 / parts);
#pragma unroll 1
        for (u32 i = k.tid; i < rows * R; i += 512) {
            const u32 r = i / rows, o = i % rows;
            v = sum_parts(red + (o / 16 * parts * R + r) * 16 + o % 16, R * 16, parts);
            if (op == Q8_IN) {
                u8 *to = k.b < QR / 32 ? k.ws + B::X::qr + (r * QR + k.b * 32 + o) * 4 : k.ws + B::X::kv + (r * HEAD + (k.b - QR / 32) * 32 + o) * 4;
                store_one(to, stamp(v, number));
            } else if (op == Q8_QUERY) {
                inv = rsqrt_f(((squares[r] + squares[R + r]) + (squares[2 * R + r] + squares[3 * R + r])) * (1.f / QR) + DS4_RMS_EPS);
                store_one(k.ws + B::X::q + (r * Q + (k.b + W * (first + o / 64)) * 64 + o % 64) * 4, stamp(v * inv, number));
            } else if (op == Q8_OUT_A) store_block(k.ws + B::X::u + ((size_t)r * U + out_a_tile(k.b, first + o / 32 * 2) * 16) * 2, v, k.lane, number);
            else if (op == Q8_SHARED) { // lanes below 16 have the gate, the others up
                const float up = clamp(xor_f(v, 16), -l.shared_clamp, l.shared_clamp), gate = fminf(v, l.shared_clamp);
                if (o < 16) store_one(k.ws + B::X::shared + (r * F + k.b * 16 + o) * 4, stamp(gate * sigmoid(gate) * up, number));
            } else if (op == Q8_HEAD) k.s->logits[(size_t)r * VOCAB + (first_tile + first) * 16 + o] = v;
        }
    }
    return v;
}

// The f16 products of one op.
template <int R> DS4_DEV void float_op(Block<R> &k, Consumer &c, const Ds4DecodeLayer &l, u32 op, u32 number) {
    using B = Block<R>;
    const u32 kind = (u32)l.kind, row0 = float_row(kind, k.b), n = op == F_IN ? float_row(kind, k.b + 1) - row0 : op == F_QUERY ? 16 : 2;
    if (!n) return;
    Floats<R> x;
    const bool query = op == F_QUERY;
    x.load(k.ws + (query ? B::X::qr : B::X::xf + (op == F_IN ? TURN_ATTN : TURN_FFN) * R * E * 4), query ? QR * 4 : E * 4,
           (query ? k.w & 3 : k.w) * 256 + k.lane * 8, query ? l.q_a_norm : nullptr, number);
    k.mark(op == F_IN ? 29 : op == F_ROUTER ? 30 : 31);
    float *red = k.partials(); // [16 warps][n * R]; of a query warp w has row w / 4 of a slot, column block w % 4
    float_rows<R>(c, n, x, red + k.w * n * R);
    consumer_sync();
    if (query) {
        const float *squares = k.f(B::S::small);
        if (k.tid < 64 * R) {
            const u32 r = k.tid / 64, o = k.tid % 64;
            const float inv = rsqrt_f(((squares[r] + squares[R + r]) + (squares[2 * R + r] + squares[3 * R + r])) * (1.f / QR) + DS4_RMS_EPS);
            store_one(k.ws + B::X::iqf + (r * IQ + k.b * 64 + o) * 4, stamp(sum_parts(red + o % 4 * 64 * R + o / 4 * R + r, 16 * R, 4) * inv, number));
        }
    } else if (k.tid < n * R) {
        const u32 at = op == F_IN ? float_row_out<R>(kind, row0 + k.tid / R, k.tid % R) : (u32)B::X::router + (k.tid % R * EXPERTS + k.b * 2 + k.tid / R) * 4;
        store_one(k.ws + at, stamp(sum_parts(red + k.tid, n * R, 16), number));
    }
}

// Where a worker is: turn `i` leads into the attention of layer i / 2, into its experts, or (the last) into
// the head. Made anew for every op: what is kept over an op takes registers from it.
template <int R> struct Place {
    u32 i, layer, first, number, n_layers;
    bool ffn, last, to_head; // to_head: what follows the ops of this turn is the head's turn
    DS4_DEV Place(const Block<R> &k, u32 turn) : i(turn) {
        renew(i);
        n_layers = k.s->n_layers;
        layer = i >> 1, ffn = i & 1, first = 1 + DS4_PHASES_PER_LAYER * layer;
        last = layer == n_layers, to_head = ffn && layer + 1 == n_layers;
        number = last ? k.epoch : k.number(layer);
    }
};

template <int R> DS4_DEV void work(Block<R> &k, Consumer &c) {
    using B = Block<R>;
    const Ds4Step &s = *k.s;
    u32 shared = 0, csa = 0;
    auto kept = [&] { return (float *)(k.ws + B::X::streams) + k.b * R * HC * 32; };
    if (s.first) {
        if (k.tid < R * 128) k.f(B::S::streams)[k.tid] = kept()[k.tid];
    } else if (k.tid < R * 128) {
        const u32 r = k.tid / 128;
        k.f(B::S::streams)[k.tid] = half_lo(*(const u16 *)((const u8 *)s.embedding + ((size_t)(k.slot(r) == PAD ? 0 : s.rows.token[r]) * E + k.b * 32 + k.lane) * 2));
    }
    // What comes before turn 0 is the embedding.
#pragma unroll 1
    for (u32 i = 0; i <= 2 * s.n_layers; i++) {
        k.renew_all();
        {
            const Place<R> p(k, i);
            if (p.first + (p.ffn ? DOWN : OUT_B) < s.first) {
                csa += !p.ffn && s.layers[p.layer].kind == DS4_CSA; // of a launch of some phases only
                continue;
            }
            if ((p.first >= s.end && i) || (p.last && !s.head)) break;
            const Ds4DecodeLayer &l = k.weights(p.layer);
            if (!p.last && !p.ffn) csa += l.kind == DS4_CSA;
#ifdef DS4_STAMPS
            k.layer = p.layer;
#endif
            if (p.ffn && !p.to_head) k.fetch_layer(p.layer + 1);
            if (i == 0 && k.runs(0)) {
                fetch_mix(k, l.fn_attn, N_MIX);
                async_wait();
                consumer_sync();
                mix_out(k, N_MIX, TURN_ATTN, p.number);
            }
            if (k.runs(p.first + (p.ffn ? TURN_F : TURN_A)))
                turn_in(k, p.last ? (u32)TURN_HEAD : (u32)p.ffn, p.last ? s.head_base : p.ffn ? l.base_ffn : l.base_attn,
                        p.last ? s.head_scale : p.ffn ? l.scale_ffn : l.scale_attn, p.last ? s.head_norm : p.ffn ? l.norm_ffn : l.norm_attn, p.number);
            else { // of a launch of some phases only
                async_wait();
                consumer_sync();
            }
            k.mark(p.ffn ? 19 : 1);
        }
        float y = 0;
        bool went = false;
#pragma unroll 1
        for (u32 op = i == 2 * s.n_layers ? Q8_HEAD : i & 1 ? F_ROUTER : Q8_IN; op < OPS; op = op == Q8_OUT_B || op == DOWN_OP ? (u32)OPS : op + 1) {
            k.renew_all();
            c.w = k.w, c.lane = k.lane;
            const Place<R> p(k, i);
            const u32 phase = phase_of(op), first = p.first, number = p.number;
            if (!k.runs(p.last ? first + 1 : first + phase)) continue;
            const Ds4DecodeLayer &l = k.weights(p.layer);
            const bool selects = l.kind == DS4_CSA && s.selects;
            if (op == Q8_OUT_B || op == DOWN_OP) { // what the next turn's products need, fetched ahead
                fetch_mix(k, p.to_head ? s.head_fn : p.ffn ? k.weights(p.layer + 1).fn_attn : l.fn_ffn, p.to_head ? HC : N_MIX);
                went = true;
                if (k.w == 8 && !k.runs(first + (p.ffn ? GATE_UP : COMBINE))) fetch_gates(k, p.ffn, number); // of a launch of some phases only
            }
            if (op == Q8_IN || op == Q8_QUERY || op == Q8_OUT_A || op == Q8_OUT_B || op == Q8_SHARED || op == Q8_DOWN || op == Q8_HEAD)
                y = q8_op(k, c, l, op, number, shared);
            else if (op == F_IN || op == F_ROUTER || (op == F_QUERY && selects)) float_op(k, c, l, op, number);
            else if (op == INDEX_OP) {
                if (selects) index_query(k, number);
            } else if (op == SCORE_OP) {
                if (selects) index_scores(k, k.caches(p.layer), number);
            } else if (op == ATTEND_OP) attend(k, (u32)l.kind, k.caches(p.layer), csa - 1, number);
            else if (op == COMBINE_OP) combine(k, (u32)l.kind, l.sinks, number);
            else if (op == GATE_UP_OP) gate_up(k, c, l, p.layer, number);
            else if (op == DOWN_OP) y = down(k, c, k.f(shared), number);
            if ((op != INDEX_OP && op != SCORE_OP) || selects) k.mark(2 * phase + 1);
        }
        if (went) {
            k.renew_all();
            const Place<R> p(k, i);
            turn_out(k, y, p.to_head ? HC : N_MIX, p.to_head ? (u32)TURN_HEAD : (u32)!p.ffn, p.to_head ? k.epoch : p.number + p.ffn);
        }
    }
    consumer_sync();
    if (s.end < DS4_PHASES_PER_LAYER * s.n_layers + 3 && k.tid < R * 128) kept()[k.tid] = k.f(B::S::streams)[k.tid];
}

template <int R> DS4_DEV void serve(Block<R> &k) {
    using B = Block<R>;
    const Ds4Step &s = *k.s;
    const u32 service = k.b - W;
    for (u32 layer = 0; layer < s.n_layers; layer++) {
        const Ds4DecodeLayer &l = s.layers[layer];
        const Ds4DecodeCache &cache = s.caches[layer];
        const u32 first = 1 + DS4_PHASES_PER_LAYER * layer, kind = (u32)l.kind, number = k.number(layer);
#ifdef DS4_STAMPS
        k.layer = layer;
#endif
        if (first + DOWN < s.first || first >= s.end) continue;
        if (service == 0) {
            if (k.runs(first + TURN_A)) gates_service(k, TURN_ATTN, l.base_attn, l.scale_attn, number);
            if (k.runs(first + TURN_F)) gates_service(k, TURN_FFN, l.base_ffn, l.scale_ffn, number);
        } else if (k.runs(first + QUERY)) {
            if (service == 1) window_service(k, kind, l, cache, number);
            if (service == 2 && kind != DS4_SLIDING)
                compress_service<R, false>(k, kind, B::X::comp, B::X::comp + R * CSA_DIM * 4, CSA_DIM, l.comp_ape, l.comp_norm, cache.frontier,
                                           cache.frontier_rows, cache.rows, k.flag(FLAG_ROWS), number);
            if (service == 3 && kind == DS4_CSA)
                compress_service<R, true>(k, kind, B::X::icomp, B::X::icomp + R * INDEX_DIM2 * 4, INDEX_DIM2, l.index_ape, l.index_norm,
                                          cache.index_frontier, cache.frontier_rows, cache.index_rows, k.flag(FLAG_INDEX), number);
        }
    }
}

#ifdef DS4_EMULATE
static const u32 IQ2_GRID[256] = DS4_IQ2_GRID;
#else
__constant__ u32 IQ2_GRID[256] = DS4_IQ2_GRID;
#endif

template <int R> DS4_DEV void step(const Ds4Step &s) {
    using S = Shared<R>;
    Block<R> k;
    k.s = &s;
    k.ws = (u8 *)s.workspace;
    k.b = block_x(), k.tid = tid_x(), k.w = k.tid >> 5, k.lane = k.tid & 31, k.flip = 0;
    k.epoch = *(const u32 *)s.workspace;
    if (k.tid < SLOTS) {
        mbar_init(full_bar(k.tid), 1);
        mbar_init(empty_bar(k.tid), 16);
        mbar_init_fence();
    }
    if (k.tid < R) {
        const u32 slot = s.rows.slot[k.tid], pad = slot == PAD;
        u32 *row = (u32 *)(shared_memory() + S::rows) + k.tid * 4;
        row[0] = slot, row[1] = pad ? 0 : s.rows.position[k.tid], row[2] = pad ? 0 : s.rows.base[k.tid], row[3] = pad ? 0 : slot;
    }
    const u32 first = s.first ? (s.first - 1) / DS4_PHASES_PER_LAYER : 0;
    if (first < s.n_layers) k.fetch_layer(first);
    async_wait();
    if (k.tid < 256) ((u32 *)(shared_memory() + S::lut))[k.tid] = IQ2_GRID[k.tid];
    block_sync();
    if (k.w >= 16) {
        fewer_registers();
        if (k.b >= W || k.w >= 16 + PRODUCERS) return;
        Producer p = {0, 0, k.w - 16, k.lane, s.in_flight < SLOTS / PRODUCERS ? s.in_flight : SLOTS / PRODUCERS, stream_policy()};
        produce(k, p);
    } else {
        more_registers();
        if (k.b >= W) return serve(k);
        Consumer c = {0, k.w, k.lane};
        work(k, c);
    }
}

} // namespace ds4

#ifndef DS4_EMULATE
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define DS4_STEP(R)                                                                                                             \
    extern "C" __global__ void __launch_bounds__(DS4_DECODE_THREADS, 1) ds4_decode_step_r##R(const __grid_constant__ Ds4Step s) { \
        ds4::step<R>(s);                                                                                                        \
    }
DS4_STEP(1)
#ifndef DS4_ONLY_ONE_ROW
DS4_STEP(2)
DS4_STEP(4)
#endif

// Begins a step of one workspace.
extern "C" __global__ void ds4_decode_epoch(void *workspace) { ++*(uint32_t *)workspace; }
#endif
#endif
