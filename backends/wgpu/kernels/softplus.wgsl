// ln(1 + e^x) without overflow; a series where 1 + e would lose the digits of e.
fn softplus(x: f32) -> f32 {
    let e = exp(-abs(x));
    let series = e * (1.0 - e * (0.5 - e * (0.33333334 - e * 0.25)));
    return max(x, 0.0) + select(log(1.0 + e), series, e < 0.01);
}
