// The rows of x in f16, each value within its range.
struct P { n: u32, n_vectors: u32 }
var<immediate> p: P;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f16>>;

@compute @workgroup_size(256)
fn main(
    @builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) n_groups: vec3<u32>,
) {
    for (var i = id.x; i < p.n_vectors; i += n_groups.x * 256u) {
        out[i] = vec4<f16>(clamp(x[i], vec4<f32>(-65504.0), vec4<f32>(65504.0)));
    }
}
