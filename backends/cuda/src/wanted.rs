//! The units that a model will run on, loaded with its weights: a compiler that is missing is missed
//! when the model is opened, and not in its first step.

use std::collections::{BTreeSet, HashMap};

use ds4_model::{BackendError, Requirement, WeightRole};

use crate::backend::CudaBackend;
use crate::decode;
use crate::error;
use crate::kernels::{PLAIN_UNITS, PREFILL_UNITS, Unit};

/// What the weights of a model need.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    units: BTreeSet<Unit>,
    /// Codes of gate matrices whose up matrices are still to come, by the name without its layer.
    gates: HashMap<&'static str, i64>,
    /// Whether these are the weights of a whole model.
    is_model: bool,
}

impl Wanted {
    /// Takes note of a weight; `code` is what kernels call its type.
    pub(crate) fn see_weight(&mut self, need: &Requirement, code: i64) {
        const GATED: [[&str; 2]; 2] = [
            ["ffn_gate_exps.weight", "ffn_up_exps.weight"],
            ["ffn_gate_shexp.weight", "ffn_up_shexp.weight"],
        ];
        for [gate, up] in GATED {
            if need.name.ends_with(gate) {
                self.gates.insert(gate, code);
            } else if need.name.ends_with(up)
                && let Some(of_gate) = self.gates.remove(gate)
            {
                let unit = Unit::new("experts_gate_up.cu").define("TYPE", of_gate);
                self.units.insert(unit.define("TYPE_UP", code));
            }
        }
        let file = match need.role {
            WeightRole::Matrix | WeightRole::PreciseMatrix => "matmul.cu",
            WeightRole::Embedding => "embed.cu",
            WeightRole::Experts if need.name.ends_with("ffn_down_exps.weight") => "experts_down.cu",
            WeightRole::Experts | WeightRole::Vector | WeightRole::Ids => return,
        };
        self.is_model |= need.role == WeightRole::Embedding;
        self.units.insert(Unit::new(file).define("TYPE", code));
    }
}

impl CudaBackend {
    /// Loads what the weights uploaded so far need, if they are a model's.
    pub(crate) fn load_wanted(&mut self) -> Result<(), BackendError> {
        let wanted = std::mem::take(&mut self.wanted);
        if !wanted.is_model {
            return Ok(());
        }
        let mut units: Vec<Unit> = wanted.units.into_iter().collect();
        units.extend(PLAIN_UNITS.map(Unit::new));
        if self.is_fast() {
            units.extend(PREFILL_UNITS.map(Unit::new));
        }
        if self.runs_steps() {
            units.push(decode::decode_unit(self.geometry.n_vocab));
        }
        for unit in &units {
            self.kernels.load(unit).map_err(error::kernel)?;
        }
        Ok(())
    }
}
