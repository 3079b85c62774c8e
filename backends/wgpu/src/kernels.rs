//! Kernels: WGSL sources put together for one specialisation, and their pipelines.
//!
//! Lines of sources that begin with `//!` are directives. `//!include NAME` puts another source in its place;
//! `//!decode W B` binds the planes of the weight `W` at `B` and `B + 1` and defines
//! `W_decode8(row, k)` for the type the weight is stored in. `//!weight W B` binds the planes for
//! `multiply_W`, which `//!product W` defines: on 8-bit codes where the adapter multiplies integers
//! and the type is made of them, on floats otherwise; `//!product W X` does so for another input than
//! `x`. `//!half W B` binds the planes of `W` for `gemm_half`. `//!repeat M N` writes the lines up to
//! `//!end` out, `//!when C V NAME` includes a source where the constant `C` is `V`, and `//!core` is
//! the part of `gemm` for the adapter. Constants stand before the text.

use std::collections::HashMap;
use std::sync::Arc;

use ds4_formats::quant::iq2_xxs_grid;

use crate::adapter::Gpu;
use crate::played::played;
use crate::weight::Stored;

macro_rules! sources {
    ($($name:literal),* $(,)?) => {
        /// Every source by name.
        const SOURCES: &[(&str, &str)] = &[
            $(($name, include_str!(concat!("../kernels/", $name, ".wgsl"))),)*
        ];
    };
}

sources![
    "add",
    "add_pairs",
    "add_position_bias",
    "attend",
    "attend_combine",
    "attend_matrix",
    "attend_tile",
    "bf16",
    "cache_row",
    "choose",
    "compress",
    "copy_rows",
    "decode/bf16",
    "decode/f16",
    "decode/f32",
    "decode/iq2_xxs",
    "decode/mxfp4",
    "decode/q2_k",
    "decode/q4_k",
    "decode/q8_0",
    "embed",
    "experts_down",
    "experts_down_few",
    "experts_down_loop",
    "float_unit",
    "fill_random",
    "gate_up",
    "gate_up_few",
    "gemm",
    "gemm_float",
    "gemm_half",
    "gemm_matrix",
    "gemm_tile",
    "gemv",
    "gemv_out",
    "hc_gates",
    "hc_head",
    "hc_mix",
    "hc_post",
    "hc_pre",
    "half/f16",
    "half/iq2_xxs",
    "half/q2_k",
    "half/q8_0",
    "halves",
    "head_norm",
    "index_query",
    "index_round",
    "index_scores",
    "index_scores_few",
    "index_turn",
    "iq_rope_round",
    "kv_norm_rope",
    "kv_own",
    "kv_raw",
    "kv_round",
    "matmul",
    "mixing_weights",
    "order",
    "pool",
    "prepare",
    "prepare_grid",
    "product_f",
    "product_q",
    "q_norm_rope",
    "quantise",
    "quantise_block",
    "reduce",
    "rms_norm",
    "rope",
    "rounding",
    "route",
    "route_few",
    "route_hash",
    "route_top_k",
    "routes_eight",
    "routes_given",
    "routes_here",
    "routes_loop",
    "router_scores",
    "row_keys",
    "rows",
    "scan",
    "select_rows",
    "shared_down",
    "shared_loop",
    "shared_product",
    "softplus",
    "sort_pairs",
    "store_compressed",
    "store_element",
    "store_frontier",
    "store_window",
    "swiglu",
    "sync",
    "tap",
    "top_k",
    "turn_a",
    "turn_b",
    "turn_gates",
    "turn_here",
    "turn_now",
    "turn_sums",
    "unit",
    "unit/bf16",
    "unit/f16",
    "unit/f32",
    "unit/iq2_xxs",
    "unit/mxfp4",
    "unit/q2_k",
    "unit/q4_k",
    "unit/q8_0",
    "x_global",
    "x_local",
];

/// Names of the kernels, without the parts they include.
pub fn kernel_names() -> impl Iterator<Item = &'static str> {
    SOURCES
        .iter()
        .filter(|(_, text)| text.contains("fn main("))
        .map(|(name, _)| *name)
}

/// Binding of the grid of IQ2_XXS, where a kernel decodes that type.
pub(crate) const GRID_BINDING: u32 = 15;

/// First binding of the buffers that a dispatch waits for on behalf of those that follow it.
pub(crate) const FENCE_BINDING: u32 = 24;

/// Which specialisation of a kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Specialisation {
    /// The kernel's name.
    pub kernel: &'static str,
    /// Its constants: name and WGSL value.
    pub constants: Vec<(&'static str, Constant)>,
    /// The types its weights are stored in.
    pub types: Vec<(&'static str, Stored)>,
    /// Whether products are those of 8-bit codes.
    pub integer: bool,
}

/// The value of a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Constant {
    /// `u32`.
    Number(u32),
    /// `bool`.
    Flag(bool),
}

impl From<usize> for Constant {
    fn from(n: usize) -> Constant {
        Constant::Number(n as u32)
    }
}

impl From<bool> for Constant {
    fn from(flag: bool) -> Constant {
        Constant::Flag(flag)
    }
}

impl Specialisation {
    /// A kernel without constants or weights.
    pub fn of(kernel: &'static str) -> Specialisation {
        Specialisation {
            kernel,
            ..Specialisation::default()
        }
    }

    /// The kernel and the types of its weights.
    pub fn name(&self) -> String {
        let mut name = self.kernel.to_owned();
        for (_, stored) in &self.types {
            name += &format!(" {stored:?}");
        }
        if self.integer {
            name += " int8";
        }
        name
    }

    /// With a constant.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Constant>) -> Specialisation {
        self.constants.push((name, value.into()));
        self
    }

    /// With the type of a weight.
    #[must_use]
    pub fn decoding(mut self, weight: &'static str, stored: Stored) -> Specialisation {
        self.types.push((weight, stored));
        self
    }

    /// With another value of a constant that it has.
    pub(crate) fn set(&mut self, name: &str, value: impl Into<Constant>) {
        if let Some((_, there)) = self.constants.iter_mut().find(|(there, _)| *there == name) {
            *there = value.into();
        }
    }

    /// For a dispatch that is bound to this many buffers for those that follow it.
    #[must_use]
    pub(crate) fn fenced(self, n: usize) -> Specialisation {
        self.with("FENCES", n)
    }

    /// With products of 8-bit codes.
    #[must_use]
    pub fn integer(mut self, integer: bool) -> Specialisation {
        self.integer = integer;
        self
    }

    /// The WGSL text.
    ///
    /// # Panics
    /// When a directive names no source or no weight: an error of the kernel's author.
    pub fn source(&self) -> String {
        let mut text = String::new();
        if self.number("MATRIX").is_some_and(|size| size > 0) {
            text += "enable f16;\nenable wgpu_cooperative_matrix;\n";
        } else if find(self.kernel).contains("vec4<f16>") {
            text += "enable f16;\n";
        }
        for (name, value) in &self.constants {
            text += &match value {
                Constant::Number(n) => format!("const {name}: u32 = {n}u;\n"),
                Constant::Flag(flag) => format!("const {name}: bool = {flag};\n"),
            };
        }
        if !self.types.is_empty() && !find(self.kernel).contains("//!weight") {
            text += "struct W8 { a: vec4<f32>, b: vec4<f32> }\n";
        }
        if self.types.iter().any(|(_, ty)| *ty == Stored::Iq2Xxs) {
            text += &format!(
                "@group(0) @binding({GRID_BINDING}) var<storage, read> iq2_xxs_grid: array<u32>;\n"
            );
        }
        self.append(self.kernel, &mut text);
        text
    }

    fn stored(&self, weight: &str) -> Stored {
        self.types
            .iter()
            .find(|(name, _)| *name == weight)
            .expect("the weight's type")
            .1
    }

    /// The planes of a weight for `multiply`.
    fn weight(&self, weight: &str, binding: u32, text: &mut String) {
        if !text.contains("alias X = ") {
            *text += if self.integer {
                "alias X = u32;\nconst X_LEN: u32 = 16u;\n"
            } else {
                "alias X = f32;\nconst X_LEN: u32 = 4u;\n"
            };
        }
        let wide = self.integer || self.stored(weight).is_float();
        let (name, element) = if wide {
            ("q4", "vec4<u32>")
        } else {
            ("q", "u32")
        };
        for (at, plane, element) in [(binding, name, element), (binding + 1, "s", "u32")] {
            *text += &format!(
                "@group(0) @binding({at}) var<storage, read> {weight}_{plane}: array<{element}>;\n"
            );
        }
    }

    /// `multiply` of a weight, and once for all of them `prepare`.
    fn product(&self, weight: &str, x: &str, text: &mut String) {
        let stored = self.stored(weight);
        if !text.contains("fn prepare(") {
            let has_grid = self.types.iter().any(|(_, ty)| *ty == Stored::Iq2Xxs);
            self.append(if self.integer { "unit" } else { "float_unit" }, text);
            self.append(
                if self.integer && has_grid {
                    "prepare_grid"
                } else {
                    "prepare"
                },
                text,
            );
        }
        let (unit, product) = match (self.integer, stored.is_float()) {
            (true, _) => (stored.source("unit"), "product_q"),
            (false, true) => (stored.source("unit"), "product_f"),
            (false, false) => (stored.source("decode"), "product_f"),
        };
        if !self.integer {
            *text += &format!("const {weight}_UNIT: u32 = 8u;\n");
        }
        for name in [unit.as_str(), product] {
            *text += &find(name).replace("@W@", weight).replace("@X@", x);
        }
    }

    /// The planes of a weight for `gemm_half`, and once for all of them how codes become halves.
    fn half(&self, weight: &str, binding: u32, text: &mut String) {
        for (at, plane, element) in [(binding, "q4", "vec4<u32>"), (binding + 1, "s", "u32")] {
            *text += &format!(
                "@group(0) @binding({at}) var<storage, read> {weight}_{plane}: array<{element}>;\n"
            );
        }
        let source = find(&self.stored(weight).source("half"));
        let (raw, rest) = source.split_once("//!rest\n").expect("two parts");
        *text += &raw.replace("@W@", weight);
        if !text.contains("fn put(") {
            *text += rest;
        }
    }

    pub(crate) fn number(&self, name: &str) -> Option<u32> {
        let found = self.constants.iter().find(|(found, _)| *found == name)?;
        match found.1 {
            Constant::Number(n) => Some(n),
            Constant::Flag(_) => None,
        }
    }

    fn is(&self, name: &str, value: &str) -> bool {
        self.constants.iter().any(|(found, constant)| {
            *found == name
                && match constant {
                    Constant::Number(n) => value.parse() == Ok(*n),
                    Constant::Flag(flag) => value.parse() == Ok(*flag),
                }
        })
    }

    /// The part of `gemm` that multiplies.
    fn core(&self, text: &mut String) {
        let size = self.number("MATRIX").expect("the size of matrices");
        if size == 0 {
            return self.append("gemm_float", text);
        }
        *text += &format!("const SIZE: u32 = {size}u;\n");
        for (alias, element, role) in [
            ("Left", "f16", "A"),
            ("Right", "f16", "B"),
            ("Sum", "f32", "C"),
        ] {
            *text += &format!("alias {alias} = coop_mat{size}x{size}<{element}, {role}>;\n");
        }
        self.append("gemm_matrix", text);
    }

    /// Lines once for every pair of indices below the two counts, which are constants' names or
    /// numbers: `@I@` becomes the number of the pair, `@A@` and `@B@` the indices, `@STORES@` the
    /// stores of the matrices that make 16 rows of weights and 16 of x.
    fn repeat(&self, counts: &str, body: &[&str], text: &mut String) {
        let count = |name: &str| match name.parse() {
            Ok(n) => n,
            Err(_) => self.number(name).expect("a count"),
        };
        let (first, second) = counts.split_once(' ').expect("two counts");
        let (first, second) = (count(first), count(second));
        for a in 0..first {
            for b in 0..second {
                for line in body {
                    let line = if line.contains("@STORES@") {
                        self.stores(a, b, a * second + b)
                    } else {
                        line.replace("@I@", &(a * second + b).to_string())
                            .replace("@A@", &a.to_string())
                            .replace("@B@", &b.to_string())
                    };
                    *text += &line;
                    *text += "\n";
                }
            }
        }
    }

    fn stores(&self, a: u32, b: u32, number: u32) -> String {
        let (size, n_tiles) = (self.number("MATRIX"), self.number("N_TILES"));
        let (size, n_tiles) = (size.expect("a size"), n_tiles.expect("a count"));
        let each = 16 / size;
        let mut lines = String::new();
        for i in 0..each {
            for j in 0..each {
                let sum = (a * each + i) * n_tiles + b * each + j;
                let at = j * size * 16 + i * size;
                lines += &format!(
                    "    coopStore(sum{sum}, &stage[before{number} + sub * 256u + {at}u], 16u);\n"
                );
            }
        }
        lines
    }

    fn append(&self, name: &str, text: &mut String) {
        let mut repeated: Option<(&str, Vec<&str>)> = None;
        for line in find(name).lines() {
            if let Some((counts, body)) = &mut repeated {
                if line == "//!end" {
                    self.repeat(counts, body, text);
                    repeated = None;
                } else {
                    body.push(line);
                }
                continue;
            }
            if let Some(counts) = line.strip_prefix("//!repeat ") {
                repeated = Some((counts, Vec::new()));
            } else if line == "//!core" {
                self.core(text);
            } else if let Some(included) = line.strip_prefix("//!include ") {
                self.append(included, text);
            } else if let Some(arguments) = line.strip_prefix("//!decode ") {
                let (weight, binding) = arguments.split_once(' ').expect("a weight and a binding");
                let binding: u32 = binding.parse().expect("a number");
                let stored = self.stored(weight);
                for (at, plane) in [(binding, "q"), (binding + 1, "s")] {
                    *text += &format!(
                        "@group(0) @binding({at}) var<storage, read> {weight}_{plane}: array<u32>;\n"
                    );
                }
                *text += &find(&stored.source("decode")).replace("@W@", weight);
            } else if let Some(arguments) = line.strip_prefix("//!weight ") {
                let (weight, binding) = arguments.split_once(' ').expect("a weight and a binding");
                self.weight(weight, binding.parse().expect("a number"), text);
            } else if let Some(arguments) = line.strip_prefix("//!half ") {
                let (weight, binding) = arguments.split_once(' ').expect("a weight and a binding");
                self.half(weight, binding.parse().expect("a number"), text);
            } else if let Some(arguments) = line.strip_prefix("//!when ") {
                let (constant, rest) = arguments.split_once(' ').expect("a constant");
                let (value, name) = rest.split_once(' ').expect("a value and a source");
                if self.is(constant, value) {
                    self.append(name, text);
                }
            } else if let Some(arguments) = line.strip_prefix("//!product ") {
                let (weight, x) = arguments.split_once(' ').unwrap_or((arguments, "x"));
                self.product(weight, x, text);
            } else {
                *text += line;
                *text += "\n";
            }
        }
    }
}

fn find(name: &str) -> &'static str {
    SOURCES
        .iter()
        .find(|(found, _)| *found == name)
        .unwrap_or_else(|| panic!("no kernel source named {name}"))
        .1
}

/// A compiled kernel.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) layout: wgpu::BindGroupLayout,
    pub(crate) grid: Option<wgpu::Buffer>,
    /// Bindings that are written.
    pub(crate) written: Vec<u32>,
    /// Number for keys of bind groups.
    pub(crate) id: usize,
}

/// Pipelines, each made once for a device.
pub(crate) struct Kernels {
    compiled: HashMap<Specialisation, Arc<Kernel>>,
    grid: wgpu::Buffer,
}

impl Kernels {
    pub(crate) fn new(device: &wgpu::Device) -> Kernels {
        let bytes: Vec<u8> = iq2_xxs_grid().iter().flatten().copied().collect();
        let grid = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("iq2_xxs grid"),
            size: bytes.len() as u64,
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: true,
        });
        if let Ok(mut mapped) = grid.slice(..).get_mapped_range_mut() {
            mapped.copy_from_slice(&bytes);
        }
        grid.unmap();
        Kernels {
            compiled: HashMap::new(),
            grid,
        }
    }

    /// The pipeline of a specialisation.
    pub(crate) fn kernel(&mut self, gpu: &Gpu, what: &Specialisation) -> Arc<Kernel> {
        if let Some(kernel) = self.compiled.get(what) {
            return Arc::clone(kernel);
        }
        let kernel = Arc::new(compile(gpu, what, self.compiled.len(), &self.grid));
        self.compiled.insert(what.clone(), Arc::clone(&kernel));
        kernel
    }

    /// Every specialisation compiled so far.
    pub(crate) fn specialisations(&self) -> Vec<Specialisation> {
        let mut all: Vec<Specialisation> = self.compiled.keys().cloned().collect();
        all.sort();
        all
    }
}

/// Bindings of a source: number and whether it is written.
pub(crate) fn bindings(source: &str) -> Vec<(u32, bool)> {
    let mut found = Vec::new();
    for line in source.lines() {
        let Some(rest) = line.trim().strip_prefix("@group(0) @binding(") else {
            continue;
        };
        let Some((number, rest)) = rest.split_once(')') else {
            continue;
        };
        let number = number.parse().expect("a binding's number");
        found.push((number, rest.contains("read_write")));
    }
    found.sort_unstable();
    found
}

/// Bytes of the struct `P` of immediates: its members are words.
pub(crate) fn immediate_bytes(source: &str) -> u32 {
    source
        .lines()
        .find(|line| line.starts_with("struct P {"))
        .map_or(0, |line| 4 * line.matches(':').count() as u32)
}

fn compile(gpu: &Gpu, what: &Specialisation, id: usize, grid: &wgpu::Buffer) -> Kernel {
    let device = &gpu.device;
    let source = match gpu.capabilities.played {
        true => played(&what.source()),
        false => what.source(),
    };
    let checks = if gpu.checked {
        wgpu::ShaderRuntimeChecks::checked()
    } else {
        wgpu::ShaderRuntimeChecks::unchecked()
    };
    // SAFETY: every index is below the shape that the host asserts when it records the op, no loop
    // is endless, and nothing is divided by zero; the conformance suite runs checked as well.
    let module = unsafe {
        device.create_shader_module_trusted(
            wgpu::ShaderModuleDescriptor {
                label: Some(what.kernel),
                source: wgpu::ShaderSource::Wgsl(source.as_str().into()),
            },
            checks,
        )
    };
    let mut found = bindings(&source);
    // A step of a recording that was made before is bound as it was, so that the number is part of
    // the specialisation.
    let n_fences = what.number("FENCES").unwrap_or(0);
    found.extend((0..n_fences).map(|i| (FENCE_BINDING + i, false)));
    let entries: Vec<wgpu::BindGroupLayoutEntry> = found
        .iter()
        .map(|(binding, written)| wgpu::BindGroupLayoutEntry {
            binding: *binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage {
                    read_only: !written,
                },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        })
        .collect();
    let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
        label: Some(what.kernel),
        entries: &entries,
    });
    let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: Some(what.kernel),
        bind_group_layouts: &[Some(&layout)],
        immediate_size: immediate_bytes(&source),
    });
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(what.kernel),
        layout: Some(&pipeline_layout),
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions {
            constants: &[],
            // Every kernel writes what it reads there.
            zero_initialize_workgroup_memory: false,
        },
        cache: None,
    });
    Kernel {
        pipeline,
        layout,
        grid: found
            .iter()
            .any(|(binding, _)| *binding == GRID_BINDING)
            .then(|| grid.clone()),
        written: found
            .iter()
            .filter_map(|(binding, written)| written.then_some(*binding))
            .collect(),
        id,
    }
}
