// Scores of the chosen experts, normalised to a sum of `scale`; the floor keeps zeros from dividing.
fn mixing_weights(r: u32) {
    var sum = 0.0;
    for (var i = 0u; i < p.k; i++) { sum += scores[r * p.n_experts + experts[r * p.k + i]]; }
    for (var i = 0u; i < p.k; i++) {
        let score = scores[r * p.n_experts + experts[r * p.k + i]];
        weights[r * p.k + i] = p.scale * score / max(sum, 1.1754944e-38);
    }
}
