// The grid in workgroup memory, where lanes look up different rows: GRID_COPIES of it side by side, so
// that neighbouring lanes read different banks.
var<workgroup> grid: array<vec2<u32>, 256u * GRID_COPIES>;
var<private> grid_copy: u32;
fn prepare(lane: u32) {
    grid_copy = lane & (GRID_COPIES - 1u);
    for (var i = lane; i < 256u; i += WG) {
        let row = vec2<u32>(iq2_xxs_grid[2u * i], iq2_xxs_grid[2u * i + 1u]);
        for (var c = 0u; c < GRID_COPIES; c++) {
            grid[i * GRID_COPIES + ((c + lane) & (GRID_COPIES - 1u))] = row;
        }
    }
    workgroupBarrier();
}
