// The grid in workgroup memory, where lanes look up different rows.
var<workgroup> grid: array<vec2<u32>, 256>;
fn prepare(lane: u32) {
    for (var i = lane; i < 256u; i += WG) {
        grid[i] = vec2<u32>(iq2_xxs_grid[2u * i], iq2_xxs_grid[2u * i + 1u]);
    }
    workgroupBarrier();
}
