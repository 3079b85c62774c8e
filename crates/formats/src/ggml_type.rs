//! The element types of tensors, by the numbers GGUF files use.

use std::fmt;

/// What a type's activations must be for [`crate::quant::dot`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ActivationKind {
    /// f32 as they are.
    F32,
    /// Blocks of 32, [`crate::quant::ActQ8`].
    Q8,
    /// Blocks of 256, [`crate::quant::BlockQ8K`].
    Q8K,
}

macro_rules! ggml_types {
    ($($(#[$doc:meta])* $variant:ident = $id:literal, $block_len:literal, $block_bytes:literal;)*) => {
        /// An element type this crate decodes. The discriminant is ggml's id, the number in a file.
        ///
        /// Other ids exist (the older 4- and 5-bit types, integers of other widths, and private
        /// types that reuse numbers of ggml); they are refused by [`GgmlType::from_id`].
        #[allow(non_camel_case_types)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum GgmlType {
            $($(#[$doc])* $variant = $id,)*
        }

        impl GgmlType {
            /// Every type, in order of id.
            pub const fn all() -> &'static [GgmlType] {
                &[$(GgmlType::$variant,)*]
            }

            /// The type with ggml's number `id`, if this crate decodes it.
            pub const fn from_id(id: u32) -> Option<GgmlType> {
                match id {
                    $($id => Some(GgmlType::$variant),)*
                    _ => None,
                }
            }

            /// The name that ggml and every tool around it use, such as `IQ2_XXS`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(GgmlType::$variant => stringify!($variant),)*
                }
            }

            /// Elements in a block; 1 for types without blocks.
            pub const fn block_len(self) -> usize {
                match self {
                    $(GgmlType::$variant => $block_len,)*
                }
            }

            /// Bytes of a block.
            pub const fn block_bytes(self) -> usize {
                match self {
                    $(GgmlType::$variant => $block_bytes,)*
                }
            }
        }
    };
}

ggml_types! {
    /// IEEE single.
    F32 = 0, 1, 4;
    /// IEEE half.
    F16 = 1, 1, 2;
    /// 8.5 bits a value: int8 and one scale per 32.
    Q8_0 = 8, 32, 34;
    /// 2.625 bits a value: 2-bit codes, 4-bit scale and min per 16.
    Q2_K = 10, 256, 84;
    /// 3.4375 bits a value: 3-bit codes, 6-bit scale per 16.
    Q3_K = 11, 256, 110;
    /// 4.5 bits a value: 4-bit codes, 6-bit scale and min per 32.
    Q4_K = 12, 256, 144;
    /// 5.5 bits a value: 5-bit codes, 6-bit scale and min per 32.
    Q5_K = 13, 256, 176;
    /// 6.5625 bits a value: 6-bit codes, 8-bit scale per 16.
    Q6_K = 14, 256, 210;
    /// 2.0625 bits a value: grid of 256 rows of 8, 4-bit scale per 32.
    IQ2_XXS = 16, 256, 66;
    /// 2.3125 bits a value: grid of 512 rows of 8, 4-bit scale per 16.
    IQ2_XS = 17, 256, 74;
    /// 3.0625 bits a value: grid of 256 rows of 4, 4-bit scale per 32.
    IQ3_XXS = 18, 256, 98;
    /// 1.5625 bits a value: ternary grid of 2048 rows of 8, 3-bit scale per 32.
    IQ1_S = 19, 256, 50;
    /// 4.5 bits a value: 16 uneven levels, one scale per 32.
    IQ4_NL = 20, 32, 18;
    /// 3.4375 bits a value: grid of 512 rows of 4, 4-bit scale per 32.
    IQ3_S = 21, 256, 110;
    /// 2.5625 bits a value: grid of 1024 rows of 8, 4-bit scale per 16.
    IQ2_S = 22, 256, 82;
    /// 4.25 bits a value: 16 uneven levels, 6-bit scale per 32.
    IQ4_XS = 23, 256, 136;
    /// Signed 32-bit integers: tables, never weights.
    I32 = 26, 1, 4;
    /// 1.75 bits a value: ternary grid of 2048 rows of 8, 3-bit scale per 16.
    IQ1_M = 29, 256, 56;
    /// The upper half of an f32.
    BF16 = 30, 1, 2;
    /// 4.25 bits a value: E2M1 codes, E8M0 scale per 32 (OCP microscaling).
    MXFP4 = 39, 32, 17;
}

impl GgmlType {
    /// ggml's number of the type.
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// Bytes of a row of `n` elements, or `None` when `n` is not whole blocks or the length does
    /// not fit.
    pub const fn row_bytes(self, n: usize) -> Option<usize> {
        if !n.is_multiple_of(self.block_len()) {
            return None;
        }
        (n / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Bytes of a tensor of shape `ne` (`ne[0]` contiguous).
    ///
    /// # Errors
    /// A rank outside 1 to [`GgmlType::MAX_DIMS`], a dimension of zero, an `ne[0]` that is not
    /// whole blocks, or a size beyond 2^63.
    pub fn tensor_bytes(self, ne: &[u64]) -> Result<u64, ShapeError> {
        if ne.is_empty() || ne.len() > GgmlType::MAX_DIMS {
            return Err(ShapeError::Rank {
                found: ne.len() as u64,
            });
        }
        if let Some(axis) = ne.iter().position(|&n| n == 0) {
            return Err(ShapeError::Zero { axis });
        }
        let block_len = self.block_len() as u64;
        if !ne[0].is_multiple_of(block_len) {
            return Err(ShapeError::Ragged {
                ne0: ne[0],
                ty: self,
            });
        }
        let rows = ne[1..]
            .iter()
            .try_fold(1u64, |rows, &n| rows.checked_mul(n));
        // The element count must fit as well: callers multiply it out.
        rows.filter(|rows| {
            rows.checked_mul(ne[0])
                .is_some_and(|n| n <= i64::MAX as u64)
        })
        .and_then(|rows| rows.checked_mul(ne[0] / block_len))
        .and_then(|blocks| blocks.checked_mul(self.block_bytes() as u64))
        .filter(|&n_bytes| n_bytes <= i64::MAX as u64)
        .ok_or(ShapeError::TooLarge)
    }

    /// The most dimensions a tensor has.
    pub const MAX_DIMS: usize = 4;

    /// The activations [`crate::quant::dot`] pairs with this type; `None` for integer tables.
    pub const fn activation(self) -> Option<ActivationKind> {
        match self {
            GgmlType::I32 => None,
            _ => match self.block_len() {
                1 => Some(ActivationKind::F32),
                32 => Some(ActivationKind::Q8),
                _ => Some(ActivationKind::Q8K),
            },
        }
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A shape that no tensor of its type, or of its data, can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// The number of dimensions is out of range.
    #[error("it has {found} dimensions, expected 1 to {}", GgmlType::MAX_DIMS)]
    Rank {
        /// Number of dimensions found.
        found: u64,
    },
    /// A dimension is zero.
    #[error("dimension {axis} is 0, expected at least 1")]
    Zero {
        /// Which dimension, counted from the contiguous one.
        axis: usize,
    },
    /// The contiguous dimension is not whole blocks.
    #[error("its rows of {ne0} elements are not whole {ty} blocks of {}", .ty.block_len())]
    Ragged {
        /// Elements of a row.
        ne0: u64,
        /// Type of the tensor.
        ty: GgmlType,
    },
    /// The size in elements or bytes does not fit.
    #[error("its size overflows 63 bits")]
    TooLarge,
    /// The data are not those of the shape.
    #[error("it has {found} bytes of data, expected {expected}")]
    Length {
        /// Bytes there are.
        found: u64,
        /// Bytes the shape asks for.
        expected: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_types_correspond_one_to_one() {
        let known: Vec<GgmlType> = (0..1000).filter_map(GgmlType::from_id).collect();
        assert_eq!(known, GgmlType::all());
        for &ty in GgmlType::all() {
            assert_eq!(GgmlType::from_id(ty.id()), Some(ty));
        }
    }

    #[test]
    fn a_row_of_part_blocks_has_no_length() {
        for &ty in GgmlType::all() {
            let len = ty.block_len();
            assert_eq!(ty.row_bytes(0), Some(0), "{ty}");
            assert_eq!(ty.row_bytes(3 * len), Some(3 * ty.block_bytes()), "{ty}");
            if len > 1 {
                assert_eq!(ty.row_bytes(3 * len + 1), None, "{ty}");
            }
            if ty.block_bytes() > len {
                assert_eq!(ty.row_bytes(usize::MAX - (usize::MAX % len)), None, "{ty}");
            }
        }
    }

    #[test]
    fn impossible_shapes_are_refused_by_what_is_wrong_with_them() {
        let q8 = GgmlType::Q8_0;
        assert_eq!(q8.tensor_bytes(&[64, 3, 2]), Ok(2 * 34 * 6));
        assert_eq!(q8.tensor_bytes(&[]), Err(ShapeError::Rank { found: 0 }));
        assert_eq!(
            q8.tensor_bytes(&[32, 1, 1, 1, 1]),
            Err(ShapeError::Rank { found: 5 })
        );
        assert_eq!(q8.tensor_bytes(&[32, 0]), Err(ShapeError::Zero { axis: 1 }));
        assert_eq!(
            q8.tensor_bytes(&[33]),
            Err(ShapeError::Ragged { ne0: 33, ty: q8 })
        );
        for ne in [
            &[1 << 62, 1 << 62][..],
            &[32, u64::MAX, 2],
            &[1 << 63],
            &[1 << 40, 1 << 24],
        ] {
            assert_eq!(q8.tensor_bytes(ne), Err(ShapeError::TooLarge), "{ne:?}");
        }
    }
}
