//! Weights of random valid blocks, made on the device: what benchmarks of the full size run on.

use ds4_formats::{GgmlType, Tensor};
use ds4_model::{BackendError, Requirement, WeightRole};
use half::f16;

use crate::backend::WgpuBackend;
use crate::bound::Bound;
use crate::kernels::Specialisation;
use crate::record::Recording;
use crate::weight::{Stored, Weight};

/// How random words become a plane: bits that are kept, bits that are set, and a constant word at a
/// place of every period.
struct Filling {
    keep: u32,
    fix: u32,
    period: u32,
    place: u32,
    constant: u32,
}

impl Filling {
    const WORDS: Filling = Filling {
        keep: !0,
        fix: 0,
        period: 1,
        place: 0,
        constant: 0,
    };
}

/// Two halves in a word.
fn halves(x: f32) -> u32 {
    u32::from(f16::from_f32(x).to_bits()) * 0x1_0001
}

/// The fillings of codes and of scales, for entries of about `rms`. The factors are the root mean
/// squares of blocks whose other bytes are random.
fn fillings(stored: Stored, rms: f32) -> (Filling, Filling) {
    let scales = |period: u32, place: u32, magnitude: f32| Filling {
        period,
        place,
        constant: halves(rms / magnitude),
        ..Filling::WORDS
    };
    // Signs and fractions are random, the exponent is that of `rms`.
    let exponent = rms.log2().floor();
    match stored {
        Stored::F16 => {
            let fix = halves(exponent.exp2());
            let elements = Filling {
                keep: 0x83ff_83ff,
                fix,
                ..Filling::WORDS
            };
            (elements, Filling::WORDS)
        }
        Stored::F32 | Stored::Bf16 => {
            let bits = exponent.exp2().to_bits() >> 16;
            let (keep, fix) = match stored {
                Stored::F32 => (0x807f_ffff, bits << 16),
                _ => (0x807f_807f, bits << 16 | bits),
            };
            let elements = Filling {
                keep,
                fix,
                ..Filling::WORDS
            };
            (elements, Filling::WORDS)
        }
        Stored::Q8_0 => (Filling::WORDS, scales(1, 0, 73.0)),
        Stored::Q2K => (Filling::WORDS, scales(5, 4, 13.0)),
        Stored::Q4K => (Filling::WORDS, scales(4, 0, 300.0)),
        Stored::Iq2Xxs => (Filling::WORDS, scales(2, 1, 55.0)),
        Stored::Mxfp4 => {
            let byte = (127.0 + (rms / 2.9).log2().round()) as u32;
            let scales = Filling {
                constant: byte * 0x0101_0101,
                ..Filling::WORDS
            };
            (Filling::WORDS, scales)
        }
    }
}

impl WgpuBackend {
    /// A weight of type `ty` with random entries of about `1 / sqrt(n_in)`; vectors are ones, ids
    /// are small. For benchmarks, which need no file then.
    ///
    /// # Errors
    /// The device has no room, or failed.
    pub fn random_weight(
        &mut self,
        need: &Requirement,
        ty: GgmlType,
        seed: u32,
    ) -> Result<Weight, BackendError> {
        let n: u64 = need.ne.iter().product();
        let data: Vec<u8> = match need.role {
            WeightRole::Vector => (0..n).flat_map(|_| 1f32.to_le_bytes()).collect(),
            WeightRole::Ids => (0..n)
                .flat_map(|i| (i as u32 % 251).to_le_bytes())
                .collect(),
            _ => Vec::new(),
        };
        let tensor = Tensor {
            name: need.name.clone(),
            ty,
            ne: need.ne.clone(),
            data: data.into(),
            origin: None,
        };
        if matches!(need.role, WeightRole::Vector | WeightRole::Ids) {
            return Weight::new(&self.gpu, need.role, &tensor);
        }
        let weight = Weight::empty(&self.gpu, need.role, &tensor)?;
        let rms = (need.ne[0] as f32).powf(-0.5);
        let (codes, scales) = fillings(weight.stored, rms);
        let mut recording = Recording::default();
        for part in &weight.parts {
            self.fill(&mut recording, part.q(), &codes, seed);
            if part.has_scales() {
                self.fill(&mut recording, part.s(), &scales, !seed);
            }
        }
        self.gpu.queue.submit([recording.encode(&self.gpu)]);
        self.gpu.check()?;
        Ok(weight)
    }

    fn fill(&mut self, recording: &mut Recording, plane: Bound<'_>, f: &Filling, seed: u32) {
        let n_words = (plane.n_bytes / 4) as u32;
        let n_groups = n_words.div_ceil(256).min(65_535);
        recording.dispatch(
            &self.gpu,
            &mut self.bind_groups,
            &Specialisation::of("fill_random"),
            &[(0, plane)],
            &[
                n_words,
                seed,
                f.keep,
                f.fix,
                f.period,
                f.place,
                f.constant,
                n_groups * 256,
            ],
            [n_groups, 1, 1],
        );
    }
}
