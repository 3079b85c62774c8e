//! What a device gets wrong is not used: when it is opened, every form of a product that its
//! features allow is compared with the form that any adapter runs, and a form that differs is turned
//! off and named.

use std::sync::Arc;

use ds4_formats::GgmlType;
use ds4_model::{
    Attend, Backend, BackendError, Component, CompressedRows, ElementType, Geometry, Place,
    Requirement, RopeFrequencies, RopeTable, Rotation, RowsImage, SegmentPlace, Shape, Split,
    Visibility, WeightRole,
};

use crate::adapter::{Capabilities, Gpu};
use crate::backend::WgpuBackend;

/// Relative error that is no fault: products of 8-bit codes are off by 2 %.
const TOLERANCE: f32 = 0.06;

/// Width of the checked products.
const N_IN: usize = 512;
/// Results of them: more than a workgroup's, and no multiple of it.
const N_OUT: usize = 200;

/// The types of the published files, and one that `gemm` decodes by itself on matrices: one for each way
/// a product is computed.
const TYPES: [GgmlType; 5] = [
    GgmlType::F16,
    GgmlType::Q8_0,
    GgmlType::Q2_K,
    GgmlType::IQ2_XXS,
    GgmlType::Q4_K,
];

/// Turns off what this device gets wrong; what that was, by name.
pub(crate) fn turn_off_what_fails(gpu: &mut Arc<Gpu>) -> Vec<String> {
    let mut off = Vec::new();
    // A form is checked again after what it stands on was turned off.
    for _ in 0..3 {
        let products = TYPES.iter().find_map(|ty| fault(gpu, *ty));
        let Some((name, turn_off)) = products.or_else(|| attention_fault(gpu)) else {
            break;
        };
        off.push(name);
        match Arc::get_mut(gpu) {
            Some(gpu) => turn_off(&mut gpu.capabilities),
            None => break,
        }
    }
    off
}

type TurnOff = fn(&mut Capabilities);

/// The first form of a product with this type that is wrong and by how much, and what turns it off.
fn fault(gpu: &Arc<Gpu>, ty: GgmlType) -> Option<(String, TurnOff)> {
    for n_rows in [1, 40, 128] {
        let expected = product(gpu, true, ty, n_rows);
        let found = product(gpu, false, ty, n_rows);
        let wrong = match (&expected, &found) {
            (Ok(expected), Ok(found)) => {
                let error = differ(found, expected);
                (error > TOLERANCE).then(|| format!("relative error {error:.2}"))
            }
            // A device that cannot do the plain form says so when it is used.
            (Err(_), _) => None,
            (_, Err(error)) => Some(error.to_string()),
        };
        let Some(wrong) = wrong else {
            continue;
        };
        let c = &gpu.capabilities;
        let turn_off: (&str, TurnOff) = if n_rows > 1 {
            ("matrices", |c| {
                c.cooperative_16 = false;
                c.cooperative_8 = false;
            })
        } else if c.integer_dot && ty != GgmlType::F16 {
            ("8-bit integers", |c| c.integer_dot = false)
        } else {
            ("subgroups", |c| c.subgroup = None)
        };
        return Some((
            format!(
                "products of {} with {n_rows} rows on {} ({wrong})",
                ty.name(),
                turn_off.0
            ),
            turn_off.1,
        ));
    }
    None
}

/// Attention on matrices, if it is wrong, and what turns it off.
fn attention_fault(gpu: &Arc<Gpu>) -> Option<(String, TurnOff)> {
    let c = &gpu.capabilities;
    if !c.matrices_16() || !c.matrix_attention {
        return None;
    }
    // Split, and in one piece.
    for n_rows in [1, 12] {
        let wrong = match (attention(gpu, true, n_rows), attention(gpu, false, n_rows)) {
            (Ok(expected), Ok(found)) => {
                let error = differ(&found, &expected);
                (error > TOLERANCE).then(|| format!("relative error {error:.2}"))
            }
            (Err(_), _) => None,
            (_, Err(error)) => Some(error.to_string()),
        };
        if let Some(wrong) = wrong {
            let turn_off: TurnOff = |c| c.matrix_attention = false;
            return Some((
                format!("attention of {n_rows} rows on matrices ({wrong})"),
                turn_off,
            ));
        }
    }
    None
}

/// Attention of random queries over a ring and a batch: queries normed and rotated, and of few rows the
/// result rotated back.
fn attention(gpu: &Arc<Gpu>, plain: bool, n_rows: usize) -> Result<Vec<f32>, BackendError> {
    // As many heads as a workgroup takes.
    let geometry = Geometry {
        n_heads: 16,
        ..Geometry::flash()
    };
    let mut backend = WgpuBackend::new(gpu, &geometry);
    backend.plain = plain;
    let (dim, width) = (geometry.head_dim, geometry.n_heads * geometry.head_dim);
    let need = Requirement {
        name: "self-check".to_owned(),
        ne: vec![geometry.n_heads as u64],
        role: WeightRole::Vector,
        component: Component::Attention,
        layer: None,
        split: Split::None,
    };
    let sinks = backend.random_weight(&need, GgmlType::F32, 7)?;
    let mut image = RowsImage::with_capacity(&geometry, n_rows, true);
    let place = SegmentPlace {
        slot: 0,
        base: 0,
        first_position: 100,
        visibility: Visibility::Causal,
    };
    let tokens = vec![0; n_rows];
    image.push_segment(&RopeFrequencies::new(&geometry), place, &tokens);
    let mut rows = backend.alloc_rows(n_rows)?;
    backend.write_rows(&mut rows, &image);
    let mut q = backend.alloc(ElementType::F32, Shape::rows(n_rows, width))?;
    let mut kv = backend.alloc(ElementType::F32, Shape::rows(n_rows, dim))?;
    let n_ring = geometry.window + 16;
    let mut ring = backend.alloc(ElementType::Bf16, Shape::rows(n_ring, dim))?;
    let mut out = backend.alloc(ElementType::F32, Shape::rows(n_rows, width))?;
    let at = Place { slot: 0, row: 0 };
    let number = |i: usize| (i * 7919 % 1009) as f32 / 504.0 - 1.0;
    let floats = |n: usize| -> Vec<u8> { (0..n).flat_map(|i| number(i).to_le_bytes()).collect() };
    backend.write(&mut q, at, &floats(n_rows * width))?;
    backend.write(&mut kv, at, &floats(n_rows * dim))?;
    let halves: Vec<u8> = (0..n_ring * dim)
        .flat_map(|i| half::bf16::from_f32(number(i * 31)).to_le_bytes())
        .collect();
    backend.write(&mut ring, at, &halves)?;
    let table = RopeTable::Plain;
    if plain {
        backend.q_norm_rope(&rows, table, &mut q);
    }
    let inputs = Attend {
        q: &q,
        kv: &kv,
        ring: &ring,
        compressed: CompressedRows::None,
        sinks: &sinks,
    };
    if plain {
        backend.attend(&rows, inputs, &mut out);
        if n_rows <= 8 {
            backend.rope(&rows, table, Rotation::Inverse, dim, &mut out);
        }
    } else {
        backend.record_attend_tile(&rows, &inputs, &out, Some(table));
    }
    let mut bytes = vec![0; 4 * n_rows * width];
    backend.read(&out, at, &mut bytes)?;
    let (words, _) = bytes.as_chunks::<4>();
    Ok(words.iter().map(|word| f32::from_le_bytes(*word)).collect())
}

fn differ(found: &[f32], expected: &[f32]) -> f32 {
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>().sqrt();
    let error = norm(&mut found.iter().zip(expected).map(|(f, e)| f - e));
    let size = norm(&mut expected.iter().copied());
    match error / size {
        ratio if ratio.is_finite() => ratio,
        _ => f32::INFINITY,
    }
}

/// A product of random weights and fixed numbers, in the plain or the chosen form.
fn product(
    gpu: &Arc<Gpu>,
    plain: bool,
    ty: GgmlType,
    n_rows: usize,
) -> Result<Vec<f32>, BackendError> {
    let geometry = Geometry::flash();
    let mut backend = WgpuBackend::new(gpu, &geometry);
    backend.plain = plain;
    let need = Requirement {
        name: "self-check".to_owned(),
        ne: vec![N_IN as u64, N_OUT as u64],
        role: WeightRole::Matrix,
        component: Component::Attention,
        layer: None,
        split: Split::None,
    };
    let weight = backend.random_weight(&need, ty, 7)?;
    let mut image = RowsImage::with_capacity(&geometry, n_rows, true);
    let place = SegmentPlace {
        slot: 0,
        base: 0,
        first_position: 0,
        visibility: Visibility::Causal,
    };
    let tokens = vec![0; n_rows];
    image.push_segment(&RopeFrequencies::new(&geometry), place, &tokens);
    // With the workspace of many rows, which the form of halves needs.
    let mut rows = backend.alloc_rows(n_rows)?;
    backend.write_rows(&mut rows, &image);
    let mut x = backend.alloc(ElementType::F32, Shape::rows(n_rows, N_IN))?;
    let mut out = backend.alloc(ElementType::F32, Shape::rows(n_rows, N_OUT))?;
    let values: Vec<u8> = (0..n_rows * N_IN)
        .flat_map(|i| ((i * 7919 % 1009) as f32 / 504.0 - 1.0).to_le_bytes())
        .collect();
    let at = Place { slot: 0, row: 0 };
    backend.write(&mut x, at, &values)?;
    backend.matmul(&rows, &weight, &x, &mut out);
    let mut bytes = vec![0; 4 * n_rows * N_OUT];
    backend.read(&out, at, &mut bytes)?;
    let (words, _) = bytes.as_chunks::<4>();
    Ok(words.iter().map(|word| f32::from_le_bytes(*word)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::WgpuOptions;

    /// What the check compares agrees where no matrices are used either.
    #[test]
    fn attention_of_a_row_is_that_of_the_plain_form() {
        let options = WgpuOptions {
            allow_processor: true,
            ..WgpuOptions::default()
        };
        let Ok(gpu) = Gpu::open(&options) else {
            return;
        };
        let expected = attention(&gpu, true, 1).expect("it runs");
        let found = attention(&gpu, false, 1).expect("it runs");
        let error = differ(&found, &expected);
        assert!(error < 1e-3, "relative error {error}");
    }

    #[test]
    fn no_form_on_played_matrices_is_turned_off() {
        for size in [16, 8] {
            let options = WgpuOptions {
                allow_processor: true,
                played_matrices: Some(size),
                ..WgpuOptions::default()
            };
            let Ok(gpu) = Gpu::open(&options) else {
                return;
            };
            let c = gpu.capabilities();
            assert_eq!((c.cooperative_16, c.cooperative_8), (size == 16, size == 8));
            assert!(c.turned_off.is_empty(), "{c}");
        }
    }
}
