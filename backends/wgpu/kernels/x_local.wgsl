// X_LOCAL runs of codes of x in workgroup memory, every fourth one beside each other: a lane's unit is
// four runs, and lanes that take neighbouring units read neighbouring memory.
const X_QUARTER: u32 = X_LOCAL / 4u;
var<workgroup> x_here: array<vec4<X>, X_LOCAL>;
var<workgroup> x_scales_here: array<f32, X_LOCAL / 2u>;
fn x_run(a: u32) -> vec4<X> { return x_here[(a & 3u) * X_QUARTER + a / 4u]; }
fn x_scale(a: u32) -> f32 { return x_scales_here[a / 2u]; }
fn take_x(lane: u32, first: u32) {
    for (var i = lane; i < X_LOCAL; i += WG) { x_here[(i & 3u) * X_QUARTER + i / 4u] = x[first + i]; }
    for (var i = lane; i < X_LOCAL / 2u; i += WG) { x_scales_here[i] = x_scales[first / 2u + i]; }
    workgroupBarrier();
}
