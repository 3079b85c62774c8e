//! Vectors of sixteen f32, on the registers of every path.
//!
//! An op is written once, over [`Simd`], and compiled for each path by [`dispatch`]. A vector is
//! one register of AVX-512, two of AVX2, four of NEON, and an array on the scalar path. Sums over a
//! row take the same order on every path; what differs is that the scalar path rounds the product
//! of a multiplication that is added.

mod math;
mod scalar;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;
pub(crate) use scalar::Scalar;

/// Elements of a vector.
pub(crate) const LANES: usize = 16;

/// Sixteen values in memory.
pub(crate) type Lanes<T = f32> = [T; LANES];

/// A set of instructions. A value of such a type is a token: except for [`Scalar`] it is made by an
/// `unsafe` function whose caller knows that the machine has the instructions, which is what makes
/// the methods safe.
pub(crate) trait Simd: Copy {
    /// Sixteen f32.
    type F: Copy;
    /// Sixteen i32.
    type I: Copy;

    /// Vectors that a product keeps in registers as sums: `TILE_ROWS * TILE_VECTORS`.
    const TILE_ROWS: usize;
    /// See [`Simd::TILE_ROWS`].
    const TILE_VECTORS: usize;

    fn splat(self, x: f32) -> Self::F;
    fn load(self, x: &Lanes) -> Self::F;
    fn store(self, x: Self::F, out: &mut Lanes);

    /// Sixteen halves, exactly.
    fn load_f16(self, x: &Lanes<u16>) -> Self::F;
    /// Sixteen bf16, exactly.
    fn load_bf16(self, x: &Lanes<u16>) -> Self::F;
    /// Rounds to bf16, ties to even. NaN becomes some NaN.
    fn store_bf16(self, x: Self::F, out: &mut Lanes<u16>);
    /// Thirty-two bf16 as bits, two in each lane; see [`Simd::split_bf16`].
    fn load_pairs(self, x: &[u16; 2 * LANES]) -> Self::F;
    /// The first and the second bf16 of each lane.
    fn split_bf16(self, pairs: Self::F) -> (Self::F, Self::F);

    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once; twice on the scalar path.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger, `b` when a value is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller, `b` when a value is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    fn sqrt(self, x: Self::F) -> Self::F;
    fn abs(self, x: Self::F) -> Self::F;
    /// `x` with everything but the exponent cleared: the power of two at or below a positive
    /// normal number, and 0 for a subnormal one.
    fn exponent(self, x: Self::F) -> Self::F;
    /// The nearest integers, ties to even, of values below 2^31.
    fn round(self, x: Self::F) -> Self::F;
    /// `2^n` of integers from -126 to 127.
    fn exp2(self, n: Self::F) -> Self::F;

    /// Whether products of bytes are faster than those of floats.
    const HAS_BYTES: bool;
    /// What is added to the bytes of `x` in [`Simd::dot_bytes`]: the machine may take them unsigned.
    const BYTE_BIAS: u8;

    fn splat_int(self, x: i32) -> Self::I;
    /// `sum` plus the product of the four bytes in each lane of `x`, with [`Simd::BYTE_BIAS`], and
    /// the four signed bytes `y`.
    fn dot_bytes(self, sum: Self::I, x: &Lanes<[u8; 4]>, y: [u8; 4]) -> Self::I;
    /// The nearest f32.
    fn float(self, x: Self::I) -> Self::F;
    /// Writes numbers as signed bytes, and says whether they are whole and fit.
    fn store_bytes(self, x: Self::F, out: &mut Lanes<u8>) -> bool;

    /// Column `i` of sixteen rows for every `i`.
    fn transpose(self, rows: [Self::F; LANES]) -> [Self::F; LANES];

    /// The sum of the lanes: halves, quarters and so on added to one another.
    #[inline(always)]
    fn sum(self, x: Self::F) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(x, &mut lanes);
        let mut half = LANES / 2;
        while half > 0 {
            for i in 0..half {
                lanes[i] += lanes[i + half];
            }
            half /= 2;
        }
        lanes[0]
    }

    /// The [`Simd::sum`] of each of four vectors.
    #[inline(always)]
    fn sums(self, x: [Self::F; 4]) -> [f32; 4] {
        [
            self.sum(x[0]),
            self.sum(x[1]),
            self.sum(x[2]),
            self.sum(x[3]),
        ]
    }

    /// The largest lane.
    #[inline(always)]
    fn largest(self, x: Self::F) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(x, &mut lanes);
        lanes
            .iter()
            .fold(lanes[0], |m, x| if *x > m { *x } else { m })
    }
}

/// Defines trait methods whose bodies are made of intrinsics.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! intrinsics {
    ($($(#[$attribute:meta])* fn $name:ident(self $(, $a:ident: $t:ty)*) -> $r:ty $body:block)*) => {$(
        $(#[$attribute])*
        #[inline(always)]
        fn $name(self $(, $a: $t)*) -> $r {
            // SAFETY: a token exists only where the machine has its instructions. Memory is
            // reached through references to all that is read or written.
            unsafe { $body }
        }
    )*};
}
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) use intrinsics;

/// `dispatch!(cpu, f(a: A, b: B) -> R)` is `f(token, a, b)` compiled for the instructions of a
/// [`Cpu`](crate::path::Cpu), where `fn f<S: Simd>(s: S, a: A, b: B) -> R` is `#[inline(always)]`.
macro_rules! dispatch {
    ($cpu:expr, $f:ident($($a:ident: $t:ty),* $(,)?) $(-> $r:ty)?) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn avx2($($a: $t),*) $(-> $r)? {
            // SAFETY: this function has these features.
            $f(unsafe { $crate::simd::Avx2::new() }, $($a),*)
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(
            enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,gfni"
        )]
        fn avx512($($a: $t),*) $(-> $r)? {
            // SAFETY: this function has these features.
            $f(unsafe { $crate::simd::Avx512::new() }, $($a),*)
        }
        #[cfg(target_arch = "aarch64")]
        #[target_feature(enable = "neon,dotprod")]
        fn neon($($a: $t),*) $(-> $r)? {
            // SAFETY: this function has these features.
            $f(unsafe { $crate::simd::Neon::new() }, $($a),*)
        }
        match $crate::path::Cpu::path($cpu) {
            // SAFETY: a `Cpu` is a path that the machine has, and these are the features that
            // `Path::is_available` asks for.
            #[cfg(target_arch = "x86_64")]
            $crate::path::Path::Avx2 => unsafe { avx2($($a),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            $crate::path::Path::Avx512 => unsafe { avx512($($a),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            $crate::path::Path::Neon => unsafe { neon($($a),*) },
            _ => $f($crate::simd::Scalar, $($a),*),
        }
    }};
}
pub(crate) use dispatch;

/// `map!(s, x, |v| expression)` replaces every value of the slice `x`. The expression sees whole
/// vectors, the last filled up with zeros.
///
/// A macro, as [`zip`] is: a closure is a function of its own, compiled without the instructions of
/// a path, and runs fast only as far as the compiler chooses to inline it.
macro_rules! map {
    ($s:expr, $x:expr, |$v:ident| $f:expr) => {{
        let s = $s;
        let (chunks, rest) = ($x).as_chunks_mut::<{ $crate::simd::LANES }>();
        for x in chunks {
            let $v = s.load(x);
            s.store($f, x);
        }
        if !rest.is_empty() {
            let $v = s.load_part(rest);
            s.store_part($f, rest);
        }
    }};
}
pub(crate) use map;

/// `zip!(s, out, x, |a, b| expression)` replaces every value `a` of `out` by the expression of it and
/// its partner `b` in `x`.
macro_rules! zip {
    ($s:expr, $out:expr, $x:expr, |$a:ident, $b:ident| $f:expr) => {{
        let s = $s;
        let (chunks, rest) = ($out).as_chunks_mut::<{ $crate::simd::LANES }>();
        let (x_chunks, x_rest) = ($x).as_chunks::<{ $crate::simd::LANES }>();
        debug_assert!(chunks.len() == x_chunks.len() && rest.len() == x_rest.len());
        for (out, x) in chunks.iter_mut().zip(x_chunks) {
            let ($a, $b) = (s.load(out), s.load(x));
            s.store($f, out);
        }
        if !rest.is_empty() {
            let ($a, $b) = (s.load_part(rest), s.load_part(x_rest));
            s.store_part($f, rest);
        }
    }};
}
pub(crate) use zip;

/// What is built of the instructions.
pub(crate) trait SimdExt: Simd {
    #[inline(always)]
    fn zero(self) -> Self::F {
        self.splat(0.0)
    }

    /// Up to sixteen values, and zeros.
    #[inline(always)]
    fn load_part(self, x: &[f32]) -> Self::F {
        if let Ok(x) = x.try_into() {
            return self.load(x);
        }
        let mut lanes = [0.0; LANES];
        lanes[..x.len()].copy_from_slice(x);
        self.load(&lanes)
    }

    /// The first lanes, up to all sixteen.
    #[inline(always)]
    fn store_part(self, x: Self::F, out: &mut [f32]) {
        if let Ok(out) = (&mut *out).try_into() {
            return self.store(x, out);
        }
        let mut lanes = [0.0; LANES];
        self.store(x, &mut lanes);
        out.copy_from_slice(&lanes[..out.len()]);
    }

    /// Sum of squares.
    #[inline(always)]
    fn sum_squares(self, x: &[f32]) -> f32 {
        let mut sums = [self.zero(); 4];
        let (chunks, rest) = x.as_chunks::<LANES>();
        let (fours, chunks) = chunks.as_chunks::<4>();
        for four in fours {
            for i in 0..4 {
                let x = self.load(&four[i]);
                sums[i] = self.fma(x, x, sums[i]);
            }
        }
        for x in chunks {
            let x = self.load(x);
            sums[0] = self.fma(x, x, sums[0]);
        }
        let x = self.load_part(rest);
        sums[1] = self.fma(x, x, sums[1]);
        self.sum(self.add(self.add(sums[0], sums[1]), self.add(sums[2], sums[3])))
    }

    /// `1 / sqrt(mean(x²) + eps)`.
    #[inline(always)]
    fn inverse_rms(self, x: &[f32], eps: f32) -> f32 {
        1.0 / (self.sum_squares(x) / x.len() as f32 + eps).sqrt()
    }

    /// The largest magnitude of values without NaN.
    #[inline(always)]
    fn largest_magnitude(self, x: &[f32]) -> f32 {
        let (chunks, rest) = x.as_chunks::<LANES>();
        let mut largest = self.abs(self.load_part(rest));
        for x in chunks {
            largest = self.max(self.abs(self.load(x)), largest);
        }
        self.largest(largest)
    }

    /// `e^x`, within 2 units in the last place; 0 far below the smallest subnormal number and
    /// infinity above the largest.
    #[inline(always)]
    fn exp(self, x: Self::F) -> Self::F {
        math::exp(self, x)
    }

    /// `ln(1 + x)` for `x` from 0 to 1, within 2 units in the last place.
    #[inline(always)]
    fn ln_1p_unit(self, x: Self::F) -> Self::F {
        math::ln_1p_unit(self, x)
    }
}

impl<S: Simd> SimdExt for S {}

#[cfg(test)]
mod tests;
