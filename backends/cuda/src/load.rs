//! Moving weights to the device: several threads read parts of the file into pinned memory, from
//! where they are copied and repacked while the next parts are read.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use ds4_formats::Tensor;
use ds4_model::BackendError;

use crate::driver::{
    Context, DriverError, Event, Kernel, Launch, Memory, Pinned, Stream, parameter,
};
use crate::error;
use crate::kernels::{Kernels, Unit};
use crate::weight::Layout;

/// Bytes of a part, of the file or repacked.
const PART_BYTES: usize = 8 << 20;
/// Parts of a thread on their way.
const RING: usize = 3;
/// Most threads that read.
const MAX_READERS: usize = 12;
/// Blocks of a repacking kernel.
const REPACK_BLOCKS: usize = 264;

/// A weight that waits to be moved.
#[derive(Debug)]
pub(crate) struct Upload {
    /// What and from where.
    pub(crate) source: Source,
    pub(crate) layout: Layout,
    /// Elements of a row.
    pub(crate) n_in: usize,
    /// Rows, those of all experts.
    pub(crate) n_rows: usize,
    /// Streams of the input of a hyper-connection's `fn`.
    pub(crate) n_hc: usize,
    /// Where it goes.
    pub(crate) memory: Arc<Memory>,
}

/// The bytes of an upload.
#[derive(Debug)]
pub(crate) enum Source {
    /// As in the file.
    Tensor(Tensor),
    /// Made on the host.
    Bytes(Vec<u8>),
}

impl Source {
    fn n_bytes(&self) -> usize {
        match self {
            Source::Tensor(tensor) => tensor.data.len(),
            Source::Bytes(bytes) => bytes.len(),
        }
    }
}

/// A part of an upload: bytes of the source and the place of what becomes of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    upload: usize,
    start: usize,
    n_bytes: usize,
    to: u64,
    /// 32-bit words of the destination that a repacking kernel walks; 0 for a plain copy.
    n_words: u64,
}

/// The repacking kernels.
#[derive(Clone, Debug)]
struct Repacking {
    q8: Arc<Kernel>,
    q2k: Arc<Kernel>,
    iq2: Arc<Kernel>,
    hc: Arc<Kernel>,
}

fn parts_of(index: usize, upload: &Upload, parts: &mut Vec<Part>) {
    let n_bytes = upload.source.n_bytes();
    let to = upload.memory.address();
    let row_bytes = n_bytes / upload.n_rows.max(1);
    let ty = match &upload.source {
        Source::Tensor(tensor) => tensor.ty,
        Source::Bytes(_) => ds4_formats::GgmlType::F32,
    };
    let step = match upload.layout {
        Layout::Raw | Layout::Vector => PART_BYTES,
        Layout::Hc => n_bytes,
        layout => {
            let unit = layout.part_rows() as usize * row_bytes;
            (PART_BYTES / unit).max(1) * unit
        }
    };
    for start in (0..n_bytes).step_by(step.max(1)) {
        let n = step.min(n_bytes - start);
        let part = |to, n_words| Part {
            upload: index,
            start,
            n_bytes: n,
            to,
            n_words,
        };
        parts.push(match upload.layout {
            Layout::Raw | Layout::Vector => part(to + start as u64, 0),
            layout => {
                let bytes = |rows: usize| layout.stride_bytes(ty, upload.n_in as u64, rows as u64);
                let (before, rows) = (start / row_bytes, n / row_bytes);
                part(to + bytes(before), bytes(rows) / 4)
            }
        });
    }
}

/// Files that tensors lie in, opened once.
fn open_files(uploads: &[Upload]) -> HashMap<Arc<Path>, File> {
    let mut files = HashMap::new();
    for upload in uploads {
        if let Source::Tensor(Tensor {
            origin: Some(origin),
            ..
        }) = &upload.source
            && !files.contains_key(&origin.file)
            && let Ok(file) = File::open(&origin.file)
        {
            files.insert(origin.file.clone(), file);
        }
    }
    files
}

/// Fills `to` with bytes of a source from `start` on: from the file where there is one, so that no
/// page is mapped for it, else from memory.
fn read(
    source: &Source,
    files: &HashMap<Arc<Path>, File>,
    start: usize,
    to: &mut [u8],
) -> Result<(), BackendError> {
    let memory: &[u8] = match source {
        Source::Bytes(bytes) => bytes,
        Source::Tensor(tensor) => {
            #[cfg(unix)]
            if let Some(origin) = &tensor.origin
                && let Some(file) = files.get(&origin.file)
            {
                use std::os::unix::fs::FileExt;
                let at = origin.offset + start as u64;
                return file.read_exact_at(to, at).map_err(|e| {
                    BackendError::Device(format!(
                        "{}: {} bytes at {at} could not be read: {e}",
                        origin.file.display(),
                        to.len()
                    ))
                });
            }
            #[cfg(not(unix))]
            let _ = files;
            &tensor.data
        }
    };
    to.copy_from_slice(&memory[start..start + to.len()]);
    Ok(())
}

/// One part on its way.
struct Slot {
    pinned: Pinned,
    staging: Memory,
    done: Event,
    used: bool,
}

struct Reader<'a> {
    context: &'a Arc<Context>,
    uploads: &'a [Upload],
    parts: &'a [Part],
    next: &'a AtomicUsize,
    stop: &'a AtomicBool,
    files: &'a HashMap<Arc<Path>, File>,
    kernels: Option<&'a Repacking>,
    part_bytes: usize,
}

impl Reader<'_> {
    fn run(&self, progress: &mpsc::Sender<u64>) -> Result<(), BackendError> {
        let stream = Stream::new(self.context).map_err(error::device)?;
        let mut ring = Vec::new();
        for _ in 0..RING {
            let failed = |e| {
                let what = "room for weights on their way".to_owned();
                error::out_of_memory(e, what, self.part_bytes)
            };
            ring.push(Slot {
                pinned: Pinned::new(self.context, self.part_bytes).map_err(failed)?,
                staging: Memory::new(self.context, self.part_bytes).map_err(failed)?,
                done: Event::new(self.context, false).map_err(error::device)?,
                used: false,
            });
        }
        for turn in 0.. {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(part) = self.parts.get(index) else {
                break;
            };
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let slot = &mut ring[turn % RING];
            if slot.used {
                slot.done.wait().map_err(error::device)?;
            }
            slot.used = true;
            let upload = &self.uploads[part.upload];
            let pinned = &mut slot.pinned.bytes_mut()[..part.n_bytes];
            read(&upload.source, self.files, part.start, pinned)?;
            let bytes = &slot.pinned.bytes()[..part.n_bytes];
            send(
                &stream,
                self.kernels,
                upload,
                part,
                bytes,
                Some(&slot.staging),
            )
            .and_then(|()| stream.record(&slot.done))
            .map_err(error::device)?;
            // Nobody listens any more when another reader failed.
            let _ = progress.send(part.n_bytes as u64);
        }
        stream.wait().map_err(error::device)
    }
}

/// Queues a part whose bytes are in pinned memory: a copy to its place, or to `staging` and a kernel
/// that repacks it from there.
fn send(
    stream: &Stream,
    kernels: Option<&Repacking>,
    upload: &Upload,
    part: &Part,
    bytes: &[u8],
    staging: Option<&Memory>,
) -> Result<(), DriverError> {
    let Some((kernels, staging)) = kernels.zip(staging).filter(|_| part.n_words > 0) else {
        // SAFETY: the destination was allocated for the whole upload.
        return unsafe { stream.to_device(part.to, bytes) };
    };
    let from = staging.address();
    let n_in = upload.n_in as u32;
    let launch = Launch::new([REPACK_BLOCKS, 1, 1], 256);
    let (to, n_words) = (parameter(&part.to), parameter(&part.n_words));
    let (source, width) = (parameter(&from), parameter(&n_in));
    // SAFETY: the staging memory has room for the largest part and is not used again before what is
    // queued here is done; the part is whole records of the layout, whose words the kernel writes to
    // the part's place in the destination.
    unsafe {
        stream.to_device(from, bytes)?;
        match upload.layout {
            Layout::Q8 => stream.launch(&kernels.q8, launch, &[source, to, width, n_words]),
            Layout::Q2k => stream.launch(&kernels.q2k, launch, &[source, to, width, n_words]),
            Layout::Iq2Gate | Layout::Iq2Up => {
                let half = u32::from(upload.layout == Layout::Iq2Up);
                let parameters = [source, parameter(&half), to, width, n_words];
                stream.launch(&kernels.iq2, launch, &parameters)
            }
            Layout::Hc => {
                let (n_mix, n_hc) = (upload.n_rows as u32, upload.n_hc as u32);
                let n_embd = n_in / n_hc;
                let sizes = [parameter(&n_mix), parameter(&n_hc), parameter(&n_embd)];
                let parameters = [source, to, sizes[0], sizes[1], sizes[2], n_words];
                stream.launch(&kernels.hc, launch, &parameters)
            }
            Layout::Raw | Layout::Vector => unreachable!("plain parts have no words"),
        }
    }
}

/// What a single small upload goes through without threads.
pub(crate) struct Few<'a> {
    pub(crate) stream: &'a Stream,
    pub(crate) staging: &'a mut Pinned,
}

impl Few<'_> {
    fn send(
        &mut self,
        context: &Arc<Context>,
        kernels: Option<&Repacking>,
        upload: &Upload,
        part: &Part,
    ) -> Result<(), BackendError> {
        let bytes = &mut self.staging.bytes_mut()[..part.n_bytes];
        read(&upload.source, &HashMap::new(), part.start, bytes)?;
        let room = match part.n_words {
            0 => None,
            _ => Some(Memory::new(context, part.n_bytes).map_err(error::device)?),
        };
        let bytes = &self.staging.bytes()[..part.n_bytes];
        send(self.stream, kernels, upload, part, bytes, room.as_ref())
            .and_then(|()| self.stream.wait())
            .map_err(error::device)
    }
}

/// Moves all uploads, telling `progress` bytes of the file as they are sent.
pub(crate) fn move_all(
    context: &Arc<Context>,
    kernels: &mut Kernels,
    uploads: &[Upload],
    few: &mut Few<'_>,
    progress: &mut dyn FnMut(u64),
) -> Result<(), BackendError> {
    let mut parts = Vec::new();
    for (index, upload) in uploads.iter().enumerate() {
        parts_of(index, upload, &mut parts);
    }
    if parts.is_empty() {
        return Ok(());
    }
    let repacking = if parts.iter().any(|part| part.n_words > 0) {
        let unit = Unit::new("repack.cu");
        let mut kernel = |name| kernels.get(&unit, name).map_err(error::kernel);
        Some(Repacking {
            q8: kernel("ds4_repack_q8")?,
            q2k: kernel("ds4_repack_q2k")?,
            iq2: kernel("ds4_repack_iq2_half")?,
            hc: kernel("ds4_repack_hc")?,
        })
    } else {
        None
    };
    let part_bytes = parts.iter().map(|part| part.n_bytes).max().unwrap_or(0);
    if uploads.len() == 1 && part_bytes <= few.staging.bytes().len() && parts.len() == 1 {
        return few.send(context, repacking.as_ref(), &uploads[0], &parts[0]);
    }
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let n_readers = threads.clamp(1, MAX_READERS).min(parts.len());
    let files = open_files(uploads);
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let reader = Reader {
        context,
        uploads,
        parts: &parts,
        next: &next,
        stop: &stop,
        files: &files,
        kernels: repacking.as_ref(),
        part_bytes,
    };
    std::thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        let readers: Vec<_> = (0..n_readers)
            .map(|_| {
                let (reader, sender) = (&reader, sender.clone());
                scope.spawn(move || {
                    let done = reader.run(&sender);
                    if done.is_err() {
                        reader.stop.store(true, Ordering::Relaxed);
                    }
                    done
                })
            })
            .collect();
        drop(sender);
        for n_bytes in receiver {
            progress(n_bytes);
        }
        readers
            .into_iter()
            .try_for_each(|reader| reader.join().expect("readers do not panic"))
    })
}
