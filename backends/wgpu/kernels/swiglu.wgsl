// weight * silu(min(g, clamp)) * clamp(u, ±clamp).
fn swiglu(g: f32, u: f32, limit: f32, weight: f32) -> f32 {
    let a = min(g, limit);
    return weight * (a / (1.0 + exp(-a))) * clamp(u, -limit, limit);
}
