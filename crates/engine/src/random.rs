//! A model of random weights: the published sizes and types, and blocks that every kernel can read,
//! for measuring where no file is.

use ds4_formats::gguf::{Gguf, TensorSpec};
use ds4_formats::{Bytes, GgmlType};
use ds4_model::{Component, Geometry, Requirement, WeightRole, requirements};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};

/// The blocks are the same in every run.
const SEED: u64 = 2;
/// Bytes of random blocks; a larger buffer repeats them.
const TILE_BYTES: usize = 16 << 20;
/// Where tensors begin in a buffer.
const ALIGNMENT: u64 = 32;
/// Name of such a model.
const NAME: &str = "random weights";

/// A model of a geometry with the types of the published 2-bit file. Tensors of a type share one
/// buffer that is as long as the longest of them, so that the whole needs little memory until a
/// device copies it; they begin at different places of it.
pub fn random_model(geometry: &Geometry) -> Gguf {
    let needs = requirements(geometry);
    let mut buffers: Vec<(GgmlType, u64)> = Vec::new();
    let mut specs = Vec::new();
    for need in &needs {
        let ty = published_type(need);
        let n_bytes = ty.tensor_bytes(&need.ne).expect("sizes of whole blocks");
        let shard = match buffers.iter().position(|(other, _)| *other == ty) {
            Some(at) => at,
            None => {
                buffers.push((ty, 0));
                buffers.len() - 1
            }
        };
        buffers[shard].1 = buffers[shard].1.max(n_bytes);
        specs.push(TensorSpec {
            name: need.name.clone(),
            ty,
            ne: need.ne.clone(),
            offset: 0,
            n_bytes,
            shard,
        });
    }
    let mut next = vec![0; buffers.len()];
    for spec in &mut specs {
        let n_all = buffers[spec.shard].1;
        // Whole blocks, and a multiple of the alignment.
        let step = ALIGNMENT * spec.ty.block_bytes() as u64;
        if next[spec.shard] + spec.n_bytes <= n_all {
            spec.offset = next[spec.shard];
        }
        next[spec.shard] = (spec.offset + spec.n_bytes).next_multiple_of(step);
    }
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let n_ids = geometry.n_experts_used;
    let made = buffers.iter().map(|(ty, n_bytes)| match ty {
        GgmlType::I32 => Bytes::from(expert_ids(*n_bytes as usize, n_ids, geometry.n_experts)),
        ty => Bytes::from(blocks(*ty, *n_bytes as usize, &mut random)),
    });
    let metadata = geometry.to_metadata(NAME);
    Gguf::over(metadata, made.collect(), specs).expect("tensors that lie in their buffers")
}

/// The type of a tensor in the published 2-bit file.
fn published_type(need: &Requirement) -> GgmlType {
    use Component::*;
    match (need.component, need.role) {
        (_, WeightRole::Ids) => GgmlType::I32,
        (Compressors | Indexers, _) if need.name.contains("_ape") => GgmlType::F16,
        (_, WeightRole::Vector) => GgmlType::F32,
        (RoutedExperts, _) if need.name.contains("down") => GgmlType::Q2_K,
        (RoutedExperts, _) => GgmlType::IQ2_XXS,
        (Attention | SharedExperts | Output, _) => GgmlType::Q8_0,
        _ => GgmlType::F16,
    }
}

/// Random blocks of a type, with scales that keep sums of thousands of products within f16.
fn blocks(ty: GgmlType, n_bytes: usize, random: &mut ChaCha8Rng) -> Vec<u8> {
    let block = ty.block_bytes();
    let n_tile = (TILE_BYTES / block * block).min(n_bytes);
    let mut tile = vec![0; n_tile];
    random.fill_bytes(&mut tile);
    let scales: &[(usize, u16)] = match ty {
        // 3.0e-4, 5.0e-4, and 2.0e-3 with 3.0e-3, as f16.
        GgmlType::Q8_0 => &[(0, 0x0cea)],
        GgmlType::IQ2_XXS => &[(0, 0x1019)],
        GgmlType::Q2_K => &[(80, 0x1819), (82, 0x1a25)],
        _ => &[],
    };
    for block in tile.chunks_exact_mut(block) {
        for (at, bits) in scales {
            block[*at..at + 2].copy_from_slice(&bits.to_le_bytes());
        }
        match ty {
            // Sign and fraction stay; the exponent makes it 1/128 to 1/64.
            GgmlType::F16 => block[1] = block[1] & 0x83 | 0x20,
            // 1 to 1.5, as norms are.
            GgmlType::F32 => {
                let fraction = u32::from_le_bytes([block[0], block[1], block[2], 0]) >> 2;
                block.copy_from_slice(&(0x3f80_0000 | fraction).to_le_bytes());
            }
            _ => {}
        }
    }
    let mut all = Vec::with_capacity(n_bytes);
    while all.len() < n_bytes {
        let n = tile.len().min(n_bytes - all.len());
        all.extend_from_slice(&tile[..n]);
    }
    all
}

/// For every token, ids of experts that differ.
fn expert_ids(n_bytes: usize, n_used: usize, n_experts: usize) -> Vec<u8> {
    // Steps of an odd number meet every expert before one comes again.
    let id = |i: usize| (i / n_used * 7919 + i % n_used * 37) % n_experts;
    (0..n_bytes / 4)
        .flat_map(|i| (id(i) as u32).to_le_bytes())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BackendKind, Batch, Engine, OpenOptions, Outputs};

    /// Two layers of a small width, of whole blocks of every type.
    fn small() -> Geometry {
        let mut geometry = Geometry::flash();
        geometry.layers.truncate(4);
        geometry.expert_clamp.truncate(4);
        geometry.shared_clamp.truncate(4);
        Geometry {
            n_vocab: 512,
            n_embd: 256,
            n_heads: 4,
            head_dim: 256,
            q_rank: 256,
            n_out_groups: 2,
            out_rank: 128,
            n_index_heads: 4,
            n_experts: 8,
            expert_dim: 256,
            ..geometry
        }
    }

    #[test]
    fn random_weights_are_finite_numbers_of_a_model_that_runs() {
        let geometry = small();
        let gguf = random_model(&geometry);
        for need in requirements(&geometry) {
            let tensor = gguf.tensor(&need.name).expect("every tensor");
            assert_eq!(tensor.ne, need.ne, "{}", need.name);
            let values = tensor.to_f32();
            assert!(
                values.iter().all(|x| x.is_finite() && x.abs() < 1e4),
                "{}",
                need.name
            );
        }
        let mut options = OpenOptions::new("random");
        options.backend = BackendKind::Cpu;
        options.n_threads = Some(2);
        options.context = Some(256);
        let mut engine = Engine::from_gguf(&gguf, &options, &mut |_| {}).expect("it opens");
        let mut batch = Batch::new();
        batch.push(0, &[1, 2, 3, 500], Outputs::Last);
        let logits = engine.step(&batch).expect("it runs");
        assert!(logits.iter().all(|x| x.is_finite()));
        assert!(logits.iter().any(|x| *x != logits[0]));
    }

    #[test]
    fn random_weights_of_the_published_geometry_have_its_types_and_sizes() {
        let needs = requirements(&Geometry::flash());
        let n_bytes: u64 = needs
            .iter()
            .map(|need| {
                let ty = published_type(need);
                let n_bytes = ty.tensor_bytes(&need.ne).expect("whole blocks");
                n_bytes.next_multiple_of(ALIGNMENT)
            })
            .sum();
        // The data of the published file; see tests/layouts.rs.
        assert_eq!(n_bytes, 86_714_777_664);
    }
}
