// The shared expert, whose hidden values stand beside the routed ones'.
//!weight shared 7
@group(0) @binding(9) var<storage, read> shared_x: array<vec4<X>>;
@group(0) @binding(10) var<storage, read> shared_x_scales: array<f32>;
fn shared_x_run(a: u32) -> vec4<X> { return shared_x[a]; }
fn shared_x_scale(a: u32) -> f32 { return shared_x_scales[a / 2u]; }
