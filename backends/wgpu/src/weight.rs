//! Weights: how a tensor is laid out on the device, and its upload.
//!
//! A matrix has two planes, codes and scales, each a row after the other, so that a lane reads 16
//! bytes of codes at a time. A row's codes begin at a multiple of 16 bytes, its scales at a multiple
//! of 4.
//!
//! | stored | codes of a row | scales of a row |
//! |---|---|---|
//! | `F32`, `F16`, `Bf16` | the elements, with zeros up to a multiple of 8 | none |
//! | `Q8_0` | 32 bytes a block | f16 a block |
//! | `Q2_K` | 64 bytes a block | 16 bytes of scale and min nibbles, `d`, `dmin` |
//! | `Q4_K` | 128 bytes a block | `d`, `dmin`, 12 bytes of 6-bit scales and mins |
//! | `IQ2_XXS` | 64 bytes a block: pairs of four indices and four sign bytes | the 8 nibbles, then f16 |
//! | `MXFP4` | 16 bytes a block | a byte a block |
//!
//! Other types become F16 where activations may be rounded as well (`Matrix`, `Experts`), and F32
//! elsewhere: their relative error of 2^-12 is far below that of activations in 8 bits.

use ds4_formats::quant::BlockIq2Xxs;
use ds4_formats::{GgmlType, Tensor, quant};
use ds4_model::{BackendError, WeightRole};

use crate::adapter::Gpu;
use crate::bound::Bound;
use crate::memory::{self, Allocation};

/// The layouts that kernels decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stored {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// The upper half of 32-bit floats.
    Bf16,
    /// `Q8_0`, in planes.
    Q8_0,
    /// `Q2_K`, in planes.
    Q2K,
    /// `Q4_K`, in planes.
    Q4K,
    /// `IQ2_XXS`, in planes.
    Iq2Xxs,
    /// `MXFP4`, in planes.
    Mxfp4,
}

impl Stored {
    /// Every layout.
    pub const ALL: [Stored; 8] = [
        Stored::F32,
        Stored::F16,
        Stored::Bf16,
        Stored::Q8_0,
        Stored::Q2K,
        Stored::Q4K,
        Stored::Iq2Xxs,
        Stored::Mxfp4,
    ];

    /// How a tensor of type `ty` is stored for a role.
    pub fn of(ty: GgmlType, role: WeightRole) -> Stored {
        match (ty, role) {
            (GgmlType::F32, _) => Stored::F32,
            (GgmlType::F16, _) => Stored::F16,
            (GgmlType::BF16, _) => Stored::Bf16,
            (GgmlType::Q8_0, _) => Stored::Q8_0,
            (GgmlType::Q2_K, _) => Stored::Q2K,
            (GgmlType::Q4_K, _) => Stored::Q4K,
            (GgmlType::IQ2_XXS, _) => Stored::Iq2Xxs,
            (GgmlType::MXFP4, _) => Stored::Mxfp4,
            (_, WeightRole::Matrix | WeightRole::Experts) => Stored::F16,
            _ => Stored::F32,
        }
    }

    /// Name of its source in a folder of sources.
    pub(crate) fn source(self, folder: &str) -> String {
        let name = match self {
            Stored::F32 => "f32",
            Stored::F16 => "f16",
            Stored::Bf16 => "bf16",
            Stored::Q8_0 => "q8_0",
            Stored::Q2K => "q2_k",
            Stored::Q4K => "q4_k",
            Stored::Iq2Xxs => "iq2_xxs",
            Stored::Mxfp4 => "mxfp4",
        };
        format!("{folder}/{name}")
    }

    /// Whether elements are floats of their own.
    pub(crate) fn is_float(self) -> bool {
        matches!(self, Stored::F32 | Stored::F16 | Stored::Bf16)
    }

    /// Elements that a lane takes at a time, of integers and of floats.
    pub(crate) fn unit(self, integer: bool) -> usize {
        match self {
            _ if !integer => 8,
            Stored::F32 | Stored::F16 | Stored::Bf16 => 8,
            Stored::Q8_0 => 16,
            Stored::Q4K | Stored::Mxfp4 => 32,
            Stored::Q2K | Stored::Iq2Xxs => 64,
        }
    }

    /// Bytes of codes and of scales for a row of `n_in` elements.
    pub fn row_bytes(self, n_in: usize) -> (usize, usize) {
        let padded = n_in.next_multiple_of(8);
        match self {
            Stored::F32 => (padded * 4, 0),
            Stored::F16 | Stored::Bf16 => (padded * 2, 0),
            Stored::Q8_0 => (n_in, (n_in / 32 * 2).next_multiple_of(4)),
            Stored::Q2K => (n_in / 4, n_in / 256 * 20),
            Stored::Q4K => (n_in / 2, n_in / 256 * 16),
            Stored::Iq2Xxs => (n_in / 4, n_in / 256 * 8),
            Stored::Mxfp4 => (n_in / 2, (n_in / 32).next_multiple_of(4)),
        }
    }

    /// Takes one row of a file apart into the two planes, which are zero.
    fn repack(self, ty: GgmlType, row: &[u8], n_in: usize, q: &mut [u8], s: &mut [u8]) {
        // Blocks of (bytes before the codes to scales, codes, bytes after to scales).
        let mut split = |block_bytes: usize, before: usize, codes: usize| {
            let after = block_bytes - before - codes;
            for (i, block) in row.chunks_exact(block_bytes).enumerate() {
                q[i * codes..][..codes].copy_from_slice(&block[before..before + codes]);
                let scales = &mut s[i * (before + after)..][..before + after];
                scales[..before].copy_from_slice(&block[..before]);
                scales[before..].copy_from_slice(&block[before + codes..]);
            }
        };
        match self {
            Stored::Q8_0 => split(34, 2, 32),
            Stored::Q2K => split(84, 16, 64),
            Stored::Q4K => split(144, 16, 128),
            Stored::Iq2Xxs => repack_iq2_xxs(row, q, s),
            Stored::Mxfp4 => split(17, 1, 16),
            _ if Stored::of(ty, WeightRole::Vector) == self && ty.block_len() == 1 => {
                q[..row.len()].copy_from_slice(row);
            }
            Stored::F32 => {
                let mut floats = vec![0.0; n_in];
                quant::decode_row(ty, row, &mut floats);
                for (b, x) in q.chunks_exact_mut(4).zip(floats) {
                    b.copy_from_slice(&x.to_le_bytes());
                }
            }
            Stored::F16 | Stored::Bf16 => {
                let mut floats = vec![0.0; n_in];
                quant::decode_row(ty, row, &mut floats);
                quant::encode_f16(&floats, &mut q[..2 * n_in]);
            }
        }
    }
}

/// Signs as whole bytes (the file leaves out the eighth, which makes their number even), and the
/// scales' nibbles apart.
fn repack_iq2_xxs(row: &[u8], q: &mut [u8], s: &mut [u8]) {
    let blocks = BlockIq2Xxs::row(row).iter();
    let planes = q.chunks_exact_mut(64).zip(s.chunks_exact_mut(8));
    for (block, (q, s)) in blocks.zip(planes) {
        let mut nibbles = 0;
        for (i, ([indices, word], q)) in block.groups.iter().zip(q.chunks_exact_mut(8)).enumerate()
        {
            let word = word.get();
            nibbles |= (word >> 28) << (4 * i);
            q[..4].copy_from_slice(&indices.get().to_le_bytes());
            for (l, sign) in q[4..].iter_mut().enumerate() {
                let code = (word >> (7 * l)) as u8 & 127;
                *sign = code | ((code.count_ones() as u8 & 1) << 7);
            }
        }
        s[..4].copy_from_slice(&nibbles.to_le_bytes());
        s[4..6].copy_from_slice(&block.d.get().to_le_bytes());
    }
}

/// Rows (of `Experts`: experts) `lo .. hi` of a weight, in one buffer.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) lo: usize,
    pub(crate) hi: usize,
    memory: Allocation,
    q_bytes: u64,
    s_at: u64,
    s_bytes: u64,
}

impl Part {
    pub(crate) fn q(&self) -> Bound<'_> {
        self.memory.range(0, self.q_bytes)
    }

    pub(crate) fn has_scales(&self) -> bool {
        self.s_bytes > 0
    }

    /// The scales; of types without any the codes, which are not read as such.
    pub(crate) fn s(&self) -> Bound<'_> {
        if self.s_bytes == 0 {
            return self.q();
        }
        self.memory.range(self.s_at, self.s_bytes)
    }
}

/// A weight on the device.
#[derive(Debug)]
pub struct Weight {
    pub(crate) stored: Stored,
    /// Whether its activations stay in f32.
    pub(crate) precise: bool,
    pub(crate) n_in: usize,
    /// Rows; of `Experts` those of one expert.
    pub(crate) n_out: usize,
    pub(crate) parts: Vec<Part>,
    /// Words of a row's codes and of its scales.
    pub(crate) strides: (u32, u32),
    /// Of `Vector` and `Ids`.
    pub(crate) elements: Option<Allocation>,
}

/// Alignment of a plane in a buffer, in bytes: the most that an adapter asks of a binding's offset.
const PLANE_ALIGN: u64 = 256;

/// Most bytes that are staged at a time.
const STAGING_BYTES: usize = 32 << 20;

impl Weight {
    /// A matrix whose memory is there and zero.
    pub(crate) fn empty(
        gpu: &Gpu,
        role: WeightRole,
        tensor: &Tensor,
    ) -> Result<Weight, BackendError> {
        let mut weight = Weight::shaped(role, tensor);
        weight.take_rows(gpu, role, tensor, false)?;
        Ok(weight)
    }

    fn shaped(role: WeightRole, tensor: &Tensor) -> Weight {
        Weight {
            stored: Stored::of(tensor.ty, role),
            precise: !matches!(role, WeightRole::Matrix | WeightRole::Experts),
            n_in: tensor.ne[0] as usize,
            n_out: tensor.ne.get(1).map_or(1, |n| *n as usize),
            parts: Vec::new(),
            strides: (0, 0),
            elements: None,
        }
    }

    pub(crate) fn new(
        gpu: &Gpu,
        role: WeightRole,
        tensor: &Tensor,
    ) -> Result<Weight, BackendError> {
        let mut weight = Weight::shaped(role, tensor);
        match role {
            WeightRole::Vector => {
                let bytes: Vec<u8> = tensor
                    .to_f32()
                    .iter()
                    .flat_map(|x| x.to_le_bytes())
                    .collect();
                weight.elements = Some(whole(gpu, &tensor.name, &bytes)?);
            }
            WeightRole::Ids => weight.elements = Some(whole(gpu, &tensor.name, &tensor.data)?),
            _ => weight.take_rows(gpu, role, tensor, true)?,
        }
        Ok(weight)
    }

    fn take_rows(
        &mut self,
        gpu: &Gpu,
        role: WeightRole,
        tensor: &Tensor,
        filled: bool,
    ) -> Result<(), BackendError> {
        let (q_row, s_row) = self.stored.row_bytes(self.n_in);
        self.strides = ((q_row / 4) as u32, (s_row / 4) as u32);
        // Units that are not divided: rows, or the matrices of experts.
        let (n_units, unit_rows) = match role {
            WeightRole::Experts => (tensor.n_rows() / self.n_out, self.n_out),
            _ => (tensor.n_rows(), 1),
        };
        let binding = gpu.capabilities.max_weight_bytes;
        let buffer = gpu.capabilities.max_buffer_bytes;
        let of_units = |bytes: usize, n: usize| (bytes * unit_rows * n) as u64;
        let most = (1..=n_units)
            .rev()
            .find(|n| {
                let (q, s) = (of_units(q_row, *n), of_units(s_row, *n));
                q.max(s) <= binding && q.next_multiple_of(PLANE_ALIGN) + s <= buffer
            })
            .ok_or_else(|| BackendError::OutOfMemory {
                what: format!(
                    "{} (this adapter binds at most {binding} bytes, and one part of it",
                    tensor.name
                ) + ")",
                n_bytes: q_row * unit_rows,
            })?;
        for lo in (0..n_units).step_by(most) {
            let hi = (lo + most).min(n_units);
            let (q_bytes, s_bytes) = (of_units(q_row, hi - lo), of_units(s_row, hi - lo));
            let s_at = q_bytes.next_multiple_of(PLANE_ALIGN);
            let memory = Allocation::new(gpu, &tensor.name, s_at + s_bytes)?;
            let rows = lo * unit_rows..hi * unit_rows;
            if filled {
                self.fill(gpu, tensor, rows, &memory, s_at)?;
            }
            self.parts.push(Part {
                lo,
                hi,
                memory,
                q_bytes,
                s_at,
                s_bytes,
            });
        }
        Ok(())
    }

    /// Repacks the rows with all processors, a bounded number of bytes at a time.
    fn fill(
        &self,
        gpu: &Gpu,
        tensor: &Tensor,
        rows: std::ops::Range<usize>,
        memory: &Allocation,
        s_at: u64,
    ) -> Result<(), BackendError> {
        let (q_row, s_row) = self.stored.row_bytes(self.n_in);
        let step = (STAGING_BYTES / (q_row + s_row)).max(1);
        let n_threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(16));
        for start in rows.clone().step_by(step) {
            let here = start..(start + step).min(rows.end);
            let n = here.len();
            let mut q = vec![0u8; n * q_row];
            let mut s = vec![0u8; n * s_row];
            let each = n.div_ceil(n_threads);
            let repack = |first: usize, q: &mut [u8], s: &mut [u8]| {
                for (i, q) in q.chunks_exact_mut(q_row).enumerate() {
                    let s = &mut s[i * s_row..][..s_row];
                    self.stored
                        .repack(tensor.ty, tensor.row(first + i), self.n_in, q, s);
                }
            };
            if n * q_row < 1 << 16 {
                repack(start, &mut q, &mut s);
            } else {
                std::thread::scope(|scope| {
                    let mut scales = s.as_mut_slice();
                    for (i, q) in q.chunks_mut(each * q_row).enumerate() {
                        let (s, rest) = scales.split_at_mut(q.len() / q_row * s_row);
                        scales = rest;
                        scope.spawn(move || repack(start + i * each, q, s));
                    }
                });
            }
            let done = start - rows.start;
            memory::write(gpu, memory, (done * q_row) as u64, &q);
            memory::write(gpu, memory, s_at + (done * s_row) as u64, &s);
            if rows.len() > step {
                memory::drain(gpu)?;
            }
        }
        Ok(())
    }

    /// Buffers that a matrix is divided into, because one binding does not reach over all of it.
    pub fn n_parts(&self) -> usize {
        self.parts.len()
    }

    /// A `Vector` or `Ids`.
    pub(crate) fn elements(&self) -> Bound<'_> {
        self.elements.as_ref().expect("a vector").whole()
    }
}

/// Bytes that a weight of this shape takes, its parts' alignment aside.
pub(crate) fn n_bytes(role: WeightRole, ty: GgmlType, ne: &[u64]) -> u64 {
    let n: u64 = ne.iter().product();
    match role {
        WeightRole::Vector | WeightRole::Ids => 4 * n,
        _ => {
            let (q, s) = Stored::of(ty, role).row_bytes(ne[0] as usize);
            (q + s) as u64 * (n / ne[0]) + PLANE_ALIGN
        }
    }
}

fn whole(gpu: &Gpu, name: &str, bytes: &[u8]) -> Result<Allocation, BackendError> {
    let memory = Allocation::new(gpu, name, bytes.len() as u64)?;
    memory::write(gpu, &memory, 0, bytes);
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_every_type_has_planes_of_whole_words() {
        for stored in Stored::ALL {
            let (q, s) = stored.row_bytes(768);
            assert!(q % 16 == 0 && s % 4 == 0, "{stored:?}");
        }
    }
}
