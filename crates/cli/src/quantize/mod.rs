//! Making a GGUF file: from the publisher's checkpoint or from another GGUF file, in a mix of types.
//!
//! One tensor after the other is read in rows, encoded on all threads and written to its place in
//! `.NAME.part`; a record of the tensors that are on disk lies beside it, so that whatever ends the
//! work, the same command goes on. No more than [`TASK_VALUES`] numbers for each thread are in
//! memory.

mod config;
mod mix;
mod names;
mod source;

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use ds4_engine::encode_row;
use ds4_formats::GgmlType;
use ds4_formats::gguf::{Gguf, TensorSpec, Value, Writer};
use ds4_formats::imatrix::{Columns, Imatrix};
use ds4_model::{Geometry, weights};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

pub(crate) use mix::{Mix, Override};
use source::{Source, Wanted};

use crate::sums::{Sums, seal, unseal, write_at, write_whole};

/// Numbers that a thread takes at once.
const TASK_VALUES: u64 = 1 << 20;
/// Time between two looks at what the threads do.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// The largest number of a half.
const LARGEST_HALF: f32 = 65504.0;

/// What is wanted.
#[derive(Debug)]
pub(crate) struct Order {
    /// Folder of safetensors, or GGUF file.
    pub source: PathBuf,
    /// The file to make.
    pub out: PathBuf,
    /// Types of tensors.
    pub mix: Mix,
    /// Types of some tensors.
    pub overrides: Vec<Override>,
    /// Importances, and the name of their file.
    pub imatrix: Option<(Imatrix, String)>,
    /// Take the draft blocks.
    pub drafts: bool,
    /// Threads.
    pub n_threads: usize,
}

/// What became of it.
#[derive(Debug, Serialize)]
pub(crate) struct Made {
    /// Length of the file.
    pub n_bytes: u64,
    /// Tensors in it.
    pub n_tensors: usize,
    /// Of these, those that were there from an earlier run.
    pub n_kept: usize,
    /// Weights that were encoded, not only copied.
    pub n_encoded: u64,
    /// Matrices that were encoded to a type of fewer than 8 bits with importances, and without.
    pub n_weighted: u64,
    /// See above.
    pub n_unweighted: u64,
    /// Tensors by type.
    pub types: std::collections::BTreeMap<&'static str, usize>,
    /// SHA-256 of the file.
    pub sha256: String,
}

/// How far it is.
pub(crate) enum Progress<'a> {
    /// Tensors are encoded: the name of this one, and bytes written of all.
    Encoding {
        /// Its name.
        name: &'a str,
        /// Bytes written.
        n_done: u64,
        /// Bytes of the file.
        n_total: u64,
    },
    /// The file is read again for its sums.
    Summing {
        /// Bytes read.
        n_done: u64,
        /// Bytes of the file.
        n_total: u64,
    },
}

/// What `.NAME.part.json` says.
#[derive(Debug, Deserialize, Serialize)]
struct Record {
    format: String,
    version: u32,
    /// Of everything that decides the bytes.
    plan: String,
    /// Tensors, from the first, that are on disk.
    n_done: usize,
}

const FORMAT: &str = "ds4-quantize";
const VERSION: u32 = 2;

/// Makes the file; `on` is told how far it is and says whether to go on.
///
/// # Errors
/// The source is damaged or lacks something, the disk fails, or `on` said to stop; what was done
/// stays for the next time.
pub(crate) fn make(order: &Order, on: &mut dyn FnMut(Progress<'_>) -> Result<()>) -> Result<Made> {
    let (source, mut metadata, wanted) = Source::open(&order.source, order.drafts)?;
    let n_layers = metadata.u32("deepseek4.block_count").unwrap_or(0) as usize;
    if let Some(file_type) = mix::file_type(order.mix) {
        metadata.insert("general.file_type", Value::U32(file_type));
    }
    if let Some((imatrix, name)) = &order.imatrix {
        metadata.insert("quantize.imatrix.file", Value::String(name.clone()));
        let n_entries = imatrix.entries.len() as u32;
        metadata.insert("quantize.imatrix.entries_count", Value::U32(n_entries));
        metadata.insert(
            "quantize.imatrix.chunks_count",
            Value::U32(imatrix.n_chunks),
        );
        if let Some(dataset) = imatrix.datasets.first() {
            metadata.insert("quantize.imatrix.dataset", Value::String(dataset.clone()));
        }
    }
    let mut writer = Writer::new(metadata)?;
    for tensor in &wanted {
        let ty = mix::type_of(
            order.mix,
            &order.overrides,
            &tensor.name,
            &tensor.ne,
            n_layers,
            tensor.own,
        );
        writer.push(&tensor.name, ty, &tensor.ne)?;
    }
    let specs = writer.tensors();
    let mut columns = Vec::with_capacity(specs.len());
    for (spec, tensor) in specs.iter().zip(&wanted) {
        columns.push(importances(order, spec, tensor)?);
    }
    let header = writer.header();
    let n_total = writer.file_bytes();
    let mut part = Part::open(order, &plan_of(order, &header)?, n_total)?;
    write_at(&part.file, &header, 0).context(part.failed())?;

    let n_kept = part.record.n_done;
    let mut made = Made {
        n_bytes: n_total,
        n_tensors: specs.len(),
        n_kept,
        n_encoded: 0,
        n_weighted: 0,
        n_unweighted: 0,
        types: Default::default(),
        sha256: String::new(),
    };
    for (i, ((spec, tensor), columns)) in specs.iter().zip(&wanted).zip(&columns).enumerate() {
        *made.types.entry(spec.ty.name()).or_default() += 1;
        let is_copied = tensor.is_repacked_to(spec.ty);
        if !is_copied && spec.ty.block_len() > 1 && spec.ty != GgmlType::Q8_0 {
            let reached = |m: &u64| {
                let columns = columns.as_ref();
                columns.is_some_and(|c| c.counts.get(*m as usize).is_some_and(|n| *n > 0.0))
            };
            let n_weighted = (0..tensor.n_matrices()).filter(reached).count() as u64;
            made.n_weighted += n_weighted;
            made.n_unweighted += tensor.n_matrices() - n_weighted;
        }
        if i < n_kept {
            continue;
        }
        if !is_copied {
            made.n_encoded += tensor.ne.iter().product::<u64>();
        }
        write_tensor(
            order,
            &source,
            tensor,
            spec,
            columns.as_ref(),
            &part,
            &mut |n_done| {
                on(Progress::Encoding {
                    name: &spec.name,
                    n_done,
                    n_total,
                })
            },
        )?;
        part.save(i + 1)?;
    }

    let sums = part.check(order, &mut |n_done| {
        on(Progress::Summing { n_done, n_total })
    })?;
    part.name(&order.out)?;
    sums.write_beside(&order.out)?;
    made.sha256 = sums.sha256;
    Ok(made)
}

/// The importances of a tensor's columns, if its type has a use for them.
fn importances(order: &Order, spec: &TensorSpec, tensor: &Wanted) -> Result<Option<Columns>> {
    let Some((imatrix, _)) = &order.imatrix else {
        return Ok(None);
    };
    if spec.ty.block_len() == 1 || tensor.is_repacked_to(spec.ty) {
        return Ok(None);
    }
    let n_experts = tensor.n_matrices() as usize;
    imatrix
        .for_tensor(&spec.name, spec.ne[0] as usize, n_experts)
        .map_err(anyhow::Error::msg)
}

/// A number for everything that decides the bytes: the header with all names and types, the source
/// and the importances.
fn plan_of(order: &Order, header: &[u8]) -> Result<String> {
    let mut text = header.to_vec();
    let files: Vec<PathBuf> = match order.source.is_dir() {
        true => {
            let entries = fs::read_dir(&order.source)?;
            let mut files = entries.map(|e| Ok(e?.path())).collect::<Result<Vec<_>>>()?;
            files.retain(|f| f.extension().is_some_and(|e| e == "safetensors"));
            files.sort();
            files
        }
        false => vec![order.source.clone()],
    };
    for file in files {
        let found = fs::metadata(&file)?;
        text.extend(file.as_os_str().as_encoded_bytes());
        text.extend(found.len().to_le_bytes());
        let changed = found.modified().ok();
        let changed = changed.and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
        text.extend(changed.unwrap_or_default().as_nanos().to_le_bytes());
    }
    if let Some((imatrix, _)) = &order.imatrix {
        text.extend(imatrix.to_gguf()?);
    }
    Ok(format!("{:016x}", xxh3_64(&text)))
}

/// The file while it is made.
struct Part {
    file: File,
    path: PathBuf,
    record_path: PathBuf,
    record: Record,
}

impl Part {
    fn open(order: &Order, plan: &str, n_bytes: u64) -> Result<Part> {
        let name = order
            .out
            .file_name()
            .with_context(|| format!("{} is not the name of a file", order.out.display()))?
            .to_string_lossy();
        if order.out.exists() {
            bail!(
                "{} is already there: delete it or name another",
                order.out.display()
            );
        }
        let path = order.out.with_file_name(format!(".{name}.part"));
        let record_path = order.out.with_file_name(format!(".{name}.part.json"));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        if file.try_lock().is_err() {
            bail!("another `ds4 quantize` is making {}", order.out.display());
        }
        let is_whole = file.metadata()?.len() == n_bytes;
        let kept = fs::read(&record_path)
            .ok()
            .and_then(|bytes| unseal::<Record>(&bytes))
            .filter(|r| is_whole && r.format == FORMAT && r.version == VERSION && r.plan == plan);
        let record = kept.unwrap_or_else(|| Record {
            format: FORMAT.to_owned(),
            version: VERSION,
            plan: plan.to_owned(),
            n_done: 0,
        });
        let part = Part {
            file,
            path,
            record_path,
            record,
        };
        if part.record.n_done == 0 {
            let _ = fs::remove_file(&part.record_path);
            let emptied = part.file.set_len(0);
            emptied
                .and_then(|()| part.file.set_len(n_bytes))
                .with_context(|| part.failed())?;
        }
        Ok(part)
    }

    fn failed(&self) -> String {
        format!(
            "cannot write {}; once there is room, the same command goes on",
            self.path.display()
        )
    }

    /// Writes down that so many tensors are there, once they are.
    fn save(&mut self, n_done: usize) -> Result<()> {
        self.file.sync_data().with_context(|| self.failed())?;
        self.record.n_done = n_done;
        write_whole(&self.record_path, &seal(&self.record)?).with_context(|| self.failed())
    }

    /// Opens what was made as a reader would, and sums it.
    fn check(&self, order: &Order, on: &mut dyn FnMut(u64) -> Result<()>) -> Result<Sums> {
        let gguf = Gguf::open(&self.path)?;
        if !order.drafts && gguf.spec("token_embd.weight").is_some() {
            let geometry = Geometry::from_metadata(gguf.metadata())?;
            weights::check(&geometry, &|name| gguf.tensor(name))?;
        }
        Sums::of(&self.path, &gguf, on)
    }

    fn name(self, out: &Path) -> Result<()> {
        fs::rename(&self.path, out).with_context(|| format!("cannot name {}", out.display()))?;
        let _ = fs::remove_file(&self.record_path);
        Ok(())
    }
}

/// Encodes a tensor on all threads; `on` is told the bytes of the file that are there.
fn write_tensor(
    order: &Order,
    source: &Source,
    tensor: &Wanted,
    spec: &TensorSpec,
    columns: Option<&Columns>,
    part: &Part,
    on: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<()> {
    if spec.ty == GgmlType::I32 {
        let ids = source.ids(tensor)?;
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        write_at(&part.file, &bytes, spec.offset).with_context(|| part.failed())?;
        return on(spec.offset + spec.n_bytes);
    }
    // Mean squares for each matrix; a matrix that was never reached has none.
    let n_matrices = tensor.n_matrices() as usize;
    let weights: Vec<Option<Vec<f32>>> = (0..n_matrices)
        .map(|m| columns.and_then(|c| c.mean_squares(m)))
        .collect();
    let per_matrix = tensor.matrix_rows();
    let step = (TASK_VALUES / spec.ne[0]).clamp(1, per_matrix);
    let per_matrix_tasks = per_matrix.div_ceil(step);
    let n_tasks = per_matrix_tasks as usize * n_matrices;
    let (next, n_done) = (AtomicUsize::new(0), AtomicU64::new(0));
    let stop = AtomicBool::new(false);
    let failure: Mutex<Option<anyhow::Error>> = Mutex::new(None);
    let row_bytes = (spec.n_bytes / tensor.n_rows()) as usize;
    let task = |i: usize| -> Result<()> {
        let matrix = i as u64 / per_matrix_tasks;
        let within = i as u64 % per_matrix_tasks * step;
        let n = step.min(per_matrix - within);
        let first = matrix * per_matrix + within;
        let mut bytes = vec![0; n as usize * row_bytes];
        if tensor.is_repacked_to(spec.ty) {
            source.repack(tensor, first, &mut bytes)?;
        } else {
            let width = spec.ne[0] as usize;
            let mut x = vec![0.0; n as usize * width];
            source.rows(tensor, first, &mut x)?;
            if let Some(at) = x.iter().position(|x| !x.is_finite()) {
                bail!(
                    "{}: row {} of the source holds a value that is not a number",
                    spec.name,
                    first as usize + at / width
                );
            }
            if spec.ty == GgmlType::F16 && x.iter().any(|x| x.abs() > LARGEST_HALF) {
                bail!(
                    "{}: it has values beyond what F16 holds: --type '{}=BF16'",
                    spec.name,
                    spec.name
                );
            }
            let weights = weights[matrix as usize].as_deref();
            for (x, out) in x.chunks(width).zip(bytes.chunks_mut(row_bytes)) {
                encode_row(spec.ty, x, weights, out);
            }
        }
        let at = spec.offset + first * row_bytes as u64;
        write_at(&part.file, &bytes, at).with_context(|| part.failed())?;
        n_done.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    };
    let mut stopped = Ok(());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..order.n_threads.min(n_tasks))
            .map(|_| {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        if i >= n_tasks {
                            return;
                        }
                        if let Err(error) = task(i) {
                            *failure.lock().unwrap_or_else(|e| e.into_inner()) = Some(error);
                            stop.store(true, Ordering::Relaxed);
                        }
                    }
                })
            })
            .collect();
        let mut waited = Duration::from_micros(200);
        while !workers.iter().all(|w| w.is_finished()) {
            std::thread::sleep(waited);
            waited = (waited * 2).min(LOOK_INTERVAL);
            stopped = on(spec.offset + n_done.load(Ordering::Relaxed));
            if stopped.is_err() {
                stop.store(true, Ordering::Relaxed);
            }
        }
    });
    if let Some(error) = failure.into_inner().unwrap_or_else(|e| e.into_inner()) {
        return Err(error);
    }
    stopped
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The record of three finished tensors, as it lies on disk.
    const GOLDEN: &str = "{\"format\":\"ds4-quantize\",\"version\":2,\"plan\":\"0123456789abcdef\",\
        \"n_done\":3}\ndd13612989ca7e71\n";
    const PLAN: &str = "0123456789abcdef";

    fn order(dir: &Path) -> Order {
        Order {
            source: dir.join("in.gguf"),
            out: dir.join("o.gguf"),
            mix: Mix::Keep,
            overrides: Vec::new(),
            imatrix: None,
            drafts: false,
            n_threads: 1,
        }
    }

    /// Tensors that are believed to be there, for a record and a part of so many bytes.
    fn kept(record: &[u8], plan: &str, n_bytes: usize) -> usize {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".o.gguf.part"), vec![7; n_bytes]).unwrap();
        fs::write(dir.path().join(".o.gguf.part.json"), record).unwrap();
        Part::open(&order(dir.path()), plan, 40)
            .unwrap()
            .record
            .n_done
    }

    #[test]
    fn a_record_is_read_and_written_as_it_lies_on_disk() {
        let golden = GOLDEN.as_bytes();
        assert_eq!(kept(golden, PLAN, 40), 3);
        assert_eq!(kept(golden, "another", 40), 0);
        assert_eq!(kept(golden, PLAN, 39), 0);
        let dir = tempfile::tempdir().unwrap();
        let mut part = Part::open(&order(dir.path()), PLAN, 40).unwrap();
        part.save(3).unwrap();
        let written = fs::read_to_string(dir.path().join(".o.gguf.part.json")).unwrap();
        assert_eq!(written, GOLDEN);
    }

    #[test]
    fn a_damaged_record_begins_anew() {
        let golden = GOLDEN.as_bytes();
        for n in 0..golden.len() {
            assert_eq!(kept(&golden[..n], PLAN, 40), 0, "cut at {n}");
            for bit in [1, 4, 64] {
                let mut damaged = golden.to_vec();
                damaged[n] ^= bit;
                assert_eq!(kept(&damaged, PLAN, 40), 0, "byte {n}, bit {bit}");
            }
        }
    }
}
