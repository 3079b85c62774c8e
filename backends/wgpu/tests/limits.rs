//! What an adapter cannot do is an error that names it, or is done another way.

use std::sync::Arc;

use ds4_conformance::{golden, network};
use ds4_model::{Backend, BackendError, CacheRounding, ElementType, Geometry, Place, Shape};
use ds4_wgpu::{Gpu, Lack, Specialisation, WgpuBackend, WgpuError, WgpuOptions};

fn options() -> WgpuOptions {
    WgpuOptions {
        allow_processor: true,
        ..WgpuOptions::default()
    }
}

fn open(options: &WgpuOptions) -> Option<Arc<Gpu>> {
    match Gpu::open(options) {
        Ok(gpu) => Some(gpu),
        Err(error) => {
            golden::skipped(&error.to_string());
            None
        }
    }
}

#[test]
fn an_adapter_that_is_not_there_is_named_with_what_is() {
    if open(&options()).is_none() {
        return;
    }
    let options = WgpuOptions {
        adapter: Some("no such GPU".to_owned()),
        ..options()
    };
    let error = Gpu::open(&options).expect_err("no adapter has that name");
    assert!(matches!(error, WgpuError::NoAdapter { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("there is only") && text.contains("the CPU backend"),
        "{text}"
    );
}

#[test]
fn a_buffer_beyond_the_limit_says_which_limit() {
    let small = WgpuOptions {
        max_binding_bytes: Some(1 << 20),
        ..options()
    };
    let Some(gpu) = open(&small) else { return };
    let mut backend = WgpuBackend::new(&gpu, &Geometry::flash());
    let error = backend
        .alloc(ElementType::F32, Shape::rows(1 << 10, 1 << 10))
        .expect_err("4 MiB where 1 MiB is bound");
    assert!(matches!(error, BackendError::OutOfMemory { .. }), "{error}");
    assert!(
        error.to_string().contains("binds at most 1048576 bytes"),
        "{error}"
    );
    // The backend goes on.
    let buffer = backend.alloc(ElementType::F32, Shape::rows(1, 16));
    let mut bytes = [1; 64];
    let at = Place { slot: 0, row: 0 };
    backend
        .read(&buffer.expect("64 bytes"), at, &mut bytes)
        .expect("it reads");
    assert_eq!(bytes, [0; 64]);
}

/// Weights of more bytes than a binding are divided by rows, experts by whole experts, and give what
/// they give in one piece.
#[test]
fn weights_larger_than_a_binding_are_divided() {
    let Some(whole) = open(&options()) else {
        return;
    };
    let golden = &golden::committed()[0];
    let small = WgpuOptions {
        max_weight_bytes: Some(12 << 10),
        ..options()
    };
    let gpu = Gpu::open(&small).expect("the same adapter");
    let make = |geometry: &Geometry| WgpuBackend::new(&gpu, geometry);
    let shape = network::test_shape(golden.tokens.len(), CacheRounding::Off);
    let divided = network::Model::open(&golden.gguf, &make, shape);
    let layers = &divided.network.layers;
    let most = layers
        .iter()
        .map(|layer| layer.ffn_gate_exps.n_parts())
        .max();
    assert!(most > Some(1), "no experts of {} are divided", golden.name);
    let most = layers.iter().map(|layer| layer.attn_q_b.n_parts()).max();
    assert!(most > Some(1), "no matrix of {} is divided", golden.name);
    drop((divided, whole));
    network::golden_logits(&make, golden, 1e-3);
}

/// Also when the kernel is one that no adapter can take, a specialisation is refused and the device
/// goes on.
#[test]
fn a_workgroup_over_the_limit_is_refused_by_name() {
    let Some(gpu) = open(&options()) else { return };
    let lanes = gpu.capabilities().workgroup_lanes as usize;
    let choose = |lanes: usize| Specialisation::of("choose").with("WG", lanes);
    let error = gpu
        .compile(&choose(16 * lanes))
        .expect_err("too many lanes");
    let text = error.to_string();
    assert!(
        text.contains("choose") && text.contains(&(16 * lanes).to_string()),
        "{text}"
    );
    gpu.compile(&choose(256)).expect("256 lanes");
}

#[test]
fn a_lost_device_is_an_error_of_every_later_call() {
    let Some(gpu) = open(&options()) else { return };
    let mut backend = WgpuBackend::new(&gpu, &Geometry::flash());
    let buffer = backend
        .alloc(ElementType::F32, Shape::rows(1, 16))
        .expect("64 bytes");
    let at = Place { slot: 0, row: 0 };
    let mut bytes = [0; 64];
    backend.read(&buffer, at, &mut bytes).expect("it reads");
    let name = gpu.capabilities().name.clone();
    gpu.lose();
    for _ in 0..2 {
        let error = backend
            .read(&buffer, at, &mut bytes)
            .expect_err("no device");
        assert!(matches!(error, BackendError::Lost(_)), "{error}");
        assert!(error.to_string().contains(&name), "{error}");
    }
    let error = backend
        .alloc(ElementType::F32, Shape::rows(1, 16))
        .expect_err("no device");
    assert!(matches!(error, BackendError::Lost(_)), "{error}");
    let wait = backend.wait().expect_err("no device");
    assert!(matches!(wait, BackendError::Lost(_)), "{wait}");
    // Another device of the same adapter is not lost.
    let again = open(&options()).expect("the same adapter");
    let mut backend = WgpuBackend::new(&again, &Geometry::flash());
    let buffer = backend.alloc(ElementType::F32, Shape::rows(1, 16));
    let read = backend.read(&buffer.expect("64 bytes"), at, &mut bytes);
    read.expect("it reads");
}

/// Without this or that feature kernels do without, and give the same.
#[test]
fn features_that_are_missing_are_done_without() {
    let golden = &golden::committed()[0];
    for lacks in [
        vec![Lack::Subgroups],
        vec![Lack::Integers, Lack::Halves],
        vec![Lack::Lanes(256), Lack::StorageBuffers(16)],
    ] {
        let lacking = WgpuOptions {
            lacks: lacks.clone(),
            ..options()
        };
        let Some(gpu) = open(&lacking) else { return };
        let c = gpu.capabilities();
        for lack in lacks {
            match lack {
                Lack::Subgroups => assert_eq!(c.subgroup, None),
                Lack::Integers => assert!(!c.integer_dot),
                Lack::Halves => assert!(!c.f16),
                Lack::Lanes(n) => assert_eq!(c.workgroup_lanes, n),
                Lack::StorageBuffers(n) => assert_eq!(c.storage_buffers, n),
                other => panic!("{other:?} is not asked about"),
            }
        }
        let make = |geometry: &Geometry| WgpuBackend::new(&gpu, geometry);
        network::golden_logits(&make, golden, 1e-3);
    }
}

#[test]
fn an_adapter_that_lacks_what_every_kernel_needs_is_refused_by_name() {
    if open(&options()).is_none() {
        return;
    }
    for (lack, says) in [
        (Lack::Immediates, "immediates"),
        (Lack::Lanes(128), "128 lanes of a workgroup"),
        (
            Lack::WorkgroupBytes(16 << 10),
            "16384 bytes of workgroup memory",
        ),
        (Lack::StorageBuffers(8), "8 storage buffers"),
    ] {
        let lacking = WgpuOptions {
            lacks: vec![lack],
            ..options()
        };
        let error = Gpu::open(&lacking).expect_err("it is needed");
        let text = error.to_string();
        assert!(
            text.contains(says) && text.contains("the CPU backend"),
            "{text}"
        );
    }
}
