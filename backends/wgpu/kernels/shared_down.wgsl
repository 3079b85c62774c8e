// The shared expert, whose hidden values stand beside the routed ones'.
//!weight shared 7
@group(0) @binding(9) var<storage, read> shared_x: array<vec4<X>>;
@group(0) @binding(10) var<storage, read> shared_x_scales: array<f32>;
