// Finds a digit of the largest keys from the counts of its 256 values. WG is at least 256.
var<workgroup> counts: array<atomic<u32>, 256>;
var<workgroup> suffix: array<u32, 256>;
var<workgroup> chosen: vec2<u32>;

// The value that the last of `need` keys has, and how many of that value are needed.
fn choose_digit(lane: u32, need: u32) -> vec2<u32> {
    if lane < 256u { suffix[lane] = atomicLoad(&counts[lane]); }
    workgroupBarrier();
    // How many keys have this value or a larger one.
    for (var step = 1u; step < 256u; step *= 2u) {
        var n = 0u;
        if lane + step < 256u { n = suffix[lane + step]; }
        workgroupBarrier();
        if lane < 256u { suffix[lane] += n; }
        workgroupBarrier();
    }
    if lane < 256u {
        let own = suffix[lane];
        var larger = 0u;
        if lane < 255u { larger = suffix[lane + 1u]; }
        if larger < need && (own >= need || lane == 0u) { chosen = vec2<u32>(lane, need - larger); }
    }
    workgroupBarrier();
    let found = chosen;
    workgroupBarrier();
    return found;
}

// The sums of the lanes before this one.
var<workgroup> before: array<vec2<u32>, WG>;
fn sum_before(lane: u32, x: vec2<u32>) -> vec2<u32> {
    before[lane] = x;
    workgroupBarrier();
    for (var step = 1u; step < WG; step *= 2u) {
        var n = vec2<u32>(0u);
        if lane >= step { n = before[lane - step]; }
        workgroupBarrier();
        before[lane] += n;
        workgroupBarrier();
    }
    return before[lane] - x;
}
