//! Weights: in the file where products read them, decoded where they are used element by element.

use ds4_formats::{GgmlType, Tensor, quant};
use ds4_model::{BackendError, WeightRole};
use zerocopy::IntoBytes;

use crate::kernels::Kernel;
use crate::path::Cpu;
use crate::products::WeightRows;

/// Most elements of a quantised matrix that is decoded when it is taken, because its activations
/// stay in f32: a hyper-connection has 393,216 in the published geometry.
const MAX_DECODED: usize = 1 << 19;

/// A weight in the form its role wants.
#[derive(Clone, Debug)]
pub struct Weight {
    /// The role it was taken for.
    pub(crate) role: WeightRole,
    /// As in the file, which a clone shares, or decoded to F32.
    pub(crate) tensor: Tensor,
    /// Of the matrix roles.
    kernel: Option<Kernel>,
    floats: Vec<f32>,
}

impl Weight {
    pub(crate) fn new(cpu: Cpu, role: WeightRole, tensor: Tensor) -> Result<Weight, BackendError> {
        let n = tensor.n_elements();
        let (mut tensor, mut floats) = (tensor, Vec::new());
        if role == WeightRole::Vector {
            floats = decoded(&tensor)?;
        }
        if role == WeightRole::PreciseMatrix && tensor.ty.block_len() > 1 && n <= MAX_DECODED {
            tensor.data = decoded(&tensor)?.as_bytes().to_vec().into();
            tensor.ty = GgmlType::F32;
        }
        let kernel = match role {
            WeightRole::Matrix | WeightRole::Experts => Some(false),
            WeightRole::PreciseMatrix => Some(true),
            WeightRole::Vector | WeightRole::Embedding | WeightRole::Ids => None,
        };
        Ok(Weight {
            role,
            kernel: kernel.map(|precise| Kernel::new(cpu, tensor.ty, precise)),
            tensor,
            floats,
        })
    }

    /// How the matrix is multiplied.
    pub(crate) fn kernel(&self) -> &Kernel {
        self.kernel.as_ref().expect("a weight taken as a matrix")
    }

    /// The whole matrix; of `Experts` that of expert `index`.
    pub(crate) fn rows(&self, index: usize) -> WeightRows<'_> {
        let row_bytes = self.row_bytes();
        let matrix_bytes = self.n_out() * row_bytes;
        WeightRows {
            ty: self.tensor.ty,
            kernel: *self.kernel(),
            bytes: &self.tensor.data[index * matrix_bytes..][..matrix_bytes],
            row_bytes,
            n_in: self.n_in(),
        }
    }

    fn row_bytes(&self) -> usize {
        let row_bytes = self.tensor.ty.row_bytes(self.n_in());
        row_bytes.expect("a tensor has whole rows")
    }

    /// Elements of a row.
    pub(crate) fn n_in(&self) -> usize {
        self.tensor.ne[0] as usize
    }

    /// Rows of the matrix; of one expert's matrix for `Experts`.
    pub(crate) fn n_out(&self) -> usize {
        self.tensor.ne.get(1).map_or(1, |n| *n as usize)
    }

    /// Decodes row `i` (of all experts' rows, one expert after another).
    pub(crate) fn decode(&self, i: usize, out: &mut [f32]) {
        quant::decode_row(self.tensor.ty, self.tensor.row(i), out);
    }

    /// All elements of a `Vector`.
    pub(crate) fn vector(&self) -> &[f32] {
        debug_assert_eq!(self.role, WeightRole::Vector);
        &self.floats
    }

    /// Row `i` of `Ids`.
    pub(crate) fn ids(&self, i: usize) -> impl Iterator<Item = u32> {
        let (words, _) = self.tensor.row(i).as_chunks::<4>();
        words.iter().map(|word| u32::from_le_bytes(*word))
    }
}

fn decoded(tensor: &Tensor) -> Result<Vec<f32>, BackendError> {
    let n = tensor.n_elements();
    let mut floats = Vec::new();
    floats
        .try_reserve_exact(n)
        .map_err(|_| BackendError::OutOfMemory {
            what: tensor.name.clone(),
            n_bytes: 4 * n,
        })?;
    floats.resize(n, 0.0);
    quant::decode_row(tensor.ty, &tensor.data, &mut floats);
    Ok(floats)
}
