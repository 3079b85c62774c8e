//! Weights on the device: which form each takes, and how many bytes.

use std::sync::Arc;

use ds4_formats::GgmlType;
use ds4_model::{Requirement, WeightRole};

use crate::driver::{Argument, Memory};

/// Bytes of a record of a layout; `kernels/layout.cuh` draws them.
const Q8_RECORD: u64 = 4352;
const IQ2_PAIR: u64 = 4480;
const Q2K_PAIR: u64 = 2688;

/// How a weight lies in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// The rows of the file.
    Raw,
    /// f32, decoded on the host.
    Vector,
    /// Q8_0 in records of 16 x 256.
    Q8,
    /// Q2_K in records of 32 x 256.
    Q2k,
    /// IQ2_XXS in records of 32 x 256 of gate and up; this is gate.
    Iq2Gate,
    /// The same; this is up.
    Iq2Up,
    /// F16 `fn` of a hyper-connection, by 32 channels.
    Hc,
}

impl Layout {
    /// The layout of a weight.
    pub(crate) fn of(need: &Requirement, ty: GgmlType, n_hc: usize) -> Layout {
        let n_in = need.ne[0];
        let n_out = need.ne.get(1).copied().unwrap_or(1);
        let tiled = |rows: u64| n_out.is_multiple_of(rows) && n_in.is_multiple_of(256);
        let is = |suffix: &str| need.name.ends_with(suffix);
        match (need.role, ty) {
            (WeightRole::Vector, _) => Layout::Vector,
            (WeightRole::Matrix, GgmlType::Q8_0) if tiled(16) => Layout::Q8,
            (WeightRole::Experts, GgmlType::Q2_K) if tiled(32) => Layout::Q2k,
            (WeightRole::Experts, GgmlType::IQ2_XXS) if tiled(32) && is("ffn_gate_exps.weight") => {
                Layout::Iq2Gate
            }
            (WeightRole::Experts, GgmlType::IQ2_XXS) if tiled(32) && is("ffn_up_exps.weight") => {
                Layout::Iq2Up
            }
            (WeightRole::PreciseMatrix, GgmlType::F16)
                if (is("hc_attn_fn.weight")
                    || is("hc_ffn_fn.weight")
                    || is("output_hc_fn.weight"))
                    && n_in.is_multiple_of(32 * n_hc as u64) =>
            {
                Layout::Hc
            }
            _ => Layout::Raw,
        }
    }

    /// What kernels call it: a type of ggml, or a layout of `blocks.cuh`.
    pub(crate) fn code(self, ty: GgmlType) -> i64 {
        match self {
            Layout::Raw => i64::from(ty.id()),
            Layout::Vector => i64::from(GgmlType::F32.id()),
            Layout::Hc => 101,
            Layout::Q8 => 108,
            Layout::Q2k => 110,
            Layout::Iq2Gate => 116,
            Layout::Iq2Up => 117,
        }
    }

    /// Bytes of `n_rows` rows of `n_in` elements. Gate and up of IQ2_XXS lie in the same records,
    /// half of which is counted for each.
    pub(crate) fn n_bytes(self, ty: GgmlType, n_in: u64, n_rows: u64) -> u64 {
        match self {
            Layout::Raw | Layout::Hc => {
                n_rows * ty.row_bytes(n_in as usize).expect("whole blocks") as u64
            }
            Layout::Vector => n_rows * n_in * 4,
            Layout::Q8 => n_rows / 16 * (n_in / 256) * Q8_RECORD,
            Layout::Q2k => n_rows / 32 * (n_in / 256) * Q2K_PAIR,
            Layout::Iq2Gate | Layout::Iq2Up => n_rows / 32 * (n_in / 256) * IQ2_PAIR / 2,
        }
    }

    /// Bytes that the rows take in memory, the other half of shared records included.
    pub(crate) fn stride_bytes(self, ty: GgmlType, n_in: u64, n_rows: u64) -> u64 {
        match self {
            Layout::Iq2Gate | Layout::Iq2Up => 2 * self.n_bytes(ty, n_in, n_rows),
            _ => self.n_bytes(ty, n_in, n_rows),
        }
    }

    /// Rows that a part of a weight is a multiple of, so that it is whole records.
    pub(crate) fn part_rows(self) -> u64 {
        match self {
            Layout::Raw | Layout::Vector => 1,
            Layout::Q8 => 16,
            Layout::Q2k | Layout::Iq2Gate | Layout::Iq2Up => 32,
            Layout::Hc => u64::MAX,
        }
    }
}

/// A weight on the device.
#[derive(Debug)]
pub struct Weight {
    pub(crate) ty: GgmlType,
    pub(crate) layout: Layout,
    pub(crate) n_in: usize,
    /// Rows, of one expert if there are several.
    pub(crate) n_out: usize,
    pub(crate) memory: Arc<Memory>,
    /// Of experts: the address of each, u64.
    pub(crate) table: Option<Memory>,
    /// Streams of the input of [`Layout::Hc`], else 0.
    pub(crate) n_hc: usize,
}

impl Weight {
    /// The form in which plain kernels take a matrix.
    pub(crate) fn matrix(&self) -> MatrixView {
        let row_bytes = match self.layout {
            Layout::Raw => self.ty.row_bytes(self.n_in).expect("whole blocks"),
            Layout::Vector => self.n_in * 4,
            _ => 0,
        };
        MatrixView {
            data: self.memory.address(),
            row_bytes: row_bytes as u64,
            n_in: self.n_in as u32,
            n_out: self.n_out as u32,
            n_hc: self.n_hc as u32,
            reserved: 0,
        }
    }

    /// What kernels call its type.
    pub(crate) fn code(&self) -> i64 {
        self.layout.code(self.ty)
    }

    pub(crate) fn address(&self) -> u64 {
        self.memory.address()
    }

    /// Address of the table of its experts.
    pub(crate) fn table(&self) -> u64 {
        self.table.as_ref().expect("experts").address()
    }
}

/// `Matrix` of `blocks.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct MatrixView {
    data: u64,
    row_bytes: u64,
    n_in: u32,
    n_out: u32,
    n_hc: u32,
    reserved: u32,
}

impl Argument for MatrixView {}
