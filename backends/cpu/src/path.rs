//! Which instruction set the kernels use.

use std::fmt;

/// A set of kernels, named after the instruction set it needs.
///
/// The best one that the machine has is chosen when a backend is made; tests force the others. All
/// of them multiply the same integers exactly, so their results differ only by the order in which
/// f32 sums are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Path {
    /// Plain Rust for any machine.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ, VL, VBMI and VNNI, and GFNI: Ice Lake, Zen 4 and later.
    Avx512,
    /// AArch64 with the int8 dot products of ARMv8.2.
    Neon,
}

impl Path {
    /// Every path, slowest first.
    pub const ALL: [Path; 4] = [Path::Scalar, Path::Avx2, Path::Avx512, Path::Neon];

    /// The fastest path that this machine can run.
    pub fn best() -> Path {
        Path::ALL
            .into_iter()
            .rfind(|path| path.is_available())
            .unwrap_or(Path::Scalar)
    }

    /// Whether this machine can run the path.
    pub fn is_available(self) -> bool {
        match self {
            Path::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 => {
                Path::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vbmi")
                    && is_x86_feature_detected!("avx512vnni")
                    && is_x86_feature_detected!("gfni")
            }
            #[cfg(target_arch = "aarch64")]
            Path::Neon => {
                std::arch::is_aarch64_feature_detected!("neon")
                    && std::arch::is_aarch64_feature_detected!("dotprod")
            }
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }
}

/// A path that this machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cpu(Path);

impl Cpu {
    /// `None` when the machine lacks the path.
    pub(crate) fn new(path: Path) -> Option<Cpu> {
        path.is_available().then_some(Cpu(path))
    }

    pub(crate) fn path(self) -> Path {
        self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Path::Scalar => "scalar",
            Path::Avx2 => "AVX2",
            Path::Avx512 => "AVX-512 VNNI",
            Path::Neon => "NEON",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_path_is_one_that_the_machine_has() {
        assert!(Path::Scalar.is_available());
        assert!(Path::best().is_available());
    }
}
