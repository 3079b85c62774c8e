//! Rotary angles: computed once for every row on the host, in f64 where it
//! matters, and handed to every backend as cosines and sines.

use crate::geometry::{CSA_RATIO, Geometry, HCA_RATIO};

/// Which rotation a row takes.
///
/// The base is a property of the layer: sliding layers use [`RopeTable::Plain`];
/// compressed layers use [`RopeTable::Compressed`] for everything at the row's
/// own position, and one of the two last tables for a compressed row that the
/// token completes, whose position is the first token of its window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum RopeTable {
    /// Plain base, at the row's position.
    Plain = 0,
    /// Compressed base with YaRN, at the row's position.
    Compressed = 1,
    /// Compressed base, 3 tokens earlier: the ratio-4 row completed by this token.
    CsaStart = 2,
    /// Compressed base, 127 tokens earlier: the ratio-128 row completed by this token.
    HcaStart = 3,
}

impl RopeTable {
    /// Number of tables.
    pub const COUNT: usize = 4;

    /// The table of row starts for compressed rows of `ratio` tokens.
    pub fn start_of(ratio: usize) -> RopeTable {
        if ratio == CSA_RATIO {
            RopeTable::CsaStart
        } else {
            RopeTable::HcaStart
        }
    }
}

/// The inverse frequencies of both bases, each `[rope_dim / 2]` f32.
#[derive(Clone, Debug)]
pub struct RopeFrequencies {
    /// Plain base.
    pub plain: Vec<f32>,
    /// Compressed base with YaRN.
    pub compressed: Vec<f32>,
}

impl RopeFrequencies {
    /// The frequencies of a geometry: `1 / base^(2i/rope_dim)`, and for the
    /// compressed base the YaRN blend of `inv` and `inv / factor` along a ramp
    /// between the two correction dimensions (arXiv 2309.00071).
    ///
    /// The power and its reciprocal are rounded to f32 one after the other, and
    /// the blend is done in f32, because that is how the model's frequencies
    /// were made: at a million tokens one unit in the last place of a frequency
    /// turns a pair by up to 0.06 rad.
    pub fn new(geometry: &Geometry) -> RopeFrequencies {
        let dim = geometry.rope_dim as f64;
        let inverse = |base: f64, i: usize| 1.0 / base.powf(2.0 * i as f64 / dim) as f32;
        let pairs = geometry.rope_dim / 2;

        let yarn = geometry.yarn;
        let base = geometry.compressed_rope_base;
        let correction = |rotations: f64| {
            dim * (yarn.original_context / (rotations * std::f64::consts::TAU)).ln()
                / (2.0 * base.ln())
        };
        let low = correction(yarn.beta_fast).floor().max(0.0);
        let mut high = correction(yarn.beta_slow).ceil().min(dim - 1.0);
        if low == high {
            high += 0.001;
        }
        RopeFrequencies {
            plain: (0..pairs).map(|i| inverse(geometry.rope_base, i)).collect(),
            compressed: (0..pairs)
                .map(|i| {
                    let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0) as f32;
                    let inv = inverse(base, i);
                    inv / yarn.factor as f32 * ramp + inv * (1.0 - ramp)
                })
                .collect(),
        }
    }

    /// Writes the `[COUNT, rope_dim / 2, 2]` (cosine, sine) pairs of a row at
    /// `position`. The tables of row starts are the identity unless the token
    /// completes such a row.
    pub fn write_angles(&self, position: u32, out: &mut [f32]) {
        let pairs = self.plain.len();
        debug_assert_eq!(out.len(), RopeTable::COUNT * pairs * 2);
        let mut tables = out.chunks_exact_mut(pairs * 2);
        let mut next = |inverse: &[f32], position: Option<u32>| {
            let table = tables.next().expect("one chunk for every table");
            for (pair, inv) in table.chunks_exact_mut(2).zip(inverse) {
                let (sin, cos) = position.map_or((0.0, 1.0), |p| sin_cos(p, *inv));
                pair[0] = cos;
                pair[1] = sin;
            }
        };
        let start = |ratio: usize| {
            let end = position as usize + 1;
            end.is_multiple_of(ratio).then(|| (end - ratio) as u32)
        };
        next(&self.plain, Some(position));
        next(&self.compressed, Some(position));
        next(&self.compressed, start(CSA_RATIO));
        next(&self.compressed, start(HCA_RATIO));
    }
}

/// Sine and cosine of the f32 product `position * inv`. The model was trained
/// with that rounded product, so it is the argument; only its evaluation is
/// done in f64, whose range reduction is exact enough at a million tokens.
fn sin_cos(position: u32, inv: f32) -> (f32, f32) {
    let angle = position as f32 * inv;
    let (sin, cos) = f64::from(angle).sin_cos();
    (sin as f32, cos as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flash_frequencies_match_the_published_check_values() {
        let frequencies = RopeFrequencies::new(&Geometry::flash());
        for (i, expected) in [
            (1, 0.68765602),
            (15, 0.0036355386),
            (16, 0.002265625),
            (20, 2.96977778e-4),
            (24, 1.953125e-5),
            (25, 5.37231267e-6),
            (31, 5.68052904e-7),
        ] {
            let found = f64::from(frequencies.compressed[i]);
            assert!(
                (found / expected - 1.0).abs() < 1e-6,
                "pair {i}: {found} instead of {expected}"
            );
        }
    }

    #[test]
    fn a_row_start_is_rotated_at_the_first_token_of_its_window() {
        let frequencies = RopeFrequencies::new(&Geometry::flash());
        let angles = |position| {
            let mut out = vec![0.0; RopeTable::COUNT * 64];
            frequencies.write_angles(position, &mut out);
            out
        };
        let table = |angles: &[f32], table: RopeTable| angles[table as usize * 64..][..64].to_vec();
        let row = angles(255);
        assert_eq!(
            table(&row, RopeTable::CsaStart),
            table(&angles(252), RopeTable::Compressed)
        );
        assert_eq!(
            table(&row, RopeTable::HcaStart),
            table(&angles(128), RopeTable::Compressed)
        );
    }
}
