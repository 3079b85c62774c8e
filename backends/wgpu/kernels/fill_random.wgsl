// Random words `(hash & keep) | fix`, for benchmarks; of every `period` words number `place` is
// `constant` when that is not zero.
struct P { n_words: u32, seed: u32, keep: u32, fix: u32, period: u32, place: u32, constant: u32, stride: u32 }
var<immediate> p: P;
@group(0) @binding(0) var<storage, read_write> data: array<u32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    for (var i = id.x; i < p.n_words; i += p.stride) {
        var h = (i ^ p.seed) * 0x9e3779b9u;
        h = (h ^ (h >> 16u)) * 0x85ebca6bu;
        h = (h ^ (h >> 13u)) * 0xc2b2ae35u;
        h = ((h ^ (h >> 16u)) & p.keep) | p.fix;
        data[i] = select(h, p.constant, p.constant != 0u && i % p.period == p.place);
    }
}
