//! What a run of the ops needs at hand.

use std::sync::atomic::{AtomicU64, Ordering};

use ds4_formats::{GgmlType, Tensor};
use ds4_model::{
    Backend, ElementType, Pass, Place, ReadPart, Recording, Requirement, RowsImage, Shape, StepKey,
    StepShape, WeightRole,
};

use super::Tolerance;
use crate::fixtures::{Random, float_tensor, random_tensor};

/// Everything a run needs at hand: buffers are made, poisoned, filled and read
/// through it.
///
/// Every buffer is longer than an op is told: what lies behind its rows is poison, and
/// must be poison still when the buffer is read.
pub(super) struct Bench<'a, B: Backend> {
    pub(super) b: &'a mut B,
    pub(super) image: &'a RowsImage,
    pub(super) tolerance: &'a Tolerance,
    pub(super) outputs: Vec<Output>,
    n_steps: u64,
}

/// One named output of an op.
pub(super) struct Output {
    pub(super) op: String,
    pub(super) values: Vec<f32>,
    pub(super) tolerance: f32,
}

const POISON: f32 = 1e30;
const POISON_ID: u32 = 0xdead_beef;
const N_SLOTS: usize = 4;
/// Rows behind an activation, a slot behind a ring.
const GUARD_ROWS: usize = 3;
/// Tokens of the slots' ranges: not as many for each.
const CAPACITIES: [usize; N_SLOTS] = [384, 512, 640, 512];
/// Numbers the steps of this process, of which none is a replay of another.
static N_STEPS: AtomicU64 = AtomicU64::new(1 << 32);

/// First token of a slot's range.
pub(super) fn base(slot: usize) -> usize {
    CAPACITIES[..slot].iter().sum()
}

/// Tokens of all ranges.
pub(super) fn n_tokens() -> usize {
    base(N_SLOTS)
}

impl<'a, B: Backend> Bench<'a, B> {
    pub(super) fn new(
        b: &'a mut B,
        image: &'a RowsImage,
        tolerance: &'a Tolerance,
    ) -> Bench<'a, B> {
        let mut bench = Bench {
            b,
            image,
            tolerance,
            outputs: Vec::new(),
            n_steps: 0,
        };
        bench.begin();
        bench
    }

    /// Begins a step that has never been recorded.
    fn begin(&mut self) {
        self.n_steps = N_STEPS.fetch_add(1, Ordering::Relaxed);
        let key = StepKey {
            session: self.n_steps,
            pass: Pass::Backbone,
            shape: StepShape {
                n_rows: self.image.len(),
                n_outputs: self.image.len(),
                selects: true,
                max_len: n_tokens(),
                score_rows: self.image.len(),
                rounded: true,
                chooses: true,
            },
        };
        assert_eq!(self.b.begin(&key), Recording::Record, "a step that is new");
    }

    /// Runs what was recorded.
    fn finish(&mut self) {
        self.b.launch().expect("launches");
        self.b.wait().expect("runs");
        self.b.end_session(self.n_steps);
        self.begin();
    }

    pub(super) fn n_rows(&self) -> usize {
        self.image.len()
    }

    pub(super) fn fill(&mut self, shape: Shape, element: ElementType, values: &[f32]) -> B::Buffer {
        let longer = longer(shape);
        let mut buffer = self.b.alloc(element, longer).expect("a small buffer");
        let mut values = values.to_vec();
        values.resize(longer.len(), POISON);
        let bytes: Vec<u8> = match element {
            ElementType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            ElementType::Bf16 => values
                .iter()
                .flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes())
                .collect(),
            ElementType::U32 => values
                .iter()
                .map(|x| if *x == POISON { POISON_ID } else { *x as u32 })
                .flat_map(u32::to_le_bytes)
                .collect(),
        };
        let per_slot = bytes.len() / longer.n_slots;
        for (slot, bytes) in bytes.chunks_exact(per_slot).enumerate() {
            self.b
                .write(&mut buffer, Place { slot, row: 0 }, bytes)
                .expect("written");
        }
        buffer
    }

    pub(super) fn input(&mut self, width: usize, values: &[f32]) -> B::Buffer {
        let shape = Shape::rows(self.n_rows(), width);
        self.fill(shape, ElementType::F32, values)
    }

    pub(super) fn random_input(&mut self, width: usize, random: &mut Random) -> B::Buffer {
        let values = random.normals(self.n_rows() * width, 1.0);
        self.input(width, &values)
    }

    pub(super) fn poisoned(&mut self, width: usize) -> B::Buffer {
        let values = vec![POISON; self.n_rows() * width];
        self.input(width, &values)
    }

    pub(super) fn upload(&mut self, role: WeightRole, tensor: Tensor) -> B::Weight {
        let need = Requirement::alone(role, &tensor);
        let weight = self.b.upload(&need, tensor).expect("a small weight");
        self.b.uploads_done(&mut |_| {}).expect("moved");
        weight
    }

    pub(super) fn vector(&mut self, n: usize, random: &mut Random) -> B::Weight {
        let values: Vec<f32> = random.normals(n, 0.5).iter().map(|x| x + 1.0).collect();
        self.upload(
            WeightRole::Vector,
            float_tensor("v", GgmlType::F32, &[n], &values),
        )
    }

    pub(super) fn matrix(
        &mut self,
        role: WeightRole,
        ty: GgmlType,
        ne: &[usize],
        random: &mut Random,
    ) -> B::Weight {
        let scale = (ne[0] as f32).powf(-0.5);
        self.upload(role, random_tensor("m", ty, ne, scale, random))
    }

    /// Reads a buffer, and sees that nothing was written behind it.
    pub(super) fn floats(
        &mut self,
        buffer: &B::Buffer,
        element: ElementType,
        shape: Shape,
    ) -> Vec<f32> {
        self.finish();
        let longer = longer(shape);
        let n_bytes = longer.n_rows * longer.width * element.n_bytes();
        let mut bytes = vec![vec![0; n_bytes]; longer.n_slots];
        let mut parts: Vec<ReadPart<'_, B::Buffer>> = bytes
            .iter_mut()
            .enumerate()
            .map(|(slot, bytes)| ReadPart {
                buffer,
                at: Place { slot, row: 0 },
                bytes,
            })
            .collect();
        self.b.read_many(&mut parts).expect("read");
        let bytes = bytes.concat();
        let mut values: Vec<f32> = match element {
            ElementType::F32 => bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
            ElementType::Bf16 => bytes
                .chunks_exact(2)
                .map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16))
                .collect(),
            ElementType::U32 => bytes
                .chunks_exact(4)
                .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as f32)
                .collect(),
        };
        let poison = match element {
            ElementType::F32 => POISON,
            ElementType::Bf16 => f32::from_bits(POISON.to_bits() & 0xffff_0000),
            ElementType::U32 => POISON_ID as f32,
        };
        let behind = values.split_off(shape.len());
        let at = behind.iter().position(|x| *x != poison);
        assert_eq!(at, None, "element written behind a buffer of {shape:?}");
        values
    }

    /// Records the real rows of an activation.
    pub(super) fn record(
        &mut self,
        op: &str,
        buffer: &B::Buffer,
        element: ElementType,
        width: usize,
        tolerance: f32,
    ) {
        let n_real = self.n_rows() - 1;
        let mut values = self.floats(buffer, element, Shape::rows(self.n_rows(), width));
        values.truncate(n_real * width);
        self.outputs.push(Output {
            op: op.to_owned(),
            values,
            tolerance,
        });
    }

    pub(super) fn record_f32(
        &mut self,
        op: &str,
        buffer: &B::Buffer,
        width: usize,
        tolerance: f32,
    ) {
        self.record(op, buffer, ElementType::F32, width, tolerance);
    }

    /// Records a whole cache: rows that no real row owns must not change.
    pub(super) fn record_cache(
        &mut self,
        op: &str,
        buffer: &B::Buffer,
        element: ElementType,
        shape: Shape,
    ) {
        let values = self.floats(buffer, element, shape);
        self.outputs.push(Output {
            op: op.to_owned(),
            values,
            tolerance: 0.0,
        });
    }
}

/// A ring of every slot.
pub(super) fn slots(n_rows: usize, width: usize) -> Shape {
    Shape {
        n_slots: N_SLOTS,
        n_rows,
        width,
    }
}

/// With what lies behind it: rows of an activation, a slot of a ring.
fn longer(shape: Shape) -> Shape {
    match shape.n_slots {
        1 => Shape {
            n_rows: shape.n_rows + GUARD_ROWS,
            ..shape
        },
        n_slots => Shape {
            n_slots: n_slots + 1,
            ..shape
        },
    }
}
