// The keys of a row: those of its window that are in the ring, those of the batch, and compressed ones.
// COMPRESSED: 0 none, 1 all visible rows of `cache`, 2 those of `selected`.
struct Keys {
    // Position of the first key of the window.
    start: u32,
    // Keys in the ring, and with them those of the batch, whose first row is `first_new`.
    n_old: u32, n_window: u32, first_new: u32,
    // All of them.
    n_keys: u32,
    // Row of the cache that is the sequence's first.
    cache_row: u32,
}
fn keys_of(r: u32) -> Keys {
    let position = row_position(r);
    let first_row = row_first(r);
    let segment = position - (r - first_row);
    let start = row_window_start(r);
    let n_old = segment - min(segment, start);
    let first_new = first_row + start - min(segment, start);
    let n_window = n_old + row_see_end(r) - first_new;
    var n_compressed = 0u;
    if COMPRESSED != 0u { n_compressed = (position + 1u) / p.ratio; }
    if COMPRESSED == 2u { n_compressed = min(n_compressed, p.top_k); }
    return Keys(start, n_old, n_window, first_new, n_window + n_compressed, row_base(r) / p.ratio);
}
