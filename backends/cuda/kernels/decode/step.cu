// The decode step (step.h). Blocks 0 .. 128 are workers: each streams its share of every matrix through
// a ring (stream.cuh) and multiplies; blocks 128 .. 132 are services. What they tell each other is
// exchange.cuh. A block's 18 warps are 16 consumers and 2 producers.
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

// Tiles of the output matrix of block b.
DS4_DEV u32 head_tile(u32 b) { return VOCAB / 16 * b / W; }

// ---- producers ---------------------------------------------------------------------------------------------

template <int R> DS4_DEV void produce(Block<R> &k, Producer &p) {
    const Ds4Step &s = *k.s;
    const u32 b = k.b;
    for (u32 layer = 0; layer < s.n_layers; layer++) {
        const Ds4DecodeLayer &l = s.layers[layer];
        const u32 first = 1 + DS4_PHASES_PER_LAYER * layer, kind = (u32)l.kind;
        if (first + DOWN < s.first || first >= s.end) continue;
        if (k.runs(first + IN)) {
            if (b < QR / 32) p.run((const u8 *)l.q_a + (size_t)b * 2 * Q8_ROW, 2 * DS4_Q8_RECORD, 16);
            else if (b < TILED) p.run((const u8 *)l.kv + (size_t)(b - QR / 32) * 2 * Q8_ROW, 2 * DS4_Q8_RECORD, 16);
            for (u32 i = float_row(kind, b); i < float_row(kind, b + 1); i++) p.copy((const u8 *)float_row_at(l, i), E * 2);
        }
        if (k.runs(first + QUERY)) {
            p.run((const u8 *)l.q_b + (size_t)b * 16 * 4 * DS4_Q8_RECORD, 2 * DS4_Q8_RECORD, 32);
            if (kind == DS4_CSA && s.selects) p.run((const u8 *)l.index_q_b + (size_t)b * (IQ / W) * QR * 2, E * 2, 16);
        }
        if (k.runs(first + OUT_A)) p.run((const u8 *)l.out_a + (size_t)b * 4 * Q8_ROW, 2 * DS4_Q8_RECORD, 32);
        if (k.runs(first + OUT_B)) p.run((const u8 *)l.out_b + (size_t)b * 4 * Q8_ROW, 2 * DS4_Q8_RECORD, 32);
        if (k.runs(first + ROUTER)) {
            p.run((const u8 *)l.router + (size_t)b * 2 * E * 2, E * 2, 2);
            p.run((const u8 *)l.shared_gate + (size_t)b * Q8_ROW, 2 * DS4_Q8_RECORD, 8);
            p.run((const u8 *)l.shared_up + (size_t)b * Q8_ROW, 2 * DS4_Q8_RECORD, 8);
        }
        u32 *ids = k.route_ids(layer);
        if (k.runs(first + GATE_UP) || k.runs(first + DOWN)) choose_experts(k, l, layer, ids, k.route_weights(layer));
        if (k.runs(first + GATE_UP)) {
            constexpr u32 ITEMS = USED * (F / 32) / W;
            for (u32 i = 0; i < ITEMS * R; i++) {
                const u32 item = b * ITEMS * R + i;
                p.run((const u8 *)l.gate_up[ids[item / (F / 32)]] + (size_t)(item % (F / 32)) * 16 * DS4_IQ2_PAIR, 2 * DS4_IQ2_PAIR, 8);
            }
        }
        if (k.runs(first + DOWN)) {
            p.run((const u8 *)l.shared_down + (size_t)b * 16 * DS4_Q8_RECORD, 2 * DS4_Q8_RECORD, 8);
            for (u32 i = 0; i < USED * R; i++) p.run((const u8 *)l.down[ids[i]] + (size_t)b * 8 * DS4_Q2K_PAIR, 2 * DS4_Q2K_PAIR, 4);
        }
    }
    if (s.head && k.runs(1 + DS4_PHASES_PER_LAYER * s.n_layers + 1))
        p.run((const u8 *)s.output + (size_t)head_tile(b) * Q8_ROW, 2 * DS4_Q8_RECORD, 8 * (head_tile(b + 1) - head_tile(b)));
}

// ---- workers -------------------------------------------------------------------------------------------------

template <int R> DS4_DEV void in_phase(Block<R> &k, Consumer &c, u32 kind, u32 number) {
    using B = Block<R>;
    if (k.b < TILED) {
        Acts<R> a;
        a.load(k.ws + B::X::x + TURN_ATTN * R * E * 2, E * 2, k.w, k.lane, number);
        k.mark(2 * IN);
        float *red = k.partials(); // [2 tiles][16 warps][R][16]
        for (u32 i = 0; i < 2; i++) {
            Sums<R> s;
            s.clear();
            s.add_q8(c.pair(DS4_Q8_RECORD), a, k.lane);
            c.pair_done();
            s.store(red + (i * 16 + k.w) * R * 16, k.lane);
        }
        consumer_sync();
        if (k.tid < 32 * R) {
            const u32 r = k.tid / 32, i = k.tid % 32;
            const float v = sum16(red + (i / 16 * 16 * R + r) * 16 + i % 16, R * 16);
            u8 *to = k.b < QR / 32 ? k.ws + B::X::qr + (r * QR + k.b * 32 + i) * 4 : k.ws + B::X::kv + (r * HEAD + (k.b - QR / 32) * 32 + i) * 4;
            store_one(to, stamp(v, number));
        }
    }
    const u32 row0 = float_row(kind, k.b), n = float_row(kind, k.b + 1) - row0;
    if (n) {
        Floats<R> x;
        x.load(k.ws + B::X::xf + TURN_ATTN * R * E * 4, E * 4, k.w * 256 + k.lane * 8, nullptr, number);
        float *red = k.partials(); // [16 warps][n * R]
        float_rows<R>(c, n, x, red + k.w * n * R);
        consumer_sync();
        if (k.tid < n * R) store_one(k.ws + float_row_out<R>(kind, row0 + k.tid / R, k.tid % R), stamp(sum16(red + k.tid, n * R), number));
    }
}

template <int R> DS4_DEV void query_phase(Block<R> &k, Consumer &c, const Ds4DecodeLayer &l, bool index, u32 number) {
    using B = Block<R>;
    const u32 kc = k.w & 3;
    float *squares = k.f(B::S::small); // [4 column blocks][R]
    {
        Acts<R> a;
        float part;
        a.quantise(k.ws + B::X::qr, QR * 4, l.q_a_norm, kc, k.lane, number, &part);
        k.mark(2 * QUERY);
        if (k.w < 4 && k.lane % (32 / R) == 0) squares[kc * R + k.lane / (32 / R)] = part;
        constexpr u32 STAGES = R >= 4 ? 2 : 4; // of one buffer of partials
        for (u32 first = 0; first < 4; first += STAGES) {
            float *red = k.partials(); // [4 STAGES tiles][4 column blocks][R][16]
            for (u32 i = 0; i < STAGES; i++) {
                Sums<R> s;
                s.clear();
                s.add_q8(c.pair(DS4_Q8_RECORD), a, k.lane);
                c.pair_done();
                s.store(red + ((i * 4 + k.w / 4) * 4 + kc) * R * 16, k.lane);
            }
            consumer_sync();
            for (u32 i = k.tid; i < STAGES * 64 * R; i += 512) {
                const u32 r = i / (STAGES * 64), o = i % (STAGES * 64);
                const float *p = red + (o / 16 * 4 * R + r) * 16 + o % 16;
                const float inv = rsqrt_f(((squares[r] + squares[R + r]) + (squares[2 * R + r] + squares[3 * R + r])) * (1.f / QR) + DS4_RMS_EPS);
                const float v = ((p[0] + p[R * 16]) + (p[2 * R * 16] + p[3 * R * 16])) * inv;
                store_one(k.ws + B::X::q + (r * Q + k.b * 256 + first * 64 + o) * 4, stamp(v, number));
            }
        }
    }
    if (index) {
        Floats<R> x;
        x.load(k.ws + B::X::qr, QR * 4, kc * 256 + k.lane * 8, l.q_a_norm, number);
        float *red = k.partials(); // [16 warps][16 slots * R]: warp w has row w / 4 of a slot, column block w % 4
        float_rows<R>(c, 16, x, red + k.w * 16 * R);
        consumer_sync();
        if (k.tid < 64 * R) {
            const u32 r = k.tid / 64, o = k.tid % 64;
            const float *p = red + o % 4 * 4 * 16 * R + o / 4 * R + r;
            const float inv = rsqrt_f(((squares[r] + squares[R + r]) + (squares[2 * R + r] + squares[3 * R + r])) * (1.f / QR) + DS4_RMS_EPS);
            const float v = ((p[0] + p[16 * R]) + (p[2 * 16 * R] + p[3 * 16 * R])) * inv;
            store_one(k.ws + B::X::iqf + (r * IQ + k.b * 64 + o) * 4, stamp(v, number));
        }
    }
    consumer_sync(); // `squares` is read
}

template <int R> DS4_DEV void out_a_phase(Block<R> &k, Consumer &c, u32 number) {
    using B = Block<R>;
    Acts<R> a;
    a.load(k.ws + B::X::o + (size_t)(k.b / SPLITS) * 8 * HEAD * 2, Q * 2, k.w, k.lane, number);
    k.mark(2 * OUT_A);
    constexpr u32 TILES = R >= 4 ? 2 : 4;
    for (u32 first = 0; first < 4; first += TILES) {
        float *red = k.partials(); // [TILES][16 warps][R][16]
        for (u32 i = 0; i < TILES; i++) {
            Sums<R> s;
            s.clear();
            s.add_q8(c.pair(DS4_Q8_RECORD), a, k.lane);
            c.pair_done();
            s.store(red + (i * 16 + k.w) * R * 16, k.lane);
        }
        consumer_sync();
        if (k.tid < TILES * 16 * R) {
            const u32 r = k.tid / (TILES * 16), o = k.tid % (TILES * 16);
            const float v = sum16(red + (o / 16 * 16 * R + r) * 16 + o % 16, R * 16);
            store_block(k.ws + B::X::u + ((size_t)r * U + k.b * 64 + first * 16 + o / 32 * 32) * 2, v, k.lane, number);
        }
    }
}

// y of warp r: row r, of a lane its channel.
template <int R> DS4_DEV float out_b_phase(Block<R> &k, Consumer &c, u32 number) {
    using B = Block<R>;
    Acts<R> a[2];
    a[0].load(k.ws + B::X::u, U * 2, k.w, k.lane, number);
    a[1].load(k.ws + B::X::u, U * 2, 16 + k.w, k.lane, number);
    k.mark(2 * OUT_B);
    float *red = k.partials(); // [2 tiles][16 warps][R][16]
    for (u32 i = 0; i < 2; i++) {
        Sums<R> s;
        s.clear();
#pragma unroll
        for (u32 j = 0; j < 2; j++) {
            s.add_q8(c.pair(DS4_Q8_RECORD), a[j], k.lane);
            c.pair_done();
        }
        s.store(red + (i * 16 + k.w) * R * 16, k.lane);
    }
    consumer_sync();
    return k.w < R ? sum16(red + (k.lane / 16 * 16 * R + k.w) * 16 + k.lane % 16, R * 16) : 0.f;
}

template <int R> DS4_DEV void router_phase(Block<R> &k, Consumer &c, const Ds4DecodeLayer &l, u32 number) {
    using B = Block<R>;
    {
        Floats<R> x;
        x.load(k.ws + B::X::xf + TURN_FFN * R * E * 4, E * 4, k.w * 256 + k.lane * 8, nullptr, number);
        k.mark(2 * ROUTER);
        float *red = k.partials();
        float_rows<R>(c, 2, x, red + k.w * 2 * R);
        consumer_sync();
        if (k.tid < 2 * R)
            store_one(k.ws + B::X::router + (k.tid % R * EXPERTS + k.b * 2 + k.tid / R) * 4, stamp(sum16(red + k.tid, 2 * R), number));
    }
    Acts<R> a;
    a.load(k.ws + B::X::x + TURN_FFN * R * E * 2, E * 2, k.w, k.lane, number);
    float *red = k.partials(); // [gate, up][16 warps][R][16]
    for (u32 i = 0; i < 2; i++) {
        Sums<R> s;
        s.clear();
        s.add_q8(c.pair(DS4_Q8_RECORD), a, k.lane);
        c.pair_done();
        s.store(red + (i * 16 + k.w) * R * 16, k.lane);
    }
    consumer_sync();
    if (k.tid < 16 * R) {
        const float gate = fminf(sum16(red + k.tid, R * 16), l.shared_clamp);
        const float up = clamp(sum16(red + 256 * R + k.tid, R * 16), -l.shared_clamp, l.shared_clamp);
        store_one(k.ws + B::X::shared + (k.tid / 16 * F + k.b * 16 + k.tid % 16) * 4, stamp(gate * sigmoid(gate) * up, number));
    }
}

template <int R> DS4_DEV void head_phase(Block<R> &k, Consumer &c, u32 number) {
    using B = Block<R>;
    Acts<R> a;
    a.load(k.ws + B::X::x + TURN_HEAD * R * E * 2, E * 2, k.w, k.lane, number);
    constexpr u32 TILES = R >= 4 ? 2 : 4;
    const u32 end = head_tile(k.b + 1);
    for (u32 tile = head_tile(k.b); tile < end; tile += TILES) {
        float *red = k.partials(); // [TILES][16 warps][R][16]
        const u32 n = end - tile < TILES ? end - tile : TILES;
        for (u32 i = 0; i < n; i++) {
            Sums<R> s;
            s.clear();
            s.add_q8(c.pair(DS4_Q8_RECORD), a, k.lane);
            c.pair_done();
            s.store(red + (i * 16 + k.w) * R * 16, k.lane);
        }
        consumer_sync();
        if (k.tid < n * 16 * R) {
            const u32 r = k.tid / (n * 16), o = k.tid % (n * 16);
            k.s->logits[(size_t)r * VOCAB + tile * 16 + o] = sum16(red + (o / 16 * 16 * R + r) * 16 + o % 16, R * 16);
        }
    }
}

template <int R> DS4_DEV void work(Block<R> &k, Consumer &c) {
    using B = Block<R>;
    const Ds4Step &s = *k.s;
    float *streams = k.f(B::S::streams), *kept = (float *)(k.ws + B::X::streams) + k.b * R * HC * 32;
    MixRows mix;
    if (s.first == 0) {
        mix.load(s.layers[0].fn_attn, N_MIX, k.b, k.w, k.lane);
        if (k.tid < R * 128) {
            const u32 r = k.tid / 128, pair = *(const u16 *)((const u8 *)s.embedding + ((size_t)(k.slot(r) == PAD ? 0 : s.rows.token[r]) * E + k.b * 32 + k.lane) * 2);
            streams[k.tid] = half_lo(pair);
        }
        consumer_sync();
        mix_out(k, mix, N_MIX, TURN_ATTN, k.number(0));
    } else if (k.tid < R * 128)
        streams[k.tid] = kept[k.tid];
    u32 csa = 0;
    for (u32 layer = 0; layer < s.n_layers; layer++) {
        const Ds4DecodeLayer &l = s.layers[layer];
        const Ds4DecodeCache &cache = s.caches[layer];
        const u32 first = 1 + DS4_PHASES_PER_LAYER * layer, kind = (u32)l.kind, number = k.number(layer), this_csa = csa;
        const bool selects = kind == DS4_CSA && s.selects;
        csa += kind == DS4_CSA;
#ifdef DS4_STAMPS
        k.layer = layer;
#endif
        if (first + DOWN < s.first || first >= s.end) continue;
        if (k.runs(first + TURN_A)) turn_in(k, TURN_ATTN, l.base_attn, l.scale_attn, l.norm_attn, number), k.mark(2 * TURN_A + 1);
        if (k.runs(first + IN)) in_phase(k, c, kind, number), k.mark(2 * IN + 1);
        if (k.runs(first + QUERY)) query_phase(k, c, l, selects, number), k.mark(2 * QUERY + 1);
        if (selects && k.runs(first + INDEX_QUERY)) index_query(k, number), k.mark(2 * INDEX_QUERY + 1);
        if (selects && k.runs(first + SCORE)) index_scores(k, cache, number), k.mark(2 * SCORE + 1);
        if (k.runs(first + ATTEND)) attend(k, kind, cache, this_csa, number), k.mark(2 * ATTEND + 1);
        if (k.runs(first + COMBINE)) combine(k, kind, l.sinks, number), k.mark(2 * COMBINE + 1);
        if (k.runs(first + OUT_A)) out_a_phase(k, c, number), k.mark(2 * OUT_A + 1);
        if (k.runs(first + OUT_B)) {
            mix.load(l.fn_ffn, N_MIX, k.b, k.w, k.lane);
            const float y = out_b_phase(k, c, number);
            turn_out(k, y, TURN_ATTN, number, mix, N_MIX, TURN_FFN, number);
            k.mark(2 * OUT_B + 1);
        }
        if (k.runs(first + TURN_F)) turn_in(k, TURN_FFN, l.base_ffn, l.scale_ffn, l.norm_ffn, number), k.mark(2 * TURN_F + 1);
        if (k.runs(first + ROUTER)) router_phase(k, c, l, number), k.mark(2 * ROUTER + 1);
        if (k.runs(first + GATE_UP)) gate_up(k, c, l, layer, number), k.mark(2 * GATE_UP + 1);
        if (k.runs(first + DOWN)) {
            const bool last = layer + 1 == s.n_layers;
            mix.load(last ? s.head_fn : s.layers[layer + 1].fn_attn, last ? HC : N_MIX, k.b, k.w, k.lane);
            const float y = down(k, c, number);
            turn_out(k, y, TURN_FFN, number, mix, last ? HC : N_MIX, last ? TURN_HEAD : TURN_ATTN, last ? k.epoch : number + 1);
            k.mark(2 * DOWN + 1);
        }
    }
    const u32 first = 1 + DS4_PHASES_PER_LAYER * s.n_layers;
    if (s.head && k.runs(first)) turn_in(k, TURN_HEAD, s.head_base, s.head_scale, s.head_norm, k.epoch);
    if (s.head && k.runs(first + 1)) head_phase(k, c, k.epoch);
    consumer_sync();
    if (s.end < first + 2 && k.tid < R * 128) kept[k.tid] = streams[k.tid];
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
static u8 *dynamic_shared() { return simt::smem(); }
static const u32 IQ2_GRID[256] = DS4_IQ2_GRID;
#else
extern __shared__ __align__(128) u8 dynamic_shared_memory[];
DS4_DEV u8 *dynamic_shared() { return dynamic_shared_memory; }
__constant__ u32 IQ2_GRID[256] = DS4_IQ2_GRID;
#endif

template <int R> DS4_DEV void step(const Ds4Step &s) {
    using S = Shared<R>;
    Block<R> k;
    k.s = &s;
    k.sm = dynamic_shared();
    k.ws = (u8 *)s.workspace;
    k.b = block_x(), k.tid = tid_x(), k.w = k.tid >> 5, k.lane = k.tid & 31, k.flip = 0;
    k.epoch = *(const u32 *)s.workspace;
    const u32 bars = smem_addr(k.sm + S::bars);
    const Ring ring = {smem_addr(k.sm + S::ring), bars, bars + SLOTS * 8, k.sm + S::ring};
    if (k.tid < SLOTS) {
        mbar_init(ring.full + 8 * k.tid, 1);
        mbar_init(ring.empty + 8 * k.tid, 16);
        mbar_init_fence();
    }
    fill_grid((u32 *)(k.sm + S::lut), k.tid, DS4_DECODE_THREADS, IQ2_GRID);
    block_sync();
    if (k.b >= W) {
        if (k.w < 16) serve(k);
    } else if (k.w >= 16) {
        Producer p = {ring, 0, 0, k.w - 16, k.lane, s.in_flight < SLOTS / PRODUCERS ? s.in_flight : SLOTS / PRODUCERS, stream_policy()};
        produce(k, p);
    } else {
        Consumer c = {ring, 0, k.w, k.lane};
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
DS4_STEP(2)
DS4_STEP(4)

// Begins a step of one workspace.
extern "C" __global__ void ds4_decode_epoch(void *workspace) { ++*(uint32_t *)workspace; }
#endif
#endif
