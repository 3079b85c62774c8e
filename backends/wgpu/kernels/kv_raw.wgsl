@group(0) @binding(4) var<storage, read> raw: array<f32>;
fn raw_value(at: u32) -> f32 { return raw[at]; }
