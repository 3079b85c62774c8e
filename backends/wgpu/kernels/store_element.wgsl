// Stores two neighbouring elements of a buffer of f32, or of bf16 packed two a word. `at` is even.
fn store_pair(at: u32, a: f32, b: f32) {
    if BF16 {
        cache[at / 2u] = bf16_bits(a) | (bf16_bits(b) << 16u);
    } else {
        cache[at] = bitcast<u32>(a);
        cache[at + 1u] = bitcast<u32>(b);
    }
}
