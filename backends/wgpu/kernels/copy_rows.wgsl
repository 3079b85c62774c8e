// Copies words inside a buffer; the ranges do not overlap.
struct P { from_word: u32, to_word: u32, n_words: u32, stride: u32 }
var<immediate> p: P;
@group(0) @binding(0) var<storage, read_write> data: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    for (var i = id.x; i < p.n_words; i += p.stride) { data[p.to_word + i] = data[p.from_word + i]; }
}
