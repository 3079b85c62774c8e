// Adds the products of 8 elements from `8 u` on of PER rows of the weight, from `first` on and below
// `end`, with ROWS rows of floats, the first at vector `x_at[0]` of x.
fn multiply_@W@(
    sums: ptr<function, array<f32, ROWS * PER>>, first: u32, end: u32, u: u32,
    x_at: ptr<function, array<u32, ROWS>>,
) {
    var units: array<W8, PER>;
    for (var i = 0u; i < PER; i++) { units[i] = @W@_decode8(min(first + i, end - 1u), 8u * u); }
    for (var r = 0u; r < ROWS; r++) {
        let xa = @X@[(*x_at)[r] + 2u * u];
        let xb = @X@[(*x_at)[r] + 2u * u + 1u];
        for (var i = 0u; i < PER; i++) {
            (*sums)[r * PER + i] += dot(units[i].a, xa) + dot(units[i].b, xb);
        }
    }
}
