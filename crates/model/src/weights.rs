//! The weights of the network, named as in the file and checked once.

use ds4_formats::{GgmlType, Tensor};

use crate::backend::Backend;
use crate::geometry::{Geometry, LayerKind};
use crate::operands::{BackendError, WeightRole};

/// A hyper-connection: one for every sublayer and one for the head.
#[derive(Debug)]
pub struct HyperConnection<W> {
    /// `[n_gates, n_hc * n_embd]`; `[n_hc, n_hc * n_embd]` for the head.
    pub fn_: W,
    /// `[n_gates]`; `[n_hc]` for the head.
    pub base: W,
    /// `[3]` for `pre`, `post`, `comb`; `[1]` for the head.
    pub scale: W,
}

/// A compressor: of attention rows, or of index rows.
#[derive(Debug)]
pub struct Compressor<W> {
    /// The kind of its layer.
    pub kind: LayerKind,
    /// Whether it makes index rows.
    pub index: bool,
    /// Channels of a row it makes: `head_dim` or `index_dim`.
    pub row_dim: usize,
    /// `[compressor_dim, n_embd]`.
    pub kv: W,
    /// `[compressor_dim, n_embd]`.
    pub gate: W,
    /// Position bias of the gate, `[ratio, compressor_dim]`.
    pub ape: W,
    /// `[row_dim]`.
    pub norm: W,
}

/// The indexer of a ratio-4 layer.
#[derive(Debug)]
pub struct Indexer<W> {
    /// `[n_index_heads * index_dim, q_rank]`.
    pub attn_q_b: W,
    /// `[n_index_heads, n_embd]`.
    pub proj: W,
    /// Its own compressor.
    pub compressor: Compressor<W>,
}

/// How a layer chooses its experts.
#[derive(Debug)]
pub enum Router<W> {
    /// By token id: `ffn_gate_tid2eid`, `[n_vocab, n_experts_used]`.
    Hash(W),
    /// By score plus bias: `exp_probs_b`, `[n_experts]`.
    TopK(W),
}

/// The weights of one layer.
#[derive(Debug)]
#[allow(
    missing_docs,
    reason = "the fields carry their GGUF names; docs/model.md has the table"
)]
pub struct Layer<W> {
    pub kind: LayerKind,
    pub hc_attn: HyperConnection<W>,
    pub attn_norm: W,
    pub attn_q_a: W,
    pub attn_q_a_norm: W,
    pub attn_q_b: W,
    pub attn_kv: W,
    pub attn_kv_a_norm: W,
    pub attn_sinks: W,
    pub attn_output_a: W,
    pub attn_output_b: W,
    pub attn_compressor: Option<Compressor<W>>,
    pub indexer: Option<Indexer<W>>,
    pub hc_ffn: HyperConnection<W>,
    pub ffn_norm: W,
    pub ffn_gate_inp: W,
    pub router: Router<W>,
    pub ffn_gate_exps: W,
    pub ffn_up_exps: W,
    pub ffn_down_exps: W,
    pub ffn_gate_shexp: W,
    pub ffn_up_shexp: W,
    pub ffn_down_shexp: W,
    pub expert_clamp: f32,
    pub shared_clamp: f32,
}

/// All weights of a model, bound to a backend.
#[derive(Debug)]
pub struct Network<W> {
    /// Sizes and constants.
    pub geometry: Geometry,
    /// `[n_vocab, n_embd]`.
    pub token_embd: W,
    /// The layers, in order.
    pub layers: Vec<Layer<W>>,
    /// Weighted sum of the streams before the output norm.
    pub output_hc: HyperConnection<W>,
    /// `[n_embd]`.
    pub output_norm: W,
    /// `[n_vocab, n_embd]`.
    pub output: W,
}

/// Part of the model that a tensor belongs to, for tables of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Component {
    Embedding,
    HyperConnections,
    Norms,
    Attention,
    Compressors,
    Indexers,
    Router,
    SharedExperts,
    RoutedExperts,
    Output,
}

/// One tensor that the network needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// GGUF name.
    pub name: String,
    /// Shape in GGUF order, contiguous dimension first.
    pub ne: Vec<u64>,
    /// How it is used.
    pub role: WeightRole,
    /// What it is part of.
    pub component: Component,
    /// Its layer; `None` for those of the whole model.
    pub layer: Option<usize>,
    /// How several devices would share it.
    pub split: Split,
}

/// How a weight is divided among devices that compute a step together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    /// Each has all of it.
    None,
    /// By its outputs: each computes a part of the result.
    OutputRows,
    /// By its inputs: each computes a part of the sum.
    InputColumns,
    /// By expert.
    Experts,
}

/// Why a file's tensors are not the network's weights.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The file lacks a tensor.
    #[error(
        "tensor {name} is missing, expected shape {expected:?}: the file is incomplete or made for another model"
    )]
    Missing {
        /// Its name.
        name: String,
        /// Its shape.
        expected: Vec<u64>,
    },
    /// A tensor has another shape.
    #[error(
        "tensor {name} has shape {found:?}, expected {expected:?}{}",
        shape_hint(name, found, expected)
    )]
    Shape {
        /// Its name.
        name: String,
        /// Shape in the file.
        found: Vec<u64>,
        /// Shape the geometry asks for.
        expected: Vec<u64>,
    },
    /// A tensor's type cannot play its role.
    #[error("tensor {name} has type {found}, expected {expected}")]
    Type {
        /// Its name.
        name: String,
        /// Type in the file.
        found: &'static str,
        /// Types accepted.
        expected: &'static str,
    },
    /// The table of hash-routed experts names an expert that is not there.
    #[error("tensor {name} names expert {found} for token {token}, expected 0 to {}", n_experts - 1)]
    ExpertId {
        /// Its name.
        name: String,
        /// The id.
        found: i32,
        /// The token.
        token: usize,
        /// Experts of a layer.
        n_experts: usize,
    },
    /// The device could not take a tensor.
    #[error("tensor {name}: {source}")]
    Backend {
        /// Its name.
        name: String,
        /// What the device said.
        source: BackendError,
    },
    /// The weights could not be moved to the device.
    #[error("the weights could not be moved to the device: {0}")]
    Moving(BackendError),
}

fn shape_hint(name: &str, found: &[u64], expected: &[u64]) -> &'static str {
    if name.contains("_exps") && found.len() == 3 && found[2] < expected[2] {
        " (files with pruned experts are not supported)"
    } else {
        ""
    }
}

impl<W> Network<W> {
    /// Walks the weights in file order, making each with `make`. This is the
    /// only place that knows the names and shapes.
    pub fn build<E>(
        geometry: &Geometry,
        make: &mut dyn FnMut(Requirement) -> Result<W, E>,
    ) -> Result<Network<W>, E> {
        let g = geometry;
        let mut b = Builder { make };
        use Component as In;
        use WeightRole::{Experts, Ids, Matrix, PreciseMatrix, Vector};
        let hc_dim = g.n_hc * g.n_embd;
        let token_embd = b.weight(
            "token_embd",
            In::Embedding,
            WeightRole::Embedding,
            &[g.n_embd, g.n_vocab],
        )?;
        let mut layers = Vec::with_capacity(g.layers.len());
        for (i, &kind) in g.layers.iter().enumerate() {
            let mut b = b.layer(i);
            let exps = [g.n_embd, g.expert_dim, g.n_experts];
            layers.push(Layer {
                kind,
                hc_attn: b.hyper_connection("hc_attn", hc_dim, g.n_gates(), 3)?,
                attn_norm: b.vector("attn_norm", g.n_embd)?,
                attn_q_a: b.weight("attn_q_a", In::Attention, Matrix, &[g.n_embd, g.q_rank])?,
                attn_q_a_norm: b.vector("attn_q_a_norm", g.q_rank)?,
                attn_q_b: b.weight(
                    "attn_q_b",
                    In::Attention,
                    Matrix,
                    &[g.q_rank, g.n_heads * g.head_dim],
                )?,
                attn_kv: b.weight("attn_kv", In::Attention, Matrix, &[g.n_embd, g.head_dim])?,
                attn_kv_a_norm: b.vector("attn_kv_a_norm", g.head_dim)?,
                attn_sinks: b.vector("attn_sinks", g.n_heads)?,
                attn_output_a: b.weight(
                    "attn_output_a",
                    In::Attention,
                    Matrix,
                    &[g.group_dim(), g.n_out_groups * g.out_rank],
                )?,
                attn_output_b: b.weight(
                    "attn_output_b",
                    In::Attention,
                    Matrix,
                    &[g.n_out_groups * g.out_rank, g.n_embd],
                )?,
                attn_compressor: match kind {
                    LayerKind::Sliding => None,
                    _ => {
                        Some(b.compressor("attn_compressor", kind, false, g.head_dim, g.n_embd)?)
                    }
                },
                indexer: match kind {
                    LayerKind::Csa => Some(Indexer {
                        attn_q_b: b.weight(
                            "indexer.attn_q_b",
                            In::Indexers,
                            Matrix,
                            &[g.q_rank, g.n_index_heads * g.index_dim],
                        )?,
                        proj: b.weight(
                            "indexer.proj",
                            In::Indexers,
                            PreciseMatrix,
                            &[g.n_embd, g.n_index_heads],
                        )?,
                        compressor: b.compressor(
                            "indexer_compressor",
                            kind,
                            true,
                            g.index_dim,
                            g.n_embd,
                        )?,
                    }),
                    _ => None,
                },
                hc_ffn: b.hyper_connection("hc_ffn", hc_dim, g.n_gates(), 3)?,
                ffn_norm: b.vector("ffn_norm", g.n_embd)?,
                ffn_gate_inp: b.weight(
                    "ffn_gate_inp",
                    In::Router,
                    PreciseMatrix,
                    &[g.n_embd, g.n_experts],
                )?,
                router: if i < g.n_hash_layers {
                    Router::Hash(b.weight(
                        "ffn_gate_tid2eid",
                        In::Router,
                        Ids,
                        &[g.n_experts_used, g.n_vocab],
                    )?)
                } else {
                    Router::TopK(b.named("exp_probs_b.bias", In::Router, Vector, &[g.n_experts])?)
                },
                ffn_gate_exps: b.weight("ffn_gate_exps", In::RoutedExperts, Experts, &exps)?,
                ffn_up_exps: b.weight("ffn_up_exps", In::RoutedExperts, Experts, &exps)?,
                ffn_down_exps: b.weight(
                    "ffn_down_exps",
                    In::RoutedExperts,
                    Experts,
                    &[g.expert_dim, g.n_embd, g.n_experts],
                )?,
                ffn_gate_shexp: b.weight(
                    "ffn_gate_shexp",
                    In::SharedExperts,
                    Matrix,
                    &exps[..2],
                )?,
                ffn_up_shexp: b.weight("ffn_up_shexp", In::SharedExperts, Matrix, &exps[..2])?,
                ffn_down_shexp: b.weight(
                    "ffn_down_shexp",
                    In::SharedExperts,
                    Matrix,
                    &[g.expert_dim, g.n_embd],
                )?,
                expert_clamp: g.expert_clamp[i],
                shared_clamp: g.shared_clamp[i],
            });
        }
        Ok(Network {
            token_embd,
            layers,
            output_hc: b.hyper_connection("output_hc", hc_dim, g.n_hc, 1)?,
            output_norm: b.vector("output_norm", g.n_embd)?,
            output: b.weight("output", In::Output, Matrix, &[g.n_embd, g.n_vocab])?,
            geometry: geometry.clone(),
        })
    }

    /// Binds a file's tensors to a backend, checking presence, shape, type and
    /// expert ids. `tensor` finds a tensor by name; `progress` is told bytes as they
    /// are taken.
    pub fn bind<B: Backend<Weight = W>>(
        geometry: &Geometry,
        backend: &mut B,
        tensor: &dyn Fn(&str) -> Option<Tensor>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Network<W>, WeightsError> {
        let network = Network::build(geometry, &mut |need: Requirement| {
            let tensor = need.check(tensor(&need.name), geometry)?;
            let n_bytes = tensor.data.len() as u64;
            let weight = backend.upload(&need, tensor);
            if !backend.defers_uploads() {
                progress(n_bytes);
            }
            weight.map_err(|source| WeightsError::Backend {
                name: need.name,
                source,
            })
        })?;
        backend
            .uploads_done(progress)
            .map_err(WeightsError::Moving)?;
        Ok(network)
    }
}

/// Every tensor that a model of this geometry has, in the order of the walk.
pub fn requirements(geometry: &Geometry) -> Vec<Requirement> {
    let mut all = Vec::new();
    let walk = Network::build(geometry, &mut |need| {
        all.push(need);
        Ok::<(), std::convert::Infallible>(())
    });
    match walk {
        Ok(_) => all,
        Err(never) => match never {},
    }
}

/// Checks a file's tensor table against a geometry without binding anything.
pub fn check(
    geometry: &Geometry,
    tensor: &dyn Fn(&str) -> Option<Tensor>,
) -> Result<(), WeightsError> {
    for need in requirements(geometry) {
        need.check(tensor(&need.name), geometry)?;
    }
    Ok(())
}

impl Requirement {
    /// A weight that is part of no network, for an op on its own.
    pub fn alone(role: WeightRole, tensor: &Tensor) -> Requirement {
        Requirement {
            name: tensor.name.clone(),
            ne: tensor.ne.clone(),
            role,
            component: Component::Attention,
            layer: None,
            split: Split::None,
        }
    }

    fn check(&self, found: Option<Tensor>, geometry: &Geometry) -> Result<Tensor, WeightsError> {
        let Some(tensor) = found else {
            return Err(WeightsError::Missing {
                name: self.name.clone(),
                expected: self.ne.clone(),
            });
        };
        // A vector may be written with trailing dimensions of one.
        let significant = |ne: &[u64]| {
            let mut ne = ne.to_vec();
            while ne.len() > 1 && ne.last() == Some(&1) {
                ne.pop();
            }
            ne
        };
        if significant(&tensor.ne) != significant(&self.ne) {
            return Err(WeightsError::Shape {
                name: self.name.clone(),
                found: tensor.ne.clone(),
                expected: self.ne.clone(),
            });
        }
        let is_ids = self.role == WeightRole::Ids;
        if is_ids != (tensor.ty == GgmlType::I32) {
            return Err(WeightsError::Type {
                name: self.name.clone(),
                found: tensor.ty.name(),
                expected: if is_ids {
                    "I32"
                } else {
                    "a float or quantised type"
                },
            });
        }
        if is_ids {
            let ids = tensor.data.chunks_exact(4);
            for (i, id) in ids.enumerate() {
                let id = i32::from_le_bytes([id[0], id[1], id[2], id[3]]);
                if usize::try_from(id).map_or(true, |id| id >= geometry.n_experts) {
                    return Err(WeightsError::ExpertId {
                        name: self.name.clone(),
                        found: id,
                        token: i / geometry.n_experts_used,
                        n_experts: geometry.n_experts,
                    });
                }
            }
        }
        Ok(tensor)
    }
}

/// Makes weights under a name prefix.
struct Builder<'a, W, E> {
    make: &'a mut dyn FnMut(Requirement) -> Result<W, E>,
}

/// The same inside one layer.
struct LayerBuilder<'a, W, E> {
    make: &'a mut dyn FnMut(Requirement) -> Result<W, E>,
    prefix: String,
    layer: Option<usize>,
}

impl<W, E> Builder<'_, W, E> {
    fn layer(&mut self, index: usize) -> LayerBuilder<'_, W, E> {
        LayerBuilder {
            make: self.make,
            prefix: format!("blk.{index}."),
            layer: Some(index),
        }
    }

    fn top(&mut self) -> LayerBuilder<'_, W, E> {
        LayerBuilder {
            make: self.make,
            prefix: String::new(),
            layer: None,
        }
    }

    fn weight(
        &mut self,
        name: &str,
        component: Component,
        role: WeightRole,
        ne: &[usize],
    ) -> Result<W, E> {
        self.top().weight(name, component, role, ne)
    }

    fn vector(&mut self, name: &str, n: usize) -> Result<W, E> {
        self.top().vector(name, n)
    }

    fn hyper_connection(
        &mut self,
        name: &str,
        n_in: usize,
        n_gates: usize,
        n_scales: usize,
    ) -> Result<HyperConnection<W>, E> {
        self.top().hyper_connection(name, n_in, n_gates, n_scales)
    }
}

impl<W, E> LayerBuilder<'_, W, E> {
    fn named(
        &mut self,
        name: &str,
        component: Component,
        role: WeightRole,
        ne: &[usize],
    ) -> Result<W, E> {
        let split = match (role, name) {
            (WeightRole::Experts, _) => Split::Experts,
            (_, "attn_q_b.weight" | "attn_output_a.weight") => Split::OutputRows,
            (_, "ffn_gate_shexp.weight" | "ffn_up_shexp.weight") => Split::OutputRows,
            (_, "output.weight" | "indexer.attn_q_b.weight") => Split::OutputRows,
            (_, "attn_output_b.weight" | "ffn_down_shexp.weight") => Split::InputColumns,
            _ => Split::None,
        };
        (self.make)(Requirement {
            name: format!("{}{name}", self.prefix),
            ne: ne.iter().map(|n| *n as u64).collect(),
            role,
            component,
            layer: self.layer,
            split,
        })
    }

    fn weight(
        &mut self,
        name: &str,
        component: Component,
        role: WeightRole,
        ne: &[usize],
    ) -> Result<W, E> {
        self.named(&format!("{name}.weight"), component, role, ne)
    }

    fn vector(&mut self, name: &str, n: usize) -> Result<W, E> {
        self.weight(name, Component::Norms, WeightRole::Vector, &[n])
    }

    fn hyper_connection(
        &mut self,
        name: &str,
        n_in: usize,
        n_gates: usize,
        n_scales: usize,
    ) -> Result<HyperConnection<W>, E> {
        let component = Component::HyperConnections;
        Ok(HyperConnection {
            fn_: self.weight(
                &format!("{name}_fn"),
                component,
                WeightRole::PreciseMatrix,
                &[n_in, n_gates],
            )?,
            base: self.weight(
                &format!("{name}_base"),
                component,
                WeightRole::Vector,
                &[n_gates],
            )?,
            scale: self.weight(
                &format!("{name}_scale"),
                component,
                WeightRole::Vector,
                &[n_scales],
            )?,
        })
    }

    fn compressor(
        &mut self,
        name: &str,
        kind: LayerKind,
        index: bool,
        row_dim: usize,
        n_embd: usize,
    ) -> Result<Compressor<W>, E> {
        let component = if index {
            Component::Indexers
        } else {
            Component::Compressors
        };
        let dim = kind.compressor_dim(row_dim);
        let ratio = kind.ratio().expect("a compressed layer");
        Ok(Compressor {
            kind,
            index,
            row_dim,
            kv: self.weight(
                &format!("{name}_kv"),
                component,
                WeightRole::PreciseMatrix,
                &[n_embd, dim],
            )?,
            gate: self.weight(
                &format!("{name}_gate"),
                component,
                WeightRole::PreciseMatrix,
                &[n_embd, dim],
            )?,
            ape: self.weight(
                &format!("{name}_ape"),
                component,
                WeightRole::Vector,
                &[dim, ratio],
            )?,
            norm: self.weight(
                &format!("{name}_norm"),
                component,
                WeightRole::Vector,
                &[row_dim],
            )?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flash_has_the_published_tensors() {
        let all = requirements(&Geometry::flash());
        assert_eq!(all.len(), 1328);
        let count = |suffix: &str| all.iter().filter(|r| r.name.ends_with(suffix)).count();
        for (suffix, expected) in [
            (".attn_compressor_kv.weight", 41),
            (".indexer_compressor_ape.weight", 21),
            (".indexer.attn_q_b.weight", 21),
            (".exp_probs_b.bias", 40),
            (".ffn_gate_tid2eid.weight", 3),
            (".hc_ffn_fn.weight", 43),
        ] {
            assert_eq!(count(suffix), expected, "{suffix}");
        }
        let parameters: u64 = all
            .iter()
            .filter(|r| r.role != WeightRole::Ids)
            .map(|r| r.ne.iter().product::<u64>())
            .sum();
        assert_eq!(parameters, 284_332_240_471);
    }
}
