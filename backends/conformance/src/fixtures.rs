//! Random weights and numbers, the same on every run.

use ds4_formats::gguf::Metadata;
use ds4_formats::quant::{encode_bf16, encode_f16, encode_q8_0};
use ds4_formats::{Bytes, GgmlType, Tensor};
use ds4_model::Geometry;

/// SplitMix64 (Steele, Lea, Flood 2014): small, and good enough for test data.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Uniform in -1 .. 1.
    pub fn uniform(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// About normal with deviation 1: the sum of twelve uniforms, which has no
    /// far tails but the right middle.
    pub fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.uniform()).sum::<f32>() * 0.5
    }

    /// `n` normal numbers times `scale`.
    pub fn normals(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| self.normal() * scale).collect()
    }
}

/// A tensor of floats.
pub fn float_tensor(name: &str, ty: GgmlType, ne: &[usize], values: &[f32]) -> Tensor {
    let n_bytes = ty.row_bytes(values.len()).expect("whole blocks");
    let mut data = vec![0u8; n_bytes];
    match ty {
        GgmlType::F32 => {
            for (b, x) in data.chunks_exact_mut(4).zip(values) {
                b.copy_from_slice(&x.to_le_bytes());
            }
        }
        GgmlType::F16 => encode_f16(values, &mut data),
        GgmlType::BF16 => encode_bf16(values, &mut data),
        GgmlType::Q8_0 => encode_q8_0(values, &mut data),
        ty => panic!("no encoder for {}", ty.name()),
    }
    tensor(name, ty, ne, data)
}

/// A random matrix of any type, with entries of about `scale`. Types without an
/// encoder get random blocks whose scales are set.
pub fn random_tensor(
    name: &str,
    ty: GgmlType,
    ne: &[usize],
    scale: f32,
    random: &mut Random,
) -> Tensor {
    let n: usize = ne.iter().product();
    // Bytes at which a block has an f16 scale, and the root mean square of what
    // it multiplies when the other bytes are random.
    let (scales_at, magnitude): (&[usize], f32) = match ty {
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 | GgmlType::Q8_0 => {
            return float_tensor(name, ty, ne, &random.normals(n, scale));
        }
        GgmlType::Q2_K => (&[80, 82], 13.0),
        GgmlType::Q3_K => (&[108], 43.0),
        GgmlType::Q4_K => (&[0, 2], 300.0),
        GgmlType::Q5_K => (&[0, 2], 640.0),
        GgmlType::Q6_K => (&[208], 1370.0),
        GgmlType::IQ2_XXS | GgmlType::IQ2_XS | GgmlType::IQ2_S => (&[0], 55.0),
        GgmlType::IQ3_XXS | GgmlType::IQ3_S => (&[0], 141.0),
        GgmlType::IQ4_NL => (&[0], 67.0),
        GgmlType::IQ4_XS => (&[0], 1250.0),
        GgmlType::IQ1_S => (&[0], 7.0),
        GgmlType::IQ1_M => (&[], 7.0),
        GgmlType::MXFP4 => (&[], 2.9),
        ty => panic!("no random blocks for {}", ty.name()),
    };
    let n_bytes = ty.row_bytes(n).expect("whole blocks");
    let mut data: Vec<u8> = (0..n_bytes).map(|_| random.bits() as u8).collect();
    for block in data.chunks_exact_mut(ty.block_bytes()) {
        let mut d = || {
            let d = scale / magnitude * (1.0 + 0.5 * random.uniform());
            let mut bits = [0u8; 2];
            encode_f16(&[d], &mut bits);
            bits
        };
        for at in scales_at {
            block[*at..at + 2].copy_from_slice(&d());
        }
        match ty {
            // The scale is spread over the top nibbles of four words.
            GgmlType::IQ1_M => {
                let bits = u16::from_le_bytes(d());
                for (i, word) in block[48..56].chunks_exact_mut(2).enumerate() {
                    let nibble = ((bits >> (4 * i)) & 15) as u8;
                    word[1] = (word[1] & 0x0f) | (nibble << 4);
                }
            }
            GgmlType::MXFP4 => {
                let e = (scale / magnitude).log2().round() as i32 + 127;
                block[0] = (e + random.below(3) as i32 - 1) as u8;
            }
            _ => {}
        }
    }
    tensor(name, ty, ne, data)
}

/// An I32 tensor.
pub fn id_tensor(name: &str, ne: &[usize], ids: &[u32]) -> Tensor {
    let data = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    tensor(name, GgmlType::I32, ne, data)
}

fn tensor(name: &str, ty: GgmlType, ne: &[usize], data: Vec<u8>) -> Tensor {
    Tensor {
        name: name.to_owned(),
        ty,
        ne: ne.iter().map(|n| *n as u64).collect(),
        data: Bytes::from(data),
        origin: None,
    }
}

/// The metadata that a file of this geometry carries.
pub fn metadata(g: &Geometry) -> Metadata {
    g.to_metadata("fixture")
}
