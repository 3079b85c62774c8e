//! One named array of numbers.

use std::path::Path;
use std::sync::Arc;

use zerocopy::{FromBytes, Immutable};

use crate::{Bytes, GgmlType, ShapeError, quant};

/// A named array: type, shape and bytes.
///
/// `data` is the rows in order; row `i` is `ne[0]` elements, and the remaining dimensions count
/// rows, `ne[1]` fastest. A matrix `[in, out]` is `out` rows of `in` weights.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Name in the file.
    pub name: String,
    /// Element type.
    pub ty: GgmlType,
    /// Elements in each dimension, the contiguous one first; 1 to 4 entries.
    pub ne: Vec<u64>,
    /// The blocks, exactly `ty.tensor_bytes(&ne)` bytes.
    pub data: Bytes,
    /// Where those bytes are on disk; `None` when they are not there.
    pub origin: Option<Origin>,
}

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The file.
    pub file: Arc<Path>,
    /// Bytes from its start.
    pub offset: u64,
}

impl Tensor {
    /// A tensor over existing bytes.
    ///
    /// # Errors
    /// The shape is impossible for the type, or `data` does not have the length it asks for.
    pub fn new(
        name: impl Into<String>,
        ty: GgmlType,
        ne: &[u64],
        data: Bytes,
    ) -> Result<Tensor, ShapeError> {
        let expected = ty.tensor_bytes(ne)?;
        let found = data.len() as u64;
        if found != expected {
            return Err(ShapeError::Length { found, expected });
        }
        Ok(Tensor {
            name: name.into(),
            ty,
            ne: ne.to_vec(),
            data,
            origin: None,
        })
    }

    /// Number of elements.
    pub fn n_elements(&self) -> usize {
        self.ne.iter().product::<u64>() as usize
    }

    /// Elements of a row, `ne[0]`.
    pub fn row_len(&self) -> usize {
        self.ne[0] as usize
    }

    /// Number of rows, the product of all dimensions but the first.
    pub fn n_rows(&self) -> usize {
        self.ne[1..].iter().product::<u64>() as usize
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.data.len() / self.n_rows()
    }

    /// The blocks of row `i`.
    ///
    /// # Panics
    /// When there is no row `i`.
    pub fn row(&self, i: usize) -> &[u8] {
        let row_bytes = self.row_bytes();
        &self.data[i * row_bytes..(i + 1) * row_bytes]
    }

    /// All elements as f32, in the order of the file. Integers become the nearest f32.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.n_elements()];
        quant::decode_row(self.ty, &self.data, &mut values);
        values
    }

    /// All elements as i32, in the order of the file; `None` unless the type is I32.
    pub fn to_i32(&self) -> Option<Vec<i32>> {
        let (words, _) = self.data.as_chunks::<4>();
        (self.ty == GgmlType::I32).then(|| words.iter().map(|&w| i32::from_le_bytes(w)).collect())
    }

    /// The elements in place, when the type is F32 and the memory is aligned for it on a
    /// little-endian machine; otherwise `None`, and [`Tensor::to_f32`] copies.
    pub fn as_f32(&self) -> Option<&[f32]> {
        self.view(GgmlType::F32)
    }

    /// The elements in place, when the type is I32 and the memory is aligned for it on a
    /// little-endian machine; otherwise `None`.
    pub fn as_i32(&self) -> Option<&[i32]> {
        self.view(GgmlType::I32)
    }

    fn view<T: FromBytes + Immutable>(&self, ty: GgmlType) -> Option<&[T]> {
        if self.ty != ty || cfg!(target_endian = "big") {
            return None;
        }
        <[T]>::ref_from_bytes(&self.data).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_has_exactly_the_bytes_of_its_shape() {
        let of = |n_bytes| {
            Tensor::new("t", GgmlType::Q8_0, &[32, 2], Bytes::from(vec![0; n_bytes])).map(drop)
        };
        assert_eq!(of(68), Ok(()));
        for found in [0, 34, 67, 69] {
            assert_eq!(
                of(found as usize),
                Err(ShapeError::Length {
                    found,
                    expected: 68
                })
            );
        }
    }

    #[test]
    fn rows_follow_one_another() {
        let bytes: Vec<u8> = (0..2 * 3 * 34).map(|i| i as u8).collect();
        let tensor = Tensor::new("t", GgmlType::Q8_0, &[32, 2, 3], bytes.clone().into()).unwrap();
        assert_eq!(
            (tensor.n_elements(), tensor.row_len(), tensor.n_rows()),
            (192, 32, 6)
        );
        let rows: Vec<u8> = (0..6).flat_map(|i| tensor.row(i)).copied().collect();
        assert_eq!(rows, bytes);
    }
}
