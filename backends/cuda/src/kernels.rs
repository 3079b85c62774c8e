//! Kernels: their sources, which are in the program, and their machine code, which is in the
//! program, in a folder of earlier compilations, or made by NVRTC.
//!
//! A *unit* is one source file with a set of defines, compiled for one architecture. Its key, a hash
//! of everything it is made from, is its name wherever its machine code is kept.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::Arc;

use cudarc::nvrtc::sys as nvrtc;
use ds4_formats::{GgmlType, quant};

use crate::driver::{Context, DriverError, Kernel, Module};
use crate::weight::Layout;

/// Sources by the name that `#include` uses.
const SOURCES: &[(&str, &str)] = &[
    ("common.cuh", include_str!("../kernels/common.cuh")),
    ("blocks.cuh", include_str!("../kernels/blocks.cuh")),
    ("geometry.cuh", include_str!("../kernels/geometry.cuh")),
    ("iq2_grid.cuh", include_str!("../kernels/iq2_grid.cuh")),
    ("layout.cuh", include_str!("../kernels/layout.cuh")),
    ("repack.cu", include_str!("../kernels/repack.cu")),
    (
        "decode/attend.cuh",
        include_str!("../kernels/decode/attend.cuh"),
    ),
    (
        "decode/block.cuh",
        include_str!("../kernels/decode/block.cuh"),
    ),
    (
        "decode/dense.cuh",
        include_str!("../kernels/decode/dense.cuh"),
    ),
    (
        "decode/exchange.cuh",
        include_str!("../kernels/decode/exchange.cuh"),
    ),
    (
        "decode/experts.cuh",
        include_str!("../kernels/decode/experts.cuh"),
    ),
    (
        "decode/hyper.cuh",
        include_str!("../kernels/decode/hyper.cuh"),
    ),
    (
        "decode/prim.cuh",
        include_str!("../kernels/decode/prim.cuh"),
    ),
    (
        "decode/service.cuh",
        include_str!("../kernels/decode/service.cuh"),
    ),
    ("decode/step.cu", include_str!("../kernels/decode/step.cu")),
    ("decode/step.h", include_str!("../kernels/decode/step.h")),
    (
        "decode/stream.cuh",
        include_str!("../kernels/decode/stream.cuh"),
    ),
    (
        "prefill/attend.cu",
        include_str!("../kernels/prefill/attend.cu"),
    ),
    (
        "prefill/compress.cu",
        include_str!("../kernels/prefill/compress.cu"),
    ),
    (
        "prefill/device.cuh",
        include_str!("../kernels/prefill/device.cuh"),
    ),
    (
        "prefill/experts.cu",
        include_str!("../kernels/prefill/experts.cu"),
    ),
    (
        "prefill/experts.cuh",
        include_str!("../kernels/prefill/experts.cuh"),
    ),
    (
        "prefill/experts_few.cu",
        include_str!("../kernels/prefill/experts_few.cu"),
    ),
    (
        "prefill/experts_wgmma.cu",
        include_str!("../kernels/prefill/experts_wgmma.cu"),
    ),
    (
        "prefill/gemm.cu",
        include_str!("../kernels/prefill/gemm.cu"),
    ),
    ("prefill/hc.cu", include_str!("../kernels/prefill/hc.cu")),
    (
        "prefill/index.cu",
        include_str!("../kernels/prefill/index.cu"),
    ),
    (
        "prefill/matrix.cu",
        include_str!("../kernels/prefill/matrix.cu"),
    ),
    (
        "prefill/prefill.h",
        include_str!("../kernels/prefill/prefill.h"),
    ),
    (
        "prefill/rounding.cuh",
        include_str!("../kernels/prefill/rounding.cuh"),
    ),
    (
        "prefill/rows.cu",
        include_str!("../kernels/prefill/rows.cu"),
    ),
    (
        "prefill/wgmma.cuh",
        include_str!("../kernels/prefill/wgmma.cuh"),
    ),
    // What NVRTC lacks of the two headers that device and host share.
    ("stddef.h", STDDEF),
    ("stdint.h", STDINT),
    ("attend.cu", include_str!("../kernels/plain/attend.cu")),
    ("caches.cu", include_str!("../kernels/plain/caches.cu")),
    ("embed.cu", include_str!("../kernels/plain/embed.cu")),
    (
        "experts_down.cu",
        include_str!("../kernels/plain/experts_down.cu"),
    ),
    (
        "experts_gate_up.cu",
        include_str!("../kernels/plain/experts_gate_up.cu"),
    ),
    ("index.cu", include_str!("../kernels/plain/index.cu")),
    ("matmul.cu", include_str!("../kernels/plain/matmul.cu")),
    ("routes.cu", include_str!("../kernels/plain/routes.cu")),
    ("rows.cu", include_str!("../kernels/plain/rows.cu")),
    ("streams.cu", include_str!("../kernels/plain/streams.cu")),
];

const STDDEF: &str = "#pragma once\ntypedef decltype(sizeof(0)) size_t;\n";
const STDINT: &str = "#pragma once\n\
    typedef signed char int8_t; typedef unsigned char uint8_t;\n\
    typedef short int16_t; typedef unsigned short uint16_t;\n\
    typedef int int32_t; typedef unsigned int uint32_t;\n\
    typedef long long int64_t; typedef unsigned long long uint64_t;\n";

/// Version of the machine code's surroundings: what is not in a source but changes what it means.
const FORMAT: &str = "ds4-cuda 1";

/// The form that the driver of any device compiles itself.
const PORTABLE: &str = "compute_80";

/// First bytes of a file of machine code.
const MAGIC: &[u8; 8] = b"DS4CUBN1";

/// Machine code that was compiled ahead of time, by key; see `build.rs`.
mod embedded {
    include!(concat!(env!("OUT_DIR"), "/embedded.rs"));
}

/// Why a kernel is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// There is no machine code and no compiler.
    #[error(
        "no machine code of {unit} for {architecture} is in this program, and NVRTC (libnvrtc, part of the CUDA toolkit) was not found to compile it"
    )]
    NoCompiler {
        /// The unit.
        unit: String,
        /// Such as `sm_90a`.
        architecture: String,
    },
    /// The compiler refused a unit.
    #[error("NVRTC cannot compile {unit} for {architecture}: {log}")]
    Compile {
        /// The unit.
        unit: String,
        /// Such as `sm_90a`.
        architecture: String,
        /// What it said.
        log: String,
    },
    /// A call of the driver failed.
    #[error(transparent)]
    Driver(#[from] DriverError),
}

/// A source file with its defines.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Unit {
    /// File name, such as `matmul.cu`.
    pub file: &'static str,
    /// Names and values, in order.
    pub defines: Vec<(&'static str, i64)>,
}

impl Unit {
    /// A unit without defines.
    pub fn new(file: &'static str) -> Unit {
        Unit {
            file,
            defines: Vec::new(),
        }
    }

    /// Adds a define.
    pub fn define(mut self, name: &'static str, value: i64) -> Unit {
        self.defines.push((name, value));
        self
    }

    /// What its folder's sources may call another source in `#include`: from their folder, and from
    /// the root of all. Empty for one that they cannot include.
    fn included(&self, name: &str) -> Vec<String> {
        let folder = self.file.rsplit_once('/').map_or("", |(folder, _)| folder);
        if name.ends_with(".cu") {
            return Vec::new();
        }
        match name.rsplit_once('/') {
            Some((other, base)) if other == folder => vec![base.to_owned(), name.to_owned()],
            Some(_) => Vec::new(),
            None if folder.is_empty() || name.starts_with("std") => vec![name.to_owned()],
            None => vec![format!("../{name}"), name.to_owned()],
        }
    }

    /// Whether it can be compiled for an architecture: some use instructions of one.
    pub fn runs_on(&self, architecture: &str) -> bool {
        // The decode step has instructions of Hopper.
        self.file != "decode/step.cu" || architecture == "sm_90a"
    }

    /// Its file and defines, for people.
    pub fn name(&self) -> String {
        let mut name = self.file.to_owned();
        for (define, value) in &self.defines {
            name += &format!(" {define}={value}");
        }
        name
    }

    /// The hash of all it is made from, and the architecture: the name of its machine code.
    pub fn key(&self, architecture: &str) -> String {
        let mut hash = blake3::Hasher::new();
        let mut add = |part: &str| {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        };
        add(FORMAT);
        add(architecture);
        add(&self.name());
        for (name, text) in sources() {
            if name == self.file || !self.included(name).is_empty() {
                add(name);
                add(&text);
            }
        }
        let stem = self.file.trim_end_matches(".cu").replace('/', "-");
        format!("{stem}-{architecture}-{}", &hash.finalize().to_hex()[..24])
    }
}

/// Units of every model whatever its weights are.
pub(crate) const PLAIN_UNITS: [&str; 6] = [
    "attend.cu",
    "caches.cu",
    "index.cu",
    "routes.cu",
    "rows.cu",
    "streams.cu",
];

/// Units of large steps of the published geometry.
pub(crate) const PREFILL_UNITS: [&str; 10] = [
    "prefill/attend.cu",
    "prefill/compress.cu",
    "prefill/experts.cu",
    "prefill/experts_few.cu",
    "prefill/experts_wgmma.cu",
    "prefill/gemm.cu",
    "prefill/hc.cu",
    "prefill/index.cu",
    "prefill/matrix.cu",
    "prefill/rows.cu",
];

/// Units that the published geometry and the published mixtures of weight types use: what a release
/// has machine code for.
pub fn flash_units() -> Vec<Unit> {
    let mut units = PLAIN_UNITS.map(Unit::new).to_vec();
    units.extend(PREFILL_UNITS.map(Unit::new));
    units.extend(["decode/step.cu", "repack.cu"].map(Unit::new));
    let code = |layout: Layout, ty: GgmlType| layout.code(ty);
    let (q8, q4) = (GgmlType::Q8_0, GgmlType::Q4_K);
    let q8_layout = code(Layout::Q8, q8);
    for ty in [
        code(Layout::Raw, GgmlType::F16),
        code(Layout::Hc, GgmlType::F16),
        q8_layout,
    ] {
        units.push(Unit::new("matmul.cu").define("TYPE", ty));
    }
    units.push(Unit::new("embed.cu").define("TYPE", code(Layout::Raw, GgmlType::F16)));
    let q4 = code(Layout::Raw, q4);
    let pairs = [
        (q8_layout, q8_layout),
        (q4, q4),
        (
            code(Layout::Iq2Gate, GgmlType::IQ2_XXS),
            code(Layout::Iq2Up, GgmlType::IQ2_XXS),
        ),
    ];
    for (gate, up) in pairs {
        let unit = Unit::new("experts_gate_up.cu").define("TYPE", gate);
        units.push(unit.define("TYPE_UP", up));
    }
    for ty in [code(Layout::Q2k, GgmlType::Q2_K), q4] {
        units.push(Unit::new("experts_down.cu").define("TYPE", ty));
    }
    units
}

/// Every source with its name: those of the folder and the generated grids.
pub fn sources() -> impl Iterator<Item = (&'static str, String)> {
    SOURCES
        .iter()
        .map(|(name, text)| (*name, (*text).to_owned()))
        .chain([("grids.cuh", grids())])
}

/// The grids of `ds4_formats::quant` as constants of the device.
fn grids() -> String {
    fn words<const N: usize>(name: &str, ty: &str, rows: &[[u8; N]]) -> String {
        let mut text = format!("__device__ const {ty} {name}[{}] = {{", rows.len());
        for row in rows {
            let word = row.iter().rev().fold(0u64, |w, b| w << 8 | u64::from(*b));
            text += &format!("0x{word:x}{},", if N == 8 { "ull" } else { "u" });
        }
        text + "};\n"
    }
    let iq1: Vec<[u8; 8]> = quant::iq1_grid()
        .iter()
        .map(|row| row.map(|v| v as u8))
        .collect();
    let levels = |name: &str, values: &[i8]| {
        format!(
            "__device__ const i8 {name}[{}] = {{{}}};\n",
            values.len(),
            values
                .iter()
                .map(i8::to_string)
                .collect::<Vec<_>>()
                .join(",")
        )
    };
    [
        "// The codebooks of the IQ types, eight or four values a word; made from ds4_formats.\n#pragma once\n#include \"common.cuh\"\n".to_owned(),
        words("GRID_IQ2_XXS", "u64", quant::iq2_xxs_grid()),
        words("GRID_IQ2_XS", "u64", quant::iq2_xs_grid()),
        words("GRID_IQ2_S", "u64", quant::iq2_s_grid()),
        words("GRID_IQ3_XXS", "u32", quant::iq3_xxs_grid()),
        words("GRID_IQ3_S", "u32", quant::iq3_s_grid()),
        words("GRID_IQ1", "u64", &iq1),
        levels("IQ4_LEVELS", &quant::IQ4_LEVELS),
        levels("MXFP4_DOUBLED", &quant::MXFP4_DOUBLED),
    ]
    .concat()
}

/// The architecture whose machine code runs on a device of this capability. The three with an `a`
/// have instructions of their own that the kernels use.
pub fn architecture(major: u32, minor: u32) -> String {
    match (major, minor) {
        (9, 0) | (10, 0) | (12, 0) | (12, 1) => format!("sm_{major}{minor}a"),
        _ => format!("sm_{major}{minor}"),
    }
}

/// The modules of a device, by unit.
#[derive(Debug)]
pub(crate) struct Kernels {
    context: Arc<Context>,
    architecture: String,
    /// Where machine code is kept between runs.
    folder: Option<PathBuf>,
    modules: HashMap<Unit, Loaded>,
    n_compiled: usize,
}

#[derive(Debug)]
struct Loaded {
    kernels: HashMap<&'static str, Arc<Kernel>>,
    module: Module,
}

impl Kernels {
    pub(crate) fn new(context: &Arc<Context>, folder: Option<PathBuf>) -> Kernels {
        Kernels {
            architecture: architecture(context.facts.major, context.facts.minor),
            context: context.clone(),
            folder,
            modules: HashMap::new(),
            n_compiled: 0,
        }
    }

    /// Units that the compiler was asked for.
    pub(crate) fn n_compiled(&self) -> usize {
        self.n_compiled
    }

    /// A kernel of a unit, which is loaded when it is first asked for.
    pub(crate) fn get(
        &mut self,
        unit: &Unit,
        name: &'static str,
    ) -> Result<Arc<Kernel>, KernelError> {
        self.load(unit)?;
        let loaded = self.modules.get_mut(unit).expect("just loaded");
        kernel_of(loaded, name)
    }

    /// Loads a unit, so that a compiler that is missing is missed now.
    pub(crate) fn load(&mut self, unit: &Unit) -> Result<(), KernelError> {
        if self.modules.contains_key(unit) {
            return Ok(());
        }
        let image = self.image(unit)?;
        let module = Module::new(&self.context, &image, &unit.name())?;
        let kernels = HashMap::new();
        let loaded = Loaded { kernels, module };
        self.modules.insert(unit.clone(), loaded);
        Ok(())
    }

    fn image(&mut self, unit: &Unit) -> Result<Vec<u8>, KernelError> {
        let key = unit.key(&self.architecture);
        if let Some((_, image)) = embedded::CUBINS.iter().find(|(name, _)| *name == key) {
            return Ok(image.to_vec());
        }
        let path = self
            .folder
            .as_ref()
            .map(|folder| folder.join(format!("{key}.cubin")));
        if let Some(image) = path.as_deref().and_then(read_image) {
            return Ok(image);
        }
        let image = match compile(unit, &self.architecture) {
            Ok(image) => image,
            Err(error) => {
                let key = unit.key(PORTABLE);
                let portable = embedded::CUBINS.iter().find(|(name, _)| *name == key);
                return portable.map(|(_, image)| image.to_vec()).ok_or(error);
            }
        };
        self.n_compiled += 1;
        if let Some(path) = path {
            // The next run compiles again when this one cannot keep it.
            let _ = write_image(&path, &image);
        }
        Ok(image)
    }
}

fn kernel_of(loaded: &mut Loaded, name: &'static str) -> Result<Arc<Kernel>, KernelError> {
    if let Some(kernel) = loaded.kernels.get(name) {
        return Ok(kernel.clone());
    }
    let kernel = Arc::new(loaded.module.kernel(name)?);
    loaded.kernels.insert(name, kernel.clone());
    Ok(kernel)
}

/// A file of machine code: [`MAGIC`], the BLAKE3 of the rest (32 bytes), the image. `None` when it
/// is not there or damaged.
fn read_image(path: &Path) -> Option<Vec<u8>> {
    let bytes = std::fs::read(path).ok()?;
    let rest = bytes.strip_prefix(MAGIC)?;
    let (hash, image) = rest.split_at_checked(32)?;
    (blake3::hash(image).as_bytes() == hash).then(|| image.to_vec())
}

/// Writes a file of machine code under another name first, so that nobody reads half of it.
fn write_image(path: &Path, image: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let part = path.with_extension(format!("part-{}", std::process::id()));
    std::fs::write(
        &part,
        [MAGIC, blake3::hash(image).as_bytes().as_slice(), image].concat(),
    )?;
    std::fs::rename(&part, path)
}

fn compile(unit: &Unit, architecture: &str) -> Result<Vec<u8>, KernelError> {
    // SAFETY: loads the library by its usual names, and its initialisers are NVIDIA's.
    if !unsafe { nvrtc::is_culib_present() } {
        return Err(KernelError::NoCompiler {
            unit: unit.name(),
            architecture: architecture.to_owned(),
        });
    }
    let failed = |log: String| KernelError::Compile {
        unit: unit.name(),
        architecture: architecture.to_owned(),
        log,
    };
    let c = |text: &str| CString::new(text).expect("sources and options have no zeros");
    let mut main = None;
    let mut headers = Vec::new();
    let mut names = Vec::new();
    for (name, text) in sources() {
        if name == unit.file {
            main = Some(c(&text));
        } else {
            for name in unit.included(name) {
                names.push(c(&name));
                headers.push(c(&text));
            }
        }
    }
    let main = main.ok_or_else(|| failed("there is no such source".to_owned()))?;
    let mut options = vec![
        c(&format!("--gpu-architecture={architecture}")),
        c("-std=c++17"),
        c("--device-as-default-execution-space"),
    ];
    for (name, value) in &unit.defines {
        options.push(c(&format!("-D{name}={value}")));
    }
    let pointers = |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
    let (header_texts, header_names) = (pointers(&headers), pointers(&names));
    let option_texts = pointers(&options);
    let file = c(unit.file);
    let ok = nvrtc::nvrtcResult::NVRTC_SUCCESS;
    let mut program = ptr::null_mut();
    // SAFETY: all strings end with zeros and live to the end of the function, the counts are
    // theirs, sizes are asked for before buffers are filled, and the program is destroyed once.
    unsafe {
        let created = nvrtc::nvrtcCreateProgram(
            &mut program,
            main.as_ptr(),
            file.as_ptr(),
            headers.len() as i32,
            header_texts.as_ptr(),
            header_names.as_ptr(),
        );
        if created != ok {
            return Err(failed(format!("{created:?}")));
        }
        let compiled =
            nvrtc::nvrtcCompileProgram(program, options.len() as i32, option_texts.as_ptr());
        let mut result = Err(failed(format!("{compiled:?}")));
        let mut size = 0;
        if compiled == ok {
            if nvrtc::nvrtcGetCUBINSize(program, &mut size) == ok && size > 0 {
                let mut image = vec![0u8; size];
                if nvrtc::nvrtcGetCUBIN(program, image.as_mut_ptr().cast()) == ok {
                    result = Ok(image);
                }
            }
        } else if nvrtc::nvrtcGetProgramLogSize(program, &mut size) == ok && size > 0 {
            let mut log = vec![0u8; size + 1];
            if nvrtc::nvrtcGetProgramLog(program, log.as_mut_ptr().cast()) == ok {
                let log = CStr::from_bytes_until_nul(&log).unwrap_or_default();
                result = Err(failed(log.to_string_lossy().trim().to_owned()));
            }
        }
        let _ = nvrtc::nvrtcDestroyProgram(&mut program);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_tells_units_defines_and_architectures_apart() {
        let unit = Unit::new("matmul.cu").define("TYPE", 8);
        let keys = [
            unit.key("sm_90a"),
            unit.key("sm_80"),
            Unit::new("matmul.cu").define("TYPE", 1).key("sm_90a"),
            Unit::new("embed.cu").define("TYPE", 8).key("sm_90a"),
        ];
        for (i, a) in keys.iter().enumerate() {
            for b in &keys[i + 1..] {
                assert_ne!(a, b);
            }
        }
        assert_eq!(keys[0], unit.key("sm_90a"));
    }

    #[test]
    fn a_damaged_file_of_machine_code_is_a_miss() {
        let folder = std::env::temp_dir().join(format!("ds4-cubin-{}", std::process::id()));
        let path = folder.join("k.cubin");
        let image = b"machine code".to_vec();
        write_image(&path, &image).expect("written");
        assert_eq!(read_image(&path), Some(image));
        let whole = std::fs::read(&path).expect("read");
        for n in 0..whole.len() {
            std::fs::write(&path, &whole[..n]).expect("written");
            assert_eq!(read_image(&path), None, "the first {n} bytes");
            let mut flipped = whole.clone();
            flipped[n] ^= 1;
            std::fs::write(&path, &flipped).expect("written");
            assert_eq!(read_image(&path), None, "byte {n} flipped");
        }
        std::fs::remove_dir_all(&folder).expect("removed");
    }

    #[test]
    fn every_unit_compiles_at_run_time() {
        // SAFETY: as in `compile`.
        if !unsafe { nvrtc::is_culib_present() } {
            ds4_conformance::golden::skipped("compiling at run time: NVRTC is not installed");
            return;
        }
        let types = GgmlType::all().iter().filter(|ty| **ty != GgmlType::I32);
        let matmuls = types.map(|ty| Unit::new("matmul.cu").define("TYPE", i64::from(ty.id())));
        for unit in flash_units().into_iter().chain(matmuls) {
            for architecture in ["sm_80", "sm_90a"] {
                if unit.runs_on(architecture)
                    && let Err(error) = compile(&unit, architecture)
                {
                    panic!("{error}");
                }
            }
        }
    }

    #[test]
    fn every_include_of_a_source_is_a_source() {
        let all: Vec<_> = sources().collect();
        for (name, text) in &all {
            let of_its_folder = Unit::new(name);
            for line in text.lines().filter_map(|l| l.strip_prefix("#include ")) {
                let included = line.trim_matches(['"', '<', '>']);
                // The benches' stand-ins for a device, on the host only.
                if included.starts_with("../../bench/") {
                    continue;
                }
                let is_there = |(other, _): &(&str, String)| {
                    of_its_folder.included(other).iter().any(|n| n == included)
                };
                assert!(all.iter().any(is_there), "{name} includes {included}");
            }
        }
    }
}
