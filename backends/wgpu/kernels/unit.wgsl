// Weights as runs of 16 packed 8-bit integers: a value is scale * q - low. `at` is each run's place
// in a row, in runs.
struct Unit {
    a: vec4<u32>, b: vec4<u32>, c: vec4<u32>, d: vec4<u32>,
    scale: vec4<f32>, low: vec4<f32>, at: vec4<u32>,
}
fn run_dot(q: vec4<u32>, x: vec4<u32>) -> f32 {
    return f32(dot4I8Packed(q.x, x.x) + dot4I8Packed(q.y, x.y)
        + dot4I8Packed(q.z, x.z) + dot4I8Packed(q.w, x.w));
}
fn run_sum(x: vec4<u32>) -> f32 {
    let one = 0x01010101u;
    return f32(dot4I8Packed(one, x.x) + dot4I8Packed(one, x.y)
        + dot4I8Packed(one, x.z) + dot4I8Packed(one, x.w));
}
