fn x_run(a: u32) -> vec4<X> { return x[a]; }
fn x_scale(a: u32) -> f32 { return x_scales[a / 2u]; }
fn take_x(lane: u32, first: u32) {}
