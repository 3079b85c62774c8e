// The per-step numbers of the rows: arrays of `p.n` words, in the order of `RowsImage`.
@group(0) @binding(0) var<storage, read> rows: array<u32>;

const PAD_SLOT: u32 = 0xffffffffu;

fn row_token(r: u32) -> u32 { return rows[r]; }
fn row_position(r: u32) -> u32 { return rows[p.n + r]; }
fn row_slot(r: u32) -> u32 { return rows[2u * p.n + r]; }
fn row_base(r: u32) -> u32 { return rows[3u * p.n + r]; }
fn row_first(r: u32) -> u32 { return rows[4u * p.n + r]; }
fn row_end(r: u32) -> u32 { return rows[5u * p.n + r]; }
fn row_see_end(r: u32) -> u32 { return rows[6u * p.n + r]; }
fn row_window_start(r: u32) -> u32 { return rows[7u * p.n + r]; }
fn row_source(r: u32) -> u32 { return rows[8u * p.n + r]; }
fn row_inv_temperature(r: u32) -> f32 { return bitcast<f32>(rows[9u * p.n + r]); }

// (cosine, sine) of pair `i` of a row, `half` pairs in each of four tables.
fn row_angle(r: u32, table: u32, half_dim: u32, i: u32) -> vec2<f32> {
    let at = 10u * p.n + ((r * 4u + table) * half_dim + i) * 2u;
    return vec2<f32>(bitcast<f32>(rows[at]), bitcast<f32>(rows[at + 1u]));
}
// A row that is no row of a sequence: nothing is stored for it.
fn is_pad(r: u32) -> bool { return row_slot(r) == PAD_SLOT; }
