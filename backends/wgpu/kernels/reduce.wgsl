// Sums over a workgroup of `WG` lanes, in an order that does not depend on the subgroup size.
var<workgroup> partial: array<f32, WG>;

fn sum_all(lane: u32, x: f32) -> f32 {
    partial[lane] = x;
    workgroupBarrier();
    for (var half_len = WG / 2u; half_len > 0u; half_len /= 2u) {
        if lane < half_len { partial[lane] += partial[lane + half_len]; }
        workgroupBarrier();
    }
    let total = partial[0];
    workgroupBarrier();
    return total;
}
