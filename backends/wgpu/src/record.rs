//! A recorded step: dispatches in order, encoded as one compute pass.

use std::collections::HashMap;
use std::sync::Arc;

use ds4_model::BackendError;

use crate::adapter::Gpu;
use crate::bound::{BindGroups, Bound};
use crate::kernels::{Kernel, Specialisation};

/// One dispatch.
#[derive(Clone, Debug)]
pub(crate) struct Dispatch {
    kernel: Arc<Kernel>,
    group: wgpu::BindGroup,
    immediates: Vec<u8>,
    groups: [u32; 3],
    /// Kernel, types and workgroups, for tables of times.
    name: String,
    /// The buffers that are bound, by number, and whether they are written.
    uses: Vec<(u64, bool)>,
}

/// Dispatches in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recording {
    pub(crate) dispatches: Vec<Dispatch>,
}

/// Most workgroups of a dimension.
pub(crate) const MAX_GROUPS: u32 = 65_535;

impl Recording {
    /// Adds a dispatch of a kernel. `words` are the members of its `P`.
    ///
    /// # Panics
    /// When a dimension has more than [`MAX_GROUPS`] workgroups, which shapes within the engine's
    /// limits do not reach.
    pub(crate) fn dispatch(
        &mut self,
        gpu: &Gpu,
        bind_groups: &mut BindGroups,
        what: &Specialisation,
        bound: &[(u32, Bound<'_>)],
        words: &[u32],
        groups: [u32; 3],
    ) {
        if groups.contains(&0) {
            return;
        }
        self.dispatches
            .push(make(gpu, bind_groups, what, bound, words, groups));
    }

    /// Groups of dispatches that run side by side.
    pub(crate) fn n_stages(&self) -> usize {
        self.stage_begins().iter().filter(|begins| **begins).count()
    }

    /// Whether a stage begins with a dispatch: wgpu puts a barrier before one that uses a buffer which
    /// was written since the last one, or writes one that was read.
    fn stage_begins(&self) -> Vec<bool> {
        let mut written: HashMap<u64, bool> = HashMap::new();
        let begins = |(i, dispatch): (usize, &Dispatch)| {
            let mut begins = i == 0;
            for (id, writes) in &dispatch.uses {
                let before = written.insert(*id, *writes);
                begins |= before.is_some_and(|before| before || *writes);
            }
            begins
        };
        self.dispatches.iter().enumerate().map(begins).collect()
    }

    /// Encodes everything into one pass.
    pub(crate) fn encode(&self, gpu: &Gpu) -> wgpu::CommandBuffer {
        let mut encoder = gpu
            .device
            .create_command_encoder(&wgpu::CommandEncoderDescriptor { label: None });
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: None,
                timestamp_writes: None,
            });
            for dispatch in &self.dispatches {
                dispatch.encode(&mut pass);
            }
        }
        encoder.finish()
    }
}

fn make(
    gpu: &Gpu,
    bind_groups: &mut BindGroups,
    what: &Specialisation,
    bound: &[(u32, Bound<'_>)],
    words: &[u32],
    groups: [u32; 3],
) -> Dispatch {
    assert!(
        groups.iter().all(|n| *n <= MAX_GROUPS),
        "{}: {groups:?} workgroups",
        what.kernel
    );
    let mut kernels = gpu
        .kernels
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let kernel = kernels.kernel(gpu, what);
    let group = bind_groups.group(&gpu.device, &kernel, bound);
    let mut kernel_uses: Vec<(u64, bool)> = Vec::with_capacity(bound.len());
    for (binding, b) in bound {
        let writes = kernel.written.contains(binding);
        match kernel_uses.iter_mut().find(|(id, _)| *id == b.id) {
            Some((_, written)) => *written |= writes,
            None => kernel_uses.push((b.id, writes)),
        }
    }
    Dispatch {
        kernel,
        group,
        immediates: words.iter().flat_map(|word| word.to_le_bytes()).collect(),
        groups,
        name: format!("{} {groups:?}", what.name()),
        uses: kernel_uses,
    }
}

impl Recording {
    /// Runs everything once with a timestamp after each stage: (its kernels, nanoseconds) in order;
    /// empty where the adapter has none.
    pub(crate) fn times(&self, gpu: &Gpu) -> Result<Vec<(String, f32)>, BackendError> {
        let begins = self.stage_begins();
        let mut at = 0;
        let stages: Vec<&[Dispatch]> = self
            .dispatches
            .chunk_by(|_, _| {
                at += 1;
                !begins[at]
            })
            .collect();
        let n = stages.len();
        if !gpu.capabilities.timestamps || n == 0 || n + 1 > 4096 {
            return Ok(Vec::new());
        }
        let queries = gpu.device.create_query_set(&wgpu::QuerySetDescriptor {
            label: None,
            ty: wgpu::QueryType::Timestamp,
            count: n as u32 + 1,
        });
        let n_bytes = 8 * (n as u64 + 1);
        let resolved = gpu.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: n_bytes,
            usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        let mut encoder = gpu
            .device
            .create_command_encoder(&wgpu::CommandEncoderDescriptor { label: None });
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: None,
                timestamp_writes: None,
            });
            pass.write_timestamp(&queries, 0);
            for (stage, dispatches) in stages.iter().enumerate() {
                for dispatch in *dispatches {
                    dispatch.encode(&mut pass);
                }
                pass.write_timestamp(&queries, stage as u32 + 1);
            }
        }
        encoder.resolve_query_set(&queries, 0..n as u32 + 1, &resolved, 0);
        gpu.queue.submit([encoder.finish()]);
        let mut bytes = vec![0; n_bytes as usize];
        let bound = Bound {
            id: 0,
            buffer: &resolved,
            offset: 0,
            n_bytes,
        };
        read(gpu, &mut None, &mut [(bound, &mut bytes)])?;
        let period = gpu.queue.get_timestamp_period();
        let (ticks, _) = bytes.as_chunks::<8>();
        let ticks: Vec<u64> = ticks.iter().map(|b| u64::from_le_bytes(*b)).collect();
        let spans = ticks
            .windows(2)
            .map(|t| t[1].saturating_sub(t[0]) as f32 * period);
        let names = stages.iter().map(|dispatches| {
            let names: Vec<&str> = dispatches.iter().map(|d| d.name.as_str()).collect();
            names.join(" | ")
        });
        Ok(names.zip(spans).collect())
    }
}

impl Dispatch {
    fn encode(&self, pass: &mut wgpu::ComputePass<'_>) {
        pass.set_pipeline(&self.kernel.pipeline);
        pass.set_bind_group(0, &self.group, &[]);
        pass.set_immediates(0, &self.immediates);
        let [x, y, z] = self.groups;
        pass.dispatch_workgroups(x, y, z);
    }
}

/// Copies ranges of buffers to the host, after everything submitted, with one wait.
pub(crate) fn read(
    gpu: &Gpu,
    staging: &mut Option<wgpu::Buffer>,
    parts: &mut [(Bound<'_>, &mut [u8])],
) -> Result<(), BackendError> {
    let total: u64 = parts.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    if total == 0 {
        return Ok(());
    }
    let room = staging
        .take()
        .filter(|buffer| buffer.size() >= total)
        .unwrap_or_else(|| {
            gpu.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("read back"),
                size: total.next_power_of_two().max(4096),
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        });
    let mut encoder = gpu
        .device
        .create_command_encoder(&wgpu::CommandEncoderDescriptor { label: None });
    let mut at = 0;
    for (bound, bytes) in parts.iter() {
        let n = bytes.len() as u64;
        if n > 0 {
            encoder.copy_buffer_to_buffer(bound.buffer, bound.offset, &room, at, n);
        }
        at += n;
    }
    gpu.queue.submit([encoder.finish()]);
    let mapped = std::sync::Arc::new(std::sync::Mutex::new(None));
    let result = Arc::clone(&mapped);
    room.slice(..total)
        .map_async(wgpu::MapMode::Read, move |outcome| {
            *result
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(outcome);
        });
    let failed = |text: String| gpu.failed(text);
    gpu.finish()?;
    let outcome = mapped
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
        .take();
    match outcome {
        Some(Ok(())) => {}
        Some(Err(error)) => return Err(failed(error.to_string())),
        None => return Err(failed("the device did not answer".to_owned())),
    }
    {
        let view = room
            .slice(..total)
            .get_mapped_range()
            .map_err(|error| failed(error.to_string()))?;
        let mut at = 0;
        for (_, bytes) in parts.iter_mut() {
            bytes.copy_from_slice(&view[at..at + bytes.len()]);
            at += bytes.len();
        }
    }
    room.unmap();
    *staging = Some(room);
    Ok(())
}
