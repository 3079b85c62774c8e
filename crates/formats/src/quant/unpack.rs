//! Every block type as integers, scales and mins: the one place that knows where the bits lie.

use super::block::*;
use super::grid::*;

/// A block taken apart: element `e` is `scale[k] * v[e] - min[k]`, `k` its sub-block of
/// `LEN / SUBS` elements. Scales and mins are exact in f32 for every type.
pub(super) struct Unpacked<const LEN: usize, const SUBS: usize> {
    pub(super) v: [i8; LEN],
    pub(super) scale: [f32; SUBS],
    pub(super) min: [f32; SUBS],
}

impl<const LEN: usize, const SUBS: usize> Unpacked<LEN, SUBS> {
    const fn zero() -> Self {
        Unpacked {
            v: [0; LEN],
            scale: [0.0; SUBS],
            min: [0.0; SUBS],
        }
    }
}

/// The types of 32 elements have one scale; those of 256 are given one per 16.
pub(super) type Unpacked32 = Unpacked<32, 1>;
pub(super) type Unpacked256 = Unpacked<256, 16>;

pub(super) trait Unpack<const LEN: usize, const SUBS: usize> {
    fn unpack(&self) -> Unpacked<LEN, SUBS>;
}

const fn nibble(bytes: &[u8], i: usize) -> u8 {
    (bytes[i / 2] >> (4 * (i % 2))) & 15
}

/// Levels of 32 nibbles stored in halves: element `i < 16` low in byte `i`, `16 + i` high.
fn halves(qs: &[u8; 16], levels: &[i8; 16], v: &mut [i8]) {
    for (i, &q) in qs.iter().enumerate() {
        v[i] = levels[(q & 15) as usize];
        v[16 + i] = levels[(q >> 4) as usize];
    }
}

/// A grid row with the signs of a byte: bit `j` set negates value `j`.
fn signed(row: &[u8], signs: u8, v: &mut [i8]) {
    for (j, &magnitude) in row.iter().enumerate() {
        v[j] = if (signs >> j) & 1 != 0 {
            -(magnitude as i8)
        } else {
            magnitude as i8
        };
    }
}

impl Unpack<32, 1> for BlockQ8_0 {
    fn unpack(&self) -> Unpacked32 {
        Unpacked {
            v: self.qs,
            scale: [f16_to_f32(self.d)],
            min: [0.0],
        }
    }
}

impl Unpack<32, 1> for BlockIq4Nl {
    fn unpack(&self) -> Unpacked32 {
        let mut out = Unpacked::zero();
        halves(&self.qs, &IQ4_LEVELS, &mut out.v);
        out.scale = [f16_to_f32(self.d)];
        out
    }
}

impl Unpack<32, 1> for BlockMxfp4 {
    fn unpack(&self) -> Unpacked32 {
        let mut out = Unpacked::zero();
        halves(&self.qs, &MXFP4_DOUBLED, &mut out.v);
        out.scale = [self.half_scale()];
        out
    }
}

impl Unpack<256, 16> for BlockQ2K {
    fn unpack(&self) -> Unpacked256 {
        let mut out = Unpacked::zero();
        let (d, dmin) = (f16_to_f32(self.d), f16_to_f32(self.dmin));
        for k in 0..16 {
            out.scale[k] = d * f32::from(self.scales[k] & 15);
            out.min[k] = dmin * f32::from(self.scales[k] >> 4);
        }
        for e in 0..256 {
            let (n, r, l) = (e / 128, e % 128 / 32, e % 32);
            out.v[e] = ((self.qs[32 * n + l] >> (2 * r)) & 3) as i8;
        }
        out
    }
}

impl Unpack<256, 16> for BlockQ3K {
    fn unpack(&self) -> Unpacked256 {
        let mut out = Unpacked::zero();
        let d = f16_to_f32(self.d);
        for k in 0..16 {
            let low = if k < 8 {
                self.scales[k] & 15
            } else {
                self.scales[k - 8] >> 4
            };
            let high = (self.scales[8 + k % 4] >> (2 * (k / 4))) & 3;
            out.scale[k] = d * f32::from((low | (high << 4)) as i8 - 32);
        }
        for e in 0..256 {
            let (n, r, l) = (e / 128, e % 128 / 32, e % 32);
            let low = ((self.qs[32 * n + l] >> (2 * r)) & 3) as i8;
            let high = (self.hmask[l] >> (4 * n + r)) & 1 != 0;
            out.v[e] = low - if high { 0 } else { 4 };
        }
        out
    }
}

/// Scales and mins of the two types that pack them in 12 bytes.
fn scales_mins(d: f32, dmin: f32, scales: &[u8; 12], out: &mut Unpacked256) {
    for k in 0..16 {
        let (scale, min) = BlockQ4K::scale_min(scales, k / 2);
        out.scale[k] = d * f32::from(scale);
        out.min[k] = dmin * f32::from(min);
    }
}

impl Unpack<256, 16> for BlockQ4K {
    fn unpack(&self) -> Unpacked256 {
        let mut out = Unpacked::zero();
        scales_mins(
            f16_to_f32(self.d),
            f16_to_f32(self.dmin),
            &self.scales,
            &mut out,
        );
        for e in 0..256 {
            let (j, l) = (e / 32, e % 32);
            out.v[e] = ((self.qs[32 * (e / 64) + l] >> (4 * (j % 2))) & 15) as i8;
        }
        out
    }
}

impl Unpack<256, 16> for BlockQ5K {
    fn unpack(&self) -> Unpacked256 {
        let mut out = Unpacked::zero();
        scales_mins(
            f16_to_f32(self.d),
            f16_to_f32(self.dmin),
            &self.scales,
            &mut out,
        );
        for e in 0..256 {
            let (j, l) = (e / 32, e % 32);
            let low = (self.qs[32 * (e / 64) + l] >> (4 * (j % 2))) & 15;
            let high = (self.qh[l] >> j) & 1;
            out.v[e] = (low | (high << 4)) as i8;
        }
        out
    }
}

impl Unpack<256, 16> for BlockQ6K {
    fn unpack(&self) -> Unpacked256 {
        let mut out = Unpacked::zero();
        let d = f16_to_f32(self.d);
        for k in 0..16 {
            out.scale[k] = d * f32::from(self.scales[k]);
        }
        for e in 0..256 {
            let (n, r, l) = (e / 128, e % 128 / 32, e % 32);
            let low = (self.ql[64 * n + 32 * (r & 1) + l] >> (4 * (r / 2))) & 15;
            let high = (self.qh[32 * n + l] >> (2 * r)) & 3;
            out.v[e] = (low | (high << 4)) as i8 - 32;
        }
        out
    }
}

impl Unpack<256, 16> for BlockIq2Xxs {
    fn unpack(&self) -> Unpacked256 {
        let mut out = Unpacked::zero();
        let d = f16_to_f32(self.d);
        for (i, [indices, signs]) in self.groups.iter().enumerate() {
            let (indices, signs) = (indices.get(), signs.get());
            let scale = d * (0.5 + (signs >> 28) as f32) / 4.0;
            out.scale[2 * i..2 * i + 2].fill(scale);
            for l in 0..4 {
                let row = &iq2_xxs_grid()[(indices >> (8 * l)) as usize & 255];
                let code = (signs >> (7 * l)) as u8 & 127;
                signed(row, even_signs(code), &mut out.v[32 * i + 8 * l..][..8]);
            }
        }
        out
    }
}

impl Unpack<256, 16> for BlockIq2Xs {
    fn unpack(&self) -> Unpacked256 {
        let mut out = Unpacked::zero();
        let d = f16_to_f32(self.d);
        for k in 0..16 {
            out.scale[k] = d * (0.5 + f32::from(nibble(&self.scales, k))) / 4.0;
        }
        for (g, q) in self.qs.iter().enumerate() {
            let q = q.get();
            let row = &iq2_xs_grid()[q as usize & 511];
            signed(row, even_signs((q >> 9) as u8), &mut out.v[8 * g..][..8]);
        }
        out
    }
}

impl Unpack<256, 16> for BlockIq2S {
    fn unpack(&self) -> Unpacked256 {
        let mut out = Unpacked::zero();
        let d = f16_to_f32(self.d);
        for k in 0..16 {
            out.scale[k] = d * (0.5 + f32::from(nibble(&self.scales, k))) / 4.0;
        }
        for g in 0..32 {
            let high = (self.qh[g / 4] >> (2 * (g % 4))) & 3;
            let row = &iq2_s_grid()[self.qs[g] as usize | ((high as usize) << 8)];
            signed(row, self.signs[g], &mut out.v[8 * g..][..8]);
        }
        out
    }
}

impl Unpack<256, 16> for BlockIq3Xxs {
    fn unpack(&self) -> Unpacked256 {
        let mut out = Unpacked::zero();
        let d = f16_to_f32(self.d);
        for (i, word) in self.signs_scale.iter().enumerate() {
            let word = word.get();
            out.scale[2 * i..2 * i + 2].fill(d * (0.5 + (word >> 28) as f32) / 2.0);
            for l in 0..4 {
                let signs = even_signs((word >> (7 * l)) as u8 & 127);
                for h in 0..2 {
                    let row = &iq3_xxs_grid()[self.qs[8 * i + 2 * l + h] as usize];
                    signed(
                        row,
                        signs >> (4 * h),
                        &mut out.v[32 * i + 8 * l + 4 * h..][..4],
                    );
                }
            }
        }
        out
    }
}

impl Unpack<256, 16> for BlockIq3S {
    fn unpack(&self) -> Unpacked256 {
        let mut out = Unpacked::zero();
        let d = f16_to_f32(self.d);
        for i in 0..8 {
            let scale = d * f32::from(1 + 2 * nibble(&self.scales, i));
            out.scale[2 * i..2 * i + 2].fill(scale);
            for q in 0..8 {
                let high = (self.qh[i] >> q) & 1;
                let row = &iq3_s_grid()[self.qs[8 * i + q] as usize | ((high as usize) << 8)];
                let signs = self.signs[4 * i + q / 2] >> (4 * (q % 2));
                signed(row, signs, &mut out.v[32 * i + 4 * q..][..4]);
            }
        }
        out
    }
}

/// A ternary grid row moved up or down by an eighth, in eighths.
fn shifted(row: &[i8; 8], down: bool, v: &mut [i8]) {
    for (j, &value) in row.iter().enumerate() {
        v[j] = 8 * value + if down { -1 } else { 1 };
    }
}

impl Unpack<256, 16> for BlockIq1S {
    fn unpack(&self) -> Unpacked256 {
        let mut out = Unpacked::zero();
        let d = f16_to_f32(self.d);
        for (i, h) in self.qh.iter().enumerate() {
            let h = h.get();
            let scale = d * f32::from(2 * ((h >> 12) & 7) + 1) / 8.0;
            out.scale[2 * i..2 * i + 2].fill(scale);
            for l in 0..4 {
                let high = (h >> (3 * l)) as usize & 7;
                let row = &iq1_grid()[self.qs[4 * i + l] as usize | (high << 8)];
                shifted(row, h & 0x8000 != 0, &mut out.v[32 * i + 8 * l..][..8]);
            }
        }
        out
    }
}

impl Unpack<256, 16> for BlockIq1M {
    fn unpack(&self) -> Unpacked256 {
        let mut out = Unpacked::zero();
        let d = self.d();
        for k in 0..16 {
            let s = (self.scales[k / 4].get() >> (3 * (k % 4))) & 7;
            out.scale[k] = d * f32::from(2 * s + 1) / 8.0;
        }
        for g in 0..32 {
            let h = nibble(&self.qh, g);
            let row = &iq1_grid()[self.qs[g] as usize | ((h as usize & 7) << 8)];
            shifted(row, h & 8 != 0, &mut out.v[8 * g..][..8]);
        }
        out
    }
}

impl Unpack<256, 16> for BlockIq4Xs {
    fn unpack(&self) -> Unpacked256 {
        let mut out = Unpacked::zero();
        let d = f16_to_f32(self.d);
        for i in 0..8 {
            let high = (self.scales_h.get() >> (2 * i)) as u8 & 3;
            let scale = (nibble(&self.scales_l, i) | (high << 4)) as i8 - 32;
            out.scale[2 * i..2 * i + 2].fill(d * f32::from(scale));
            halves(&self.qs[i], &IQ4_LEVELS, &mut out.v[32 * i..][..32]);
        }
        out
    }
}
