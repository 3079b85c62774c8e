//! Where the numbers come from: a checkpoint of safetensors, or another GGUF file.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use ds4_formats::GgmlType;
use ds4_formats::gguf::{Gguf, Metadata};
use ds4_formats::quant::decode_row;
use ds4_formats::safetensors::{Checkpoint, Dtype, Entry};
use ds4_formats::small_float::{bf16_to_f32, e2m1_to_f32, e4m3_to_f32, ue8m0_to_f32};
use ds4_model::{Geometry, requirements};
use half::f16;

use super::config;
use super::names::{self, Place};

/// Rows and columns that share a scale of an FP8 matrix.
const FP8_BLOCK: u64 = 128;
/// Columns that share a scale of an FP4 matrix.
const FP4_BLOCK: u64 = 32;

/// A source of tensors.
pub(super) enum Source {
    /// Another file.
    Gguf(Box<Gguf>),
    /// The publisher's layout.
    Checkpoint(Checkpoint),
}

/// A tensor that the source has.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// Its GGUF name.
    pub name: String,
    /// Its GGUF shape.
    pub ne: Vec<u64>,
    /// Its type in the source, where that is one of GGUF's.
    pub own: Option<GgmlType>,
    /// The matrices it is made of: one, or one for each expert.
    parts: Vec<Part>,
}

/// A matrix in the source.
#[derive(Clone, Debug)]
enum Part {
    Gguf,
    Plain(Entry),
    /// E4M3 with a scale for each square of [`FP8_BLOCK`].
    Fp8(Entry, Entry),
    /// Two E2M1 in a byte, with a scale for each [`FP4_BLOCK`] of a row.
    Fp4(Entry, Entry),
}

impl Wanted {
    /// Rows of all matrices together.
    pub(super) fn n_rows(&self) -> u64 {
        self.ne[1..].iter().product()
    }

    /// Rows of one matrix.
    pub(super) fn matrix_rows(&self) -> u64 {
        if self.ne.len() > 2 {
            self.ne[1]
        } else {
            self.n_rows()
        }
    }

    /// Matrices, more than one for routed experts.
    pub(super) fn n_matrices(&self) -> u64 {
        self.n_rows() / self.matrix_rows()
    }

    /// Whether [`Source::repack`] makes this type without decoding.
    pub(super) fn is_repacked_to(&self, ty: GgmlType) -> bool {
        self.own == Some(ty)
            || ty == GgmlType::MXFP4 && self.parts.iter().all(|p| matches!(p, Part::Fp4(..)))
    }
}

impl Source {
    /// Opens a folder or a file; says what it holds and the metadata to write. With `drafts` of a
    /// checkpoint its draft blocks.
    ///
    /// # Errors
    /// It is neither, is damaged, or lacks tensors.
    pub(super) fn open(path: &Path, drafts: bool) -> Result<(Source, Metadata, Vec<Wanted>)> {
        let is_gguf = path.is_file() && path.extension().is_some_and(|e| e == "gguf");
        if is_gguf {
            if drafts {
                bail!(
                    "--draft takes the draft blocks of a checkpoint, and {} is a GGUF file",
                    path.display()
                );
            }
            let gguf = Gguf::open(path)?;
            let wanted = gguf.tensors().map(|spec| Wanted {
                name: spec.name.clone(),
                ne: spec.ne.clone(),
                own: Some(spec.ty),
                parts: vec![Part::Gguf],
            });
            let wanted = wanted.collect();
            let mut metadata = Metadata::new();
            for (key, value) in gguf.metadata().iter() {
                if !key.starts_with("split.") {
                    metadata.insert(key, value.clone());
                }
            }
            return Ok((Source::Gguf(Box::new(gguf)), metadata, wanted));
        }
        let checkpoint = Checkpoint::open(path)?;
        let folder: PathBuf = match path.is_dir() {
            true => path.to_owned(),
            false => path.parent().unwrap_or(Path::new(".")).to_owned(),
        };
        let (metadata, wanted) = if drafts {
            let places = names::of_drafts(&checkpoint);
            if places.is_empty() {
                bail!("{} has no draft blocks (no tensor mtp.0.*)", path.display());
            }
            let has = |name: &str| places.iter().any(|(n, _)| n.ends_with(name));
            let stages = places
                .iter()
                .filter(|(n, _)| n.ends_with(".attn_q_a.weight"));
            let metadata =
                config::draft_metadata(&folder, stages.count() as u32, has("main_proj.weight"))?;
            let wanted = places
                .iter()
                .map(|(name, place)| locate(&checkpoint, name, place))
                .collect::<Result<_>>()?;
            (metadata, wanted)
        } else {
            let metadata = config::metadata(&folder, "DeepSeek V4 Flash")?;
            let geometry = Geometry::from_metadata(&metadata).context("config.json")?;
            let mut wanted = Vec::new();
            for need in requirements(&geometry) {
                let place = names::of_model(&need.name)
                    .with_context(|| format!("{} has no place in a checkpoint", need.name))?;
                let found = locate(&checkpoint, &need.name, &place)?;
                if found.ne != need.ne {
                    bail!(
                        "{}: the checkpoint has shape {:?}, and config.json asks for {:?}",
                        need.name,
                        found.ne,
                        need.ne
                    );
                }
                wanted.push(found);
            }
            (metadata, wanted)
        };
        Ok((Source::Checkpoint(checkpoint), metadata, wanted))
    }

    /// Decodes rows `first..` of a tensor, all of one matrix, into `x`.
    ///
    /// # Errors
    /// They cannot be read.
    pub(super) fn rows(&self, wanted: &Wanted, first: u64, x: &mut [f32]) -> Result<()> {
        let n_in = wanted.ne[0];
        let n = x.len() as u64 / n_in;
        match self {
            Source::Gguf(gguf) => {
                let spec = gguf.spec(&wanted.name).context("a tensor of the table")?;
                let row_bytes = (spec.n_bytes / wanted.n_rows()) as usize;
                let data = gguf.data(spec);
                let bytes = &data[first as usize * row_bytes..(first + n) as usize * row_bytes];
                decode_row(spec.ty, bytes, x);
                Ok(())
            }
            Source::Checkpoint(checkpoint) => {
                let matrix = first / wanted.matrix_rows();
                let row = first % wanted.matrix_rows();
                decode(checkpoint, &wanted.parts[matrix as usize], row, n_in, x)
            }
        }
    }

    /// The bytes of rows `first..` in a type for which [`Wanted::is_repacked_to`] holds.
    ///
    /// # Errors
    /// They cannot be read.
    pub(super) fn repack(&self, wanted: &Wanted, first: u64, out: &mut [u8]) -> Result<()> {
        match self {
            Source::Gguf(gguf) => {
                let spec = gguf.spec(&wanted.name).context("a tensor of the table")?;
                let start = (first * (spec.n_bytes / wanted.n_rows())) as usize;
                out.copy_from_slice(&gguf.data(spec)[start..start + out.len()]);
                Ok(())
            }
            Source::Checkpoint(checkpoint) => {
                let matrix = (first / wanted.matrix_rows()) as usize;
                let row = first % wanted.matrix_rows();
                let Part::Fp4(weight, scale) = &wanted.parts[matrix] else {
                    bail!("{} is not in the publisher's 4 bits", wanted.name);
                };
                let blocks = out.as_chunks_mut::<17>().0;
                let n_blocks = blocks.len();
                let per_row = wanted.ne[0] / FP4_BLOCK;
                let mut scales = vec![0; n_blocks];
                checkpoint.read(scale, row * per_row, &mut scales)?;
                let mut codes = vec![0; n_blocks * 16];
                checkpoint.read(weight, row * wanted.ne[0] / 2, &mut codes)?;
                for ((block, &scale), codes) in blocks
                    .iter_mut()
                    .zip(&scales)
                    .zip(codes.as_chunks::<16>().0)
                {
                    if scale == 255 {
                        bail!("{}: a scale is not a number", wanted.name);
                    }
                    // Neighbours share a byte in the checkpoint; here the halves of the block do.
                    let code = |e: usize| (codes[e / 2] >> (4 * (e % 2))) & 15;
                    block[0] = scale;
                    for i in 0..16 {
                        block[1 + i] = code(i) | (code(16 + i) << 4);
                    }
                }
                Ok(())
            }
        }
    }

    /// The entries of a table of expert numbers.
    ///
    /// # Errors
    /// They cannot be read, or do not fit 32 bits.
    pub(super) fn ids(&self, wanted: &Wanted) -> Result<Vec<i32>> {
        let (checkpoint, entry) = match (self, &wanted.parts[0]) {
            (Source::Gguf(gguf), _) => {
                let tensor = gguf.tensor(&wanted.name);
                return tensor
                    .and_then(|t| t.to_i32())
                    .with_context(|| format!("{} is no table", wanted.name));
            }
            (Source::Checkpoint(checkpoint), Part::Plain(entry)) => (checkpoint, entry),
            _ => bail!("{} is no table", wanted.name),
        };
        let mut bytes = vec![0; entry.n_bytes as usize];
        checkpoint.read(entry, 0, &mut bytes)?;
        let ids: Option<Vec<i32>> = match entry.dtype {
            Dtype::I64 => {
                let words = bytes.as_chunks::<8>().0.iter();
                words
                    .map(|w| i32::try_from(i64::from_le_bytes(*w)).ok())
                    .collect()
            }
            Dtype::I32 => {
                let words = bytes.as_chunks::<4>().0.iter();
                Some(words.map(|w| i32::from_le_bytes(*w)).collect())
            }
            _ => None,
        };
        ids.with_context(|| format!("{} is no table of whole numbers", wanted.name))
    }
}

/// Finds a tensor's matrices, and its shape.
fn locate(checkpoint: &Checkpoint, name: &str, place: &Place) -> Result<Wanted> {
    let mut parts = Vec::new();
    let mut ne = Vec::new();
    match place {
        Place::One(other) => {
            let (part, shape) = part(checkpoint, other)?;
            parts.push(part);
            ne = shape;
        }
        Place::Experts(pattern) => {
            for e in 0.. {
                let other = pattern.replace("{}", &e.to_string());
                if e > 0 && checkpoint.get(&other).is_none() {
                    break;
                }
                let (part, shape) = part(checkpoint, &other)?;
                if e > 0 && shape != ne {
                    bail!("{other} has shape {shape:?}, and the expert before it {ne:?}");
                }
                ne = shape;
                parts.push(part);
            }
            ne.push(parts.len() as u64);
        }
    }
    Ok(Wanted {
        name: name.to_owned(),
        ne,
        own: None,
        parts,
    })
}

/// A matrix of a checkpoint with its scales, and its shape as GGUF writes it.
fn part(checkpoint: &Checkpoint, name: &str) -> Result<(Part, Vec<u64>)> {
    let entry = checkpoint
        .get(name)
        .with_context(|| format!("the checkpoint has no tensor {name}"))?
        .clone();
    let mut ne: Vec<u64> = entry.shape.iter().rev().copied().collect();
    let scale = || {
        let beside = name.replace(".weight", ".scale");
        let scale = checkpoint.get(&beside).filter(|s| s.dtype == Dtype::F8E8M0);
        scale
            .cloned()
            .with_context(|| format!("{name} has no scales {beside} in E8M0 beside it"))
    };
    let expect = |scale: &Entry, shape: [u64; 2]| {
        if scale.shape != shape {
            bail!(
                "{name}: its scales have shape {:?}, expected {shape:?}",
                scale.shape
            );
        }
        Ok(())
    };
    match (entry.dtype, &ne[..]) {
        (Dtype::F8E4M3, &[n_in, n_out]) => {
            let scale = scale()?;
            expect(
                &scale,
                [n_out.div_ceil(FP8_BLOCK), n_in.div_ceil(FP8_BLOCK)],
            )?;
            Ok((Part::Fp8(entry, scale), ne))
        }
        (Dtype::I8 | Dtype::U8, &[half, n_out]) => {
            let scale = scale()?;
            ne[0] = half * 2;
            expect(&scale, [n_out, ne[0] / FP4_BLOCK])?;
            Ok((Part::Fp4(entry, scale), ne))
        }
        (Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::I64 | Dtype::I32, _) => {
            Ok((Part::Plain(entry), ne))
        }
        (other, _) => bail!(
            "{name}: {other:?} of shape {:?} is not what a weight is",
            entry.shape
        ),
    }
}

/// Rows `row..` of a matrix of `n_in` columns.
fn decode(checkpoint: &Checkpoint, part: &Part, row: u64, n_in: u64, x: &mut [f32]) -> Result<()> {
    let width = n_in as usize;
    match part {
        Part::Gguf => bail!("the source is a checkpoint"),
        Part::Plain(entry) => {
            let size = entry.dtype.n_bytes();
            let mut bytes = vec![0; x.len() * size as usize];
            checkpoint.read(entry, row * n_in * size, &mut bytes)?;
            match entry.dtype {
                Dtype::F32 => {
                    let words = bytes.as_chunks::<4>().0;
                    x.iter_mut()
                        .zip(words)
                        .for_each(|(x, w)| *x = f32::from_le_bytes(*w));
                }
                Dtype::BF16 => {
                    let words = bytes.as_chunks::<2>().0;
                    let value = |w: &[u8; 2]| bf16_to_f32(u16::from_le_bytes(*w));
                    x.iter_mut().zip(words).for_each(|(x, w)| *x = value(w));
                }
                Dtype::F16 => {
                    let words = bytes.as_chunks::<2>().0;
                    let value = |w: &[u8; 2]| f16::from_le_bytes(*w).to_f32();
                    x.iter_mut().zip(words).for_each(|(x, w)| *x = value(w));
                }
                other => bail!("{other:?} is not what a weight is"),
            }
        }
        Part::Fp8(entry, scale) => {
            let mut bytes = vec![0; x.len()];
            checkpoint.read(entry, row * n_in, &mut bytes)?;
            let per_row = n_in.div_ceil(FP8_BLOCK);
            let n_rows = x.len() as u64 / n_in;
            let (first, last) = (row / FP8_BLOCK, (row + n_rows - 1) / FP8_BLOCK);
            let mut scales = vec![0; ((last - first + 1) * per_row) as usize];
            checkpoint.read(scale, first * per_row, &mut scales)?;
            for (i, (x, bytes)) in x.chunks_mut(width).zip(bytes.chunks(width)).enumerate() {
                let band = ((row + i as u64) / FP8_BLOCK - first) * per_row;
                for (j, (x, &code)) in x.iter_mut().zip(bytes).enumerate() {
                    let scale = scales[band as usize + j / FP8_BLOCK as usize];
                    *x = e4m3_to_f32(code) * ue8m0_to_f32(scale);
                }
            }
        }
        Part::Fp4(entry, scale) => {
            let mut bytes = vec![0; x.len() / 2];
            checkpoint.read(entry, row * n_in / 2, &mut bytes)?;
            let mut scales = vec![0; x.len() / FP4_BLOCK as usize];
            checkpoint.read(scale, row * n_in / FP4_BLOCK, &mut scales)?;
            for (e, x) in x.iter_mut().enumerate() {
                let code = (bytes[e / 2] >> (4 * (e % 2))) & 15;
                *x = e2m1_to_f32(code) * ue8m0_to_f32(scales[e / FP4_BLOCK as usize]);
            }
        }
    }
    Ok(())
}
