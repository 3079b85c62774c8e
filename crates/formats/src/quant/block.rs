//! The blocks as they lie in a file.
//!
//! Every field is bytes or a little-endian integer of alignment 1, so a block can be viewed at any
//! address. `d`, `dmin` are IEEE half bits; [`f16`] reads them.

use half::f16;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::GgmlType;

/// The value of half-precision bits from a block.
pub fn f16_to_f32(bits: U16) -> f32 {
    f16::from_bits(bits.get()).to_f32()
}

macro_rules! blocks {
    ($($(#[$doc:meta])* $name:ident: $ty:ident { $($(#[$field_doc:meta])* $field:ident: $field_ty:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
            #[repr(C)]
            pub struct $name {
                $($(#[$field_doc])* pub $field: $field_ty,)*
            }

            const _: () = assert!(size_of::<$name>() == GgmlType::$ty.block_bytes());

            impl $name {
                /// The blocks of a row.
                ///
                /// # Panics
                /// When `bytes` is not whole blocks.
                pub fn row(bytes: &[u8]) -> &[$name] {
                    match <[$name]>::ref_from_bytes(bytes) {
                        Ok(blocks) => blocks,
                        Err(_) => panic!(
                            "{} bytes are not whole {} blocks of {}",
                            bytes.len(), GgmlType::$ty, size_of::<$name>(),
                        ),
                    }
                }
            }
        )*
    };
}

blocks! {
    /// 32 elements: `d * qs[e]`.
    BlockQ8_0: Q8_0 {
        /// Scale.
        d: U16,
        /// Codes.
        qs: [i8; 32],
    }

    /// 256 elements: `d * (scales[k] & 15) * v - dmin * (scales[k] >> 4)` with `k = e / 16`.
    BlockQ2K: Q2_K {
        /// Scale in the low nibble, min in the high nibble, of 16 elements each.
        scales: [u8; 16],
        /// 2-bit codes: element `128 n + 32 r + l` in bits `2 r` of byte `32 n + l`.
        qs: [u8; 64],
        /// Scale of the scales.
        d: U16,
        /// Scale of the mins.
        dmin: U16,
    }

    /// 256 elements: `d * (S - 32) * v`, 6-bit `S` per 16 elements, `v` from -4 to 3.
    BlockQ3K: Q3_K {
        /// High bits: element `32 k + l` in bit `k` of byte `l`; a clear bit subtracts 4.
        hmask: [u8; 32],
        /// Low 2 bits, ordered as in [`BlockQ2K`].
        qs: [u8; 64],
        /// 6-bit scales: the low 4 bits in bytes 0 to 7, the high 2 bits in bytes 8 to 11.
        scales: [u8; 12],
        /// Scale of the scales.
        d: U16,
    }

    /// 256 elements: `d * sc * v - dmin * mn`, 6-bit `sc` and `mn` per 32 elements.
    BlockQ4K: Q4_K {
        /// Scale of the scales.
        d: U16,
        /// Scale of the mins.
        dmin: U16,
        /// 6-bit scales and mins; see [`BlockQ4K::scale_min`].
        scales: [u8; 12],
        /// Element `64 m + l` in the low nibble of byte `32 m + l`, `64 m + 32 + l` in the high.
        qs: [u8; 128],
    }

    /// 256 elements: as [`BlockQ4K`] with a fifth bit.
    BlockQ5K: Q5_K {
        /// Scale of the scales.
        d: U16,
        /// Scale of the mins.
        dmin: U16,
        /// 6-bit scales and mins; see [`BlockQ4K::scale_min`].
        scales: [u8; 12],
        /// Fifth bits: element `32 j + l` in bit `j` of byte `l`.
        qh: [u8; 32],
        /// Low 4 bits, ordered as in [`BlockQ4K`].
        qs: [u8; 128],
    }

    /// 256 elements: `d * scales[e / 16] * (v - 32)`.
    BlockQ6K: Q6_K {
        /// Low 4 bits: element `128 n + 32 r + l` in byte `64 n + 32 (r mod 2) + l`, the high
        /// nibble when `r >= 2`.
        ql: [u8; 128],
        /// High 2 bits, ordered as in [`BlockQ2K`].
        qh: [u8; 64],
        /// Scales of 16 elements each.
        scales: [i8; 16],
        /// Scale of the scales.
        d: U16,
    }

    /// 256 elements in 8 groups of 32: `d * (2 s + 1) / 8 * grid * sign`.
    BlockIq2Xxs: IQ2_XXS {
        /// Scale.
        d: U16,
        /// Per group: 4 grid indices of 8 bits; 4 sign codes of 7 bits and the 4-bit `s` on top.
        groups: [[U32; 2]; 8],
    }

    /// 256 elements in 16 halves of 16: `d * (2 s + 1) / 8 * grid * sign`.
    BlockIq2Xs: IQ2_XS {
        /// Scale.
        d: U16,
        /// Per 8 elements: 9-bit grid index, 7-bit sign code.
        qs: [U16; 32],
        /// Per 32 elements: `s` of the first half in the low nibble, of the second in the high.
        scales: [u8; 8],
    }

    /// 256 elements: as [`BlockIq2Xs`] with 10-bit indices and whole sign bytes.
    BlockIq2S: IQ2_S {
        /// Scale.
        d: U16,
        /// Per 8 elements: low 8 bits of the grid index.
        qs: [u8; 32],
        /// Per 8 elements: a sign bit each.
        signs: [u8; 32],
        /// Per 32 elements: 4 times the high 2 bits of an index.
        qh: [u8; 8],
        /// Per 32 elements: `s` of the first half in the low nibble, of the second in the high.
        scales: [u8; 8],
    }

    /// 256 elements in 8 groups of 32: `d * (2 s + 1) / 4 * grid * sign`.
    BlockIq3Xxs: IQ3_XXS {
        /// Scale.
        d: U16,
        /// Per 4 elements: grid index.
        qs: [u8; 64],
        /// Per group: 4 sign codes of 7 bits and the 4-bit `s` on top.
        signs_scale: [U32; 8],
    }

    /// 256 elements in 8 groups of 32: `d * (2 s + 1) * grid * sign`.
    BlockIq3S: IQ3_S {
        /// Scale.
        d: U16,
        /// Per 4 elements: low 8 bits of the grid index.
        qs: [u8; 64],
        /// Per group: the ninth bits of its 8 indices.
        qh: [u8; 8],
        /// Per 8 elements: a sign bit each.
        signs: [u8; 32],
        /// Per group: `s` in a nibble, even groups low.
        scales: [u8; 4],
    }

    /// 256 elements in 8 groups of 32: `d * (2 s + 1) * (grid + delta)`, `delta` an eighth up or
    /// down.
    BlockIq1S: IQ1_S {
        /// Scale.
        d: U16,
        /// Per 8 elements: low 8 bits of the grid index.
        qs: [u8; 32],
        /// Per group: 4 times the high 3 bits of an index, the 3-bit `s`, and the sign of `delta`.
        qh: [U16; 8],
    }

    /// 256 elements in 16 halves of 16: `d * (2 s + 1) * (grid + delta)`, `delta` per 8 elements.
    BlockIq1M: IQ1_M {
        /// Per 8 elements: low 8 bits of the grid index.
        qs: [u8; 32],
        /// Per 8 elements, a nibble: high 3 bits of the index and the sign of `delta`.
        qh: [u8; 16],
        /// 16 times a 3-bit `s`, 4 to a word; the top nibbles of the words are the scale `d`.
        scales: [U16; 4],
    }

    /// 32 elements: `d * level[q]`.
    BlockIq4Nl: IQ4_NL {
        /// Scale.
        d: U16,
        /// Element `e < 16` in the low nibble of byte `e`, `16 + e` in the high.
        qs: [u8; 16],
    }

    /// 256 elements in 8 groups of 32: `d * (S - 32) * level[q]`.
    BlockIq4Xs: IQ4_XS {
        /// Scale.
        d: U16,
        /// Per group: the high 2 bits of `S`.
        scales_h: U16,
        /// Per group: the low 4 bits of `S`, even groups in the low nibble.
        scales_l: [u8; 4],
        /// Per group 16 bytes, as in [`BlockIq4Nl`].
        qs: [[u8; 16]; 8],
    }

    /// 32 elements: `2^(e - 127) * e2m1(q)`.
    BlockMxfp4: MXFP4 {
        /// E8M0 scale.
        e: u8,
        /// Element `i < 16` in the low nibble of byte `i`, `16 + i` in the high.
        qs: [u8; 16],
    }
}

impl BlockQ4K {
    /// The 6-bit scale and min of sub-block `j`, from the packing Q4_K and Q5_K share: the first
    /// four pairs are whole in bytes 0 to 7; the last four have their low bits in bytes 8 to 11
    /// and their high bits on top of the first.
    pub const fn scale_min(scales: &[u8; 12], j: usize) -> (u8, u8) {
        if j < 4 {
            (scales[j] & 63, scales[j + 4] & 63)
        } else {
            (
                (scales[j + 4] & 15) | ((scales[j - 4] >> 6) << 4),
                (scales[j + 4] >> 4) | ((scales[j] >> 6) << 4),
            )
        }
    }
}

impl BlockIq1M {
    /// The scale, gathered from the top nibbles of the four words.
    pub fn d(&self) -> f32 {
        let [w0, w1, w2, w3] = self.scales.map(U16::get);
        let bits = (w0 >> 12) | ((w1 >> 8) & 0xf0) | ((w2 >> 4) & 0xf00) | (w3 & 0xf000);
        f16::from_bits(bits).to_f32()
    }
}

impl BlockMxfp4 {
    /// Half the scale, 2^(e - 128): the factor of the doubled values in
    /// [`MXFP4_DOUBLED`](super::MXFP4_DOUBLED). As in ggml, `e = 255`, which the microscaling
    /// specification calls NaN, continues the powers of two.
    pub const fn half_scale(&self) -> f32 {
        // 2^-128 and 2^-127 are subnormal.
        f32::from_bits(match self.e {
            0 | 1 => 0x0020_0000 << self.e,
            e => (e as u32 - 1) << 23,
        })
    }
}
