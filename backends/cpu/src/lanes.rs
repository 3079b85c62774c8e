//! Vectors of f32, so that float code is written once for all paths.
//!
//! Code over [`Lanes`] is `#[inline(always)]` down to the intrinsics and reached through
//! [`on_every_path!`], whose functions enable the instructions.

/// A vector of f32 of one path.
///
/// # Safety
///
/// Every method may be called only where the instructions of the path are enabled. Pointers need
/// room for [`Lanes::N`] elements and no alignment.
pub(crate) trait Lanes: Copy {
    /// Elements of a vector.
    const N: usize;
    /// Vector registers of the path.
    const REGISTERS: usize;

    /// Every element `x`.
    unsafe fn splat(x: f32) -> Self;
    /// Reads a vector.
    unsafe fn load(from: *const f32) -> Self;
    /// Reads halves.
    unsafe fn load_f16(from: *const u8) -> Self;
    /// Reads upper halves of f32.
    unsafe fn load_bf16(from: *const u8) -> Self;
    /// Writes a vector.
    unsafe fn store(self, to: *mut f32);
    /// `self + b`.
    unsafe fn add(self, b: Self) -> Self;
    /// `self - b`.
    unsafe fn sub(self, b: Self) -> Self;
    /// `self * b`.
    unsafe fn mul(self, b: Self) -> Self;
    /// `self / b`.
    unsafe fn div(self, b: Self) -> Self;
    /// `self * b + c`, rounded once where the machine can.
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
    /// The larger; `b` where either is NaN on x86.
    unsafe fn max(self, b: Self) -> Self;
    /// The smaller; `b` where either is NaN on x86.
    unsafe fn min(self, b: Self) -> Self;
    /// `2^self` of whole numbers from -126 to 127.
    unsafe fn exp2_whole(self) -> Self;
    /// The sum of the elements, halves first.
    unsafe fn sum(self) -> f32;

    /// Writes every element rounded to the nearest whole number, ties to even; they are from -127 to
    /// 127.
    unsafe fn store_codes(self, to: *mut i8);

    /// [`Lanes::sum`] of four vectors, to the bit.
    #[inline(always)]
    unsafe fn sums(v: [Self; 4]) -> [f32; 4] {
        // SAFETY: the caller's promise.
        unsafe { [v[0].sum(), v[1].sum(), v[2].sum(), v[3].sum()] }
    }

    /// The largest element.
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        let mut v = [0f32; 16];
        // SAFETY: no vector has more than 16 elements; the rest is the caller's promise.
        unsafe { self.store(v.as_mut_ptr()) };
        v[..Self::N]
            .iter()
            .fold(f32::NEG_INFINITY, |m, x| m.max(*x))
    }

    /// The first `n < N` elements at `from`, then zeros.
    #[inline(always)]
    unsafe fn load_part(from: *const f32, n: usize) -> Self {
        let mut v = [0f32; 16];
        // SAFETY: the caller has `n` elements there, and no vector has more than 16.
        unsafe {
            std::ptr::copy_nonoverlapping(from, v.as_mut_ptr(), n);
            Self::load(v.as_ptr())
        }
    }

    /// Writes the first `n < N` elements.
    #[inline(always)]
    unsafe fn store_part(self, to: *mut f32, n: usize) {
        let mut v = [0f32; 16];
        // SAFETY: the caller has room for `n`, and no vector has more than 16.
        unsafe {
            self.store(v.as_mut_ptr());
            std::ptr::copy_nonoverlapping(v.as_ptr(), to, n);
        }
    }

    /// As many of the `n` elements at `from` as fit, then zeros.
    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            if n >= Self::N {
                Self::load(from)
            } else {
                Self::load_part(from, n)
            }
        }
    }

    /// Writes as many elements as fit into `n`.
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, n: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            if n >= Self::N {
                self.store(to)
            } else {
                self.store_part(to, n)
            }
        }
    }

    /// `e^self`, within 2 units in the last place from -87.3 to 88.3 and constant beyond: below it
    /// stays at 1.2e-38, above at 2.2e38.
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let x = self
                .max(Self::splat(-87.336_54))
                .min(Self::splat(88.376_26));
            // x = n ln 2 + r with n whole and |r| <= ln 2 / 2. Adding 1.5 * 2^23 rounds to a whole
            // number; ln 2 is taken off in two parts, of which the first is exact for every n.
            let magic = Self::splat(12_582_912.0);
            let n = x
                .mul_add(Self::splat(std::f32::consts::LOG2_E), magic)
                .sub(magic);
            let r = n.mul_add(Self::splat(-0.693_359_4), x);
            let r = n.mul_add(Self::splat(2.121_944_4e-4), r);
            // The series to r^7: what is left out is under 2^-27.
            let mut p = Self::splat(1.0 / 5040.0);
            for c in [
                1.0 / 720.0,
                1.0 / 120.0,
                1.0 / 24.0,
                1.0 / 6.0,
                0.5,
                1.0,
                1.0,
            ] {
                p = p.mul_add(r, Self::splat(c));
            }
            p.mul(n.exp2_whole())
        }
    }

    /// `self * sigmoid(self)`.
    #[inline(always)]
    unsafe fn silu(self) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let e = Self::splat(0.0).sub(self).exp();
            self.div(Self::splat(1.0).add(e))
        }
    }
}

/// Eight elements in plain Rust.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(crate) struct Plain8([f32; 8]);

impl Plain8 {
    #[inline(always)]
    fn map(self, b: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let mut out = self;
        for i in 0..8 {
            out.0[i] = f(self.0[i], b.0[i]);
        }
        out
    }
}

impl Lanes for Plain8 {
    const N: usize = 8;
    // Of half the width.
    const REGISTERS: usize = 8;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Plain8([x; 8])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        Plain8(unsafe { from.cast::<[f32; 8]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        let v = unsafe { from.cast::<[u16; 8]>().read_unaligned() };
        Plain8(v.map(|v| half::f16::from_bits(u16::from_le(v)).to_f32_const()))
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        let v = unsafe { from.cast::<[u16; 8]>().read_unaligned() };
        Plain8(v.map(|v| f32::from_bits(u32::from(u16::from_le(v)) << 16)))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(self.0) };
    }

    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        self.map(b, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        self.map(b, |a, b| a - b)
    }

    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        self.map(b, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        self.map(b, |a, b| a / b)
    }

    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        let mut out = c;
        for i in 0..8 {
            out.0[i] += self.0[i] * b.0[i];
        }
        out
    }

    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        self.map(b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn min(self, b: Self) -> Self {
        self.map(b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    unsafe fn exp2_whole(self) -> Self {
        Plain8(
            self.0
                .map(|n| f32::from_bits(((n as i32 + 127) as u32) << 23)),
        )
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let [a, b, c, d, e, f, g, h] = self.0;
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }

    #[inline(always)]
    unsafe fn store_codes(self, to: *mut i8) {
        let mut codes = [0; 8];
        for i in 0..8 {
            codes[i] = self.0[i].round_ties_even() as i8;
        }
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[i8; 8]>().write_unaligned(codes) };
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Lanes;

    /// The sums of the four elements of each vector: 0 and 2, 1 and 3, then both.
    #[inline(always)]
    unsafe fn quarter_sums(v: [__m128; 4]) -> [f32; 4] {
        // SAFETY: SSE, which every x86-64 has.
        unsafe {
            let a = _mm_add_ps(_mm_unpacklo_ps(v[0], v[1]), _mm_unpackhi_ps(v[0], v[1]));
            let b = _mm_add_ps(_mm_unpacklo_ps(v[2], v[3]), _mm_unpackhi_ps(v[2], v[3]));
            std::mem::transmute(_mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a)))
        }
    }

    macro_rules! lanes {
        (
            $ty:ident, $n:literal, $registers:literal,
            $splat:ident, $load:ident, $store:ident, $add:ident, $sub:ident, $mul:ident, $div:ident,
            $fmadd:ident, $max:ident, $min:ident;
            $($rest:item)*
        ) => {
            // SAFETY of every block below: the caller's promise that the instructions are enabled
            // and the memory is there.
            impl Lanes for $ty {
                const N: usize = $n;
                const REGISTERS: usize = $registers;

                #[inline(always)]
                unsafe fn splat(x: f32) -> Self {
                    // SAFETY: see above.
                    unsafe { $splat(x) }
                }

                #[inline(always)]
                unsafe fn load(from: *const f32) -> Self {
                    // SAFETY: see above.
                    unsafe { $load(from) }
                }

                #[inline(always)]
                unsafe fn store(self, to: *mut f32) {
                    // SAFETY: see above.
                    unsafe { $store(to, self) }
                }

                #[inline(always)]
                unsafe fn add(self, b: Self) -> Self {
                    // SAFETY: see above.
                    unsafe { $add(self, b) }
                }

                #[inline(always)]
                unsafe fn sub(self, b: Self) -> Self {
                    // SAFETY: see above.
                    unsafe { $sub(self, b) }
                }

                #[inline(always)]
                unsafe fn mul(self, b: Self) -> Self {
                    // SAFETY: see above.
                    unsafe { $mul(self, b) }
                }

                #[inline(always)]
                unsafe fn div(self, b: Self) -> Self {
                    // SAFETY: see above.
                    unsafe { $div(self, b) }
                }

                #[inline(always)]
                unsafe fn mul_add(self, b: Self, c: Self) -> Self {
                    // SAFETY: see above.
                    unsafe { $fmadd(self, b, c) }
                }

                #[inline(always)]
                unsafe fn max(self, b: Self) -> Self {
                    // SAFETY: see above.
                    unsafe { $max(self, b) }
                }

                #[inline(always)]
                unsafe fn min(self, b: Self) -> Self {
                    // SAFETY: see above.
                    unsafe { $min(self, b) }
                }

                $($rest)*
            }
        };
    }

    lanes! {
        __m512, 16, 32,
        _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_add_ps, _mm512_sub_ps,
        _mm512_mul_ps, _mm512_div_ps, _mm512_fmadd_ps, _mm512_max_ps, _mm512_min_ps;

        #[inline(always)]
        unsafe fn load_f16(from: *const u8) -> Self {
            // SAFETY: see above.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
        }

        #[inline(always)]
        unsafe fn load_bf16(from: *const u8) -> Self {
            // SAFETY: see above.
            unsafe {
                let v = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(v))
            }
        }

        #[inline(always)]
        unsafe fn exp2_whole(self) -> Self {
            // SAFETY: see above.
            unsafe {
                let n = _mm512_add_epi32(_mm512_cvtps_epi32(self), _mm512_set1_epi32(127));
                _mm512_castsi512_ps(_mm512_slli_epi32::<23>(n))
            }
        }

        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            // SAFETY: see above.
            unsafe {
                let low = _mm512_castps512_ps256(self);
                _mm256_add_ps(low, _mm512_extractf32x8_ps::<1>(self)).sum()
            }
        }

        #[inline(always)]
        unsafe fn sums(v: [Self; 4]) -> [f32; 4] {
            // SAFETY: see above.
            unsafe {
                // Halves, quarters, then the two steps of `sum` for all four at once.
                let mut quarters = [_mm_setzero_ps(); 4];
                for i in 0..4 {
                    let low = _mm512_castps512_ps256(v[i]);
                    let half = _mm256_add_ps(low, _mm512_extractf32x8_ps::<1>(v[i]));
                    let low = _mm256_castps256_ps128(half);
                    quarters[i] = _mm_add_ps(low, _mm256_extractf128_ps::<1>(half));
                }
                quarter_sums(quarters)
            }
        }

        #[inline(always)]
        unsafe fn store_codes(self, to: *mut i8) {
            // SAFETY: see above.
            unsafe {
                let codes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(self));
                _mm_storeu_si128(to.cast(), codes);
            }
        }

        #[inline(always)]
        unsafe fn load_part(from: *const f32, n: usize) -> Self {
            // SAFETY: see above; lanes beyond `n` are not read.
            unsafe { _mm512_maskz_loadu_ps(((1u32 << n) - 1) as __mmask16, from) }
        }

        #[inline(always)]
        unsafe fn store_part(self, to: *mut f32, n: usize) {
            // SAFETY: see above; lanes beyond `n` are not written.
            unsafe { _mm512_mask_storeu_ps(to, ((1u32 << n) - 1) as __mmask16, self) }
        }
    }

    lanes! {
        __m256, 8, 16,
        _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_add_ps, _mm256_sub_ps,
        _mm256_mul_ps, _mm256_div_ps, _mm256_fmadd_ps, _mm256_max_ps, _mm256_min_ps;

        #[inline(always)]
        unsafe fn load_f16(from: *const u8) -> Self {
            // SAFETY: see above.
            unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
        }

        #[inline(always)]
        unsafe fn load_bf16(from: *const u8) -> Self {
            // SAFETY: see above.
            unsafe {
                let v = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(v))
            }
        }

        #[inline(always)]
        unsafe fn exp2_whole(self) -> Self {
            // SAFETY: see above.
            unsafe {
                let n = _mm256_add_epi32(_mm256_cvtps_epi32(self), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(n))
            }
        }

        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            // SAFETY: see above.
            unsafe {
                let low = _mm256_castps256_ps128(self);
                let four = _mm_add_ps(low, _mm256_extractf128_ps::<1>(self));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
            }
        }

        #[inline(always)]
        unsafe fn sums(v: [Self; 4]) -> [f32; 4] {
            // SAFETY: see above.
            unsafe {
                let mut quarters = [_mm_setzero_ps(); 4];
                for i in 0..4 {
                    let low = _mm256_castps256_ps128(v[i]);
                    quarters[i] = _mm_add_ps(low, _mm256_extractf128_ps::<1>(v[i]));
                }
                quarter_sums(quarters)
            }
        }

        #[inline(always)]
        unsafe fn store_codes(self, to: *mut i8) {
            // SAFETY: see above.
            unsafe {
                let v = _mm256_cvtps_epi32(self);
                let words = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
                _mm_storel_epi64(to.cast(), _mm_packs_epi16(words, words));
            }
        }
    }
}

/// Makes functions that run a generic body, `unsafe fn body<L: Lanes>(...)`, compiled for the path
/// they are given first. A function written with `unsafe` passes the body's own conditions on.
macro_rules! on_every_path {
    ($($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $out:ty)? = $body:ident;)*) => {
        $($crate::lanes::on_every_path!(@define [$(#[$doc])* $vis] $name($($arg: $ty),*) [$(-> $out)?] $body);)*
    };
    ($($(#[$doc:meta])* $vis:vis unsafe fn $name:ident($($arg:ident: $ty:ty),* $(,)?) = $body:ident;)*) => {
        $($crate::lanes::on_every_path!(@define [$(#[$doc])* $vis unsafe] $name($($arg: $ty),*) [] $body);)*
    };
    (@define [$($head:tt)*] $name:ident($($arg:ident: $ty:ty),*) [$($out:tt)*] $body:ident) => {
        $($head)* fn $name(cpu: $crate::path::Cpu, $($arg: $ty),*) $($out)* {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,gfni,avx2,fma,f16c")]
            unsafe fn avx512($($arg: $ty),*) $($out)* {
                // SAFETY: the instructions are enabled here; the rest is the caller's promise.
                unsafe { $body::<std::arch::x86_64::__m512>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn avx2($($arg: $ty),*) $($out)* {
                // SAFETY: the instructions are enabled here; the rest is the caller's promise.
                unsafe { $body::<std::arch::x86_64::__m256>($($arg),*) }
            }
            // SAFETY: a `Cpu` is a path that the machine has; the rest is the caller's promise.
            unsafe {
                match cpu.path() {
                    #[cfg(target_arch = "x86_64")]
                    $crate::path::Path::Avx512 => avx512($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::path::Path::Avx2 => avx2($($arg),*),
                    _ => $body::<$crate::lanes::Plain8>($($arg),*),
                }
            }
        }
    };
}
pub(crate) use on_every_path;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::{Cpu, Path};

    /// # Safety
    /// As [`Lanes`].
    #[inline(always)]
    unsafe fn exp_all<L: Lanes>(x: &mut [f32]) {
        for chunk in x.chunks_exact_mut(L::N) {
            // SAFETY: the caller's promise.
            unsafe { L::load(chunk.as_ptr()).exp().store(chunk.as_mut_ptr()) };
        }
    }

    on_every_path! {
        fn exp(x: &mut [f32]) = exp_all;
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for cpu in Path::ALL.into_iter().filter_map(Cpu::new) {
            let mut worst = 0f64;
            for start in -88..88 {
                let x: Vec<f32> = (0..4096)
                    .map(|i| (start as f32 + i as f32 / 4096.0).clamp(-87.3, 88.3))
                    .collect();
                let mut y = x.clone();
                exp(cpu, &mut y);
                for (x, y) in x.iter().zip(y) {
                    let exact = f64::from(*x).exp();
                    let unit = f64::from(f32::EPSILON) * (exact.log2().floor()).exp2();
                    let error = (f64::from(y) - exact).abs() / unit;
                    worst = worst.max(error);
                    assert!(
                        error <= 2.0,
                        "{cpu:?}: exp({x}) = {y:e}, off by {error} units"
                    );
                }
            }
            assert!(worst > 0.1, "the comparison cannot fail");
        }
    }

    #[test]
    fn exp_saturates_instead_of_overflowing() {
        for cpu in Path::ALL.into_iter().filter_map(Cpu::new) {
            let mut x = [0f32; 16];
            x[0] = -1e30;
            x[1] = f32::NEG_INFINITY;
            x[2] = 1e30;
            x[3] = f32::INFINITY;
            exp(cpu, &mut x);
            assert!(x[0] < 2e-38 && x[1] < 2e-38, "{cpu:?} {x:?}");
            assert!(
                x[2] > 2e38 && x[2].is_finite() && x[3].is_finite(),
                "{cpu:?} {x:?}"
            );
            assert_eq!(x[4], 1.0, "{cpu:?}");
        }
    }
}
