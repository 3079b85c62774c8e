//! Weights that are repacked for tensor cores mean what they mean in the file.

mod device;

use ds4_conformance::fixtures::{Random, random_tensor};
use ds4_conformance::ops::geometries;
use ds4_formats::{GgmlType, Tensor};
use ds4_model::session::StepShape;
use ds4_model::{
    Backend, ElementType, ExpertsGateUp, Geometry, Pass, Place, Reference, Requirement,
    RopeFrequencies, Routes, RowsImage, SegmentPlace, Shape, StepKey, Visibility, WeightRole,
};

use device::{has_device, make};

const N_ROWS: usize = 5;
/// Sums of f32 in another order.
const TOLERANCE: f32 = 2e-5;

fn need(role: WeightRole, tensor: &Tensor, layer: Option<usize>) -> Requirement {
    Requirement {
        layer,
        ..Requirement::alone(role, tensor)
    }
}

fn rows(geometry: &Geometry) -> RowsImage {
    let mut rows = RowsImage::with_capacity(geometry, N_ROWS, true);
    let place = SegmentPlace {
        slot: 0,
        base: 0,
        first_position: 3,
        visibility: Visibility::Causal,
    };
    rows.push_segment(&RopeFrequencies::new(geometry), place, &[1; N_ROWS]);
    rows
}

fn key() -> StepKey {
    StepKey {
        session: u64::MAX,
        pass: Pass::Backbone,
        shape: StepShape {
            n_rows: N_ROWS,
            n_outputs: 0,
            selects: false,
            max_len: 1024,
            score_rows: 1,
            rounded: true,
            chooses: false,
        },
    }
}

fn filled<B: Backend>(b: &mut B, width: usize, values: &[f32]) -> B::Buffer {
    let mut buffer = b
        .alloc(ElementType::F32, Shape::rows(N_ROWS, width))
        .expect("a small buffer");
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    b.write(&mut buffer, Place { slot: 0, row: 0 }, &bytes)
        .expect("written");
    buffer
}

fn read<B: Backend>(b: &mut B, buffer: &B::Buffer, width: usize) -> Vec<f32> {
    let mut bytes = vec![0; N_ROWS * width * 4];
    b.read(buffer, Place { slot: 0, row: 0 }, &mut bytes)
        .expect("read");
    let words = bytes.chunks_exact(4);
    words
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect()
}

/// The product of a matrix with rows of random numbers.
fn product<B: Backend>(b: &mut B, role: WeightRole, tensor: &Tensor) -> Vec<f32> {
    let geometry = b.geometry().clone();
    let weight = b
        .upload(&need(role, tensor, None), tensor.clone())
        .expect("a small weight");
    b.uploads_done(&mut |_| ()).expect("moved");
    let (n_in, n_out) = (tensor.row_len(), tensor.n_rows());
    let x = filled(b, n_in, &Random(7).normals(N_ROWS * n_in, 1.0));
    let mut out = filled(b, n_out, &vec![1e30; N_ROWS * n_out]);
    let mut on_device = b.alloc_rows(N_ROWS).expect("few rows");
    b.begin(&key());
    b.write_rows(&mut on_device, &rows(&geometry));
    b.matmul(&on_device, &weight, &x, &mut out);
    b.launch().expect("launches");
    b.wait().expect("runs");
    read(b, &out, n_out)
}

fn assert_close(what: &str, found: &[f32], expected: &[f32]) {
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>().sqrt();
    let error = norm(&mut found.iter().zip(expected).map(|(f, e)| f - e))
        / norm(&mut expected.iter().copied());
    assert!(error <= TOLERANCE, "{what}: relative error {error:.2e}");
}

#[test]
fn a_repacked_matrix_multiplies_as_its_file_says() {
    if !has_device() {
        return;
    }
    let [geometry, _] = geometries();
    let hc = [geometry.n_hc * geometry.n_embd, 24];
    for (role, name, ty, ne) in [
        (WeightRole::Matrix, "m", GgmlType::Q8_0, [512, 48]),
        (
            WeightRole::PreciseMatrix,
            "hc_attn_fn.weight",
            GgmlType::F16,
            hc,
        ),
    ] {
        let tensor = random_tensor(name, ty, &ne, 0.05, &mut Random(3));
        let found = product(&mut make(&geometry), role, &tensor);
        let expected = product(&mut Reference::new(&geometry), role, &tensor);
        assert_close(name, &found, &expected);
    }
}

/// Hidden layers and sums of the experts of a layer whose tensors have the names of a file.
fn experts<B: Backend>(b: &mut B, tensors: &[Tensor; 3]) -> (Vec<f32>, Vec<f32>) {
    let g = b.geometry().clone();
    let [gate, up, down] = tensors.each_ref().map(|tensor| {
        let need = need(WeightRole::Experts, tensor, Some(0));
        b.upload(&need, tensor.clone()).expect("small weights")
    });
    b.uploads_done(&mut |_| ()).expect("moved");
    let k = g.n_experts_used;
    let x = filled(b, g.n_embd, &Random(8).normals(N_ROWS * g.n_embd, 1.0));
    let weights: Vec<f32> = (0..N_ROWS * k).map(|i| 0.1 + i as f32 * 0.01).collect();
    let mut routes = Routes {
        experts: b
            .alloc(ElementType::U32, Shape::rows(N_ROWS, k))
            .expect("a small buffer"),
        weights: filled(b, k, &weights),
    };
    let ids: Vec<u8> = (0..N_ROWS * k)
        .flat_map(|i| ((i * 5 % g.n_experts) as u32).to_le_bytes())
        .collect();
    b.write(&mut routes.experts, Place { slot: 0, row: 0 }, &ids)
        .expect("written");
    let mut hidden = filled(b, k * g.expert_dim, &vec![1e30; N_ROWS * k * g.expert_dim]);
    let mut y = filled(b, g.n_embd, &vec![1e30; N_ROWS * g.n_embd]);
    let mut on_device = b.alloc_rows(N_ROWS).expect("few rows");
    b.begin(&key());
    b.write_rows(&mut on_device, &rows(&g));
    let inputs = ExpertsGateUp {
        gate: &gate,
        up: &up,
        clamp: 0.9,
        x: &x,
        routes: &routes,
    };
    b.experts_gate_up(&on_device, inputs, &mut hidden);
    b.experts_down(&on_device, &down, &hidden, &routes, &mut y);
    b.launch().expect("launches");
    b.wait().expect("runs");
    (read(b, &hidden, k * g.expert_dim), read(b, &y, g.n_embd))
}

#[test]
fn repacked_experts_compute_as_their_file_says() {
    if !has_device() {
        return;
    }
    let [g, _] = geometries();
    let mut random = Random(5);
    let mut tensor = |name: &str, ty, n_in, n_out| {
        random_tensor(name, ty, &[n_in, n_out, g.n_experts], 0.05, &mut random)
    };
    let tensors = [
        tensor(
            "blk.0.ffn_gate_exps.weight",
            GgmlType::IQ2_XXS,
            g.n_embd,
            g.expert_dim,
        ),
        tensor(
            "blk.0.ffn_up_exps.weight",
            GgmlType::IQ2_XXS,
            g.n_embd,
            g.expert_dim,
        ),
        tensor(
            "blk.0.ffn_down_exps.weight",
            GgmlType::Q2_K,
            g.expert_dim,
            g.n_embd,
        ),
    ];
    let found = experts(&mut make(&g), &tensors);
    let expected = experts(&mut Reference::new(&g), &tensors);
    assert_close("gate and up", &found.0, &expected.0);
    assert_close("down", &found.1, &expected.1);
}
