// Adds the products of unit `u` of PER rows of the weight, from `first` on and below `end`, with
// ROWS rows of codes, the first at run `x_at[0]` of x.
fn multiply_@W@(
    sums: ptr<function, array<f32, ROWS * PER>>, first: u32, end: u32, u: u32,
    x_at: ptr<function, array<u32, ROWS>>,
) {
    var units: array<Unit, PER>;
    for (var i = 0u; i < PER; i++) { units[i] = @W@_unit(min(first + i, end - 1u), u); }
    for (var r = 0u; r < ROWS; r++) {
        let a = (*x_at)[r] + units[0].at.x;
        let xa = @X@_run(a);
        let sa = @X@_scale(a);
        for (var i = 0u; i < PER; i++) {
            var sum = units[i].scale.x * run_dot(units[i].a, xa);
            if @W@_LOW { sum -= units[i].low.x * run_sum(xa); }
            (*sums)[r * PER + i] += sa * sum;
        }
        if @W@_RUNS > 1u {
            let b = (*x_at)[r] + units[0].at.y;
            let xb = @X@_run(b);
            let sb = @X@_scale(b);
            for (var i = 0u; i < PER; i++) {
                var sum = units[i].scale.y * run_dot(units[i].b, xb);
                if @W@_LOW { sum -= units[i].low.y * run_sum(xb); }
                (*sums)[r * PER + i] += sb * sum;
            }
        }
        if @W@_RUNS > 2u {
            let c = (*x_at)[r] + units[0].at.z;
            let d = (*x_at)[r] + units[0].at.w;
            let xc = @X@_run(c);
            let xd = @X@_run(d);
            let sc = @X@_scale(c);
            let sd = @X@_scale(d);
            for (var i = 0u; i < PER; i++) {
                var sum = units[i].scale.z * run_dot(units[i].c, xc);
                if @W@_LOW { sum -= units[i].low.z * run_sum(xc); }
                (*sums)[r * PER + i] += sc * sum;
                sum = units[i].scale.w * run_dot(units[i].d, xd);
                if @W@_LOW { sum -= units[i].low.w * run_sum(xd); }
                (*sums)[r * PER + i] += sd * sum;
            }
        }
    }
}
