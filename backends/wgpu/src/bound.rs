//! What a kernel is bound to.

use std::collections::HashMap;

use crate::kernels::{GRID_BINDING, Kernel};

/// A range of a buffer, as it is bound.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound<'a> {
    pub(crate) id: u64,
    pub(crate) buffer: &'a wgpu::Buffer,
    pub(crate) offset: u64,
    /// 0 for the whole buffer.
    pub(crate) n_bytes: u64,
}

/// The same, kept.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) id: u64,
    buffer: wgpu::Buffer,
    offset: u64,
    n_bytes: u64,
}

impl Bound<'_> {
    pub(crate) fn held(&self) -> Held {
        Held {
            id: self.id,
            buffer: self.buffer.clone(),
            offset: self.offset,
            n_bytes: self.n_bytes,
        }
    }
}

impl Held {
    pub(crate) fn bound(&self) -> Bound<'_> {
        Bound {
            id: self.id,
            buffer: &self.buffer,
            offset: self.offset,
            n_bytes: self.n_bytes,
        }
    }
}

/// Kernel, then (buffer, offset, size) of every binding.
type GroupKey = (usize, Vec<(u64, u64, u64)>);

/// Bind groups of one backend, each made once. They hold the buffers of ops that are done, so they
/// live no longer than what they belong to.
#[derive(Debug, Default)]
pub(crate) struct BindGroups {
    groups: HashMap<GroupKey, wgpu::BindGroup>,
}

impl BindGroups {
    /// The bind group of a kernel over these buffers.
    pub(crate) fn group(
        &mut self,
        device: &wgpu::Device,
        kernel: &Kernel,
        bound: &[(u32, Bound<'_>)],
    ) -> wgpu::BindGroup {
        let parts = bound
            .iter()
            .map(|(_, b)| (b.id, b.offset, b.n_bytes))
            .collect();
        self.groups
            .entry((kernel.id, parts))
            .or_insert_with(|| {
                let mut entries: Vec<wgpu::BindGroupEntry<'_>> = bound
                    .iter()
                    .map(|(binding, b)| wgpu::BindGroupEntry {
                        binding: *binding,
                        resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                            buffer: b.buffer,
                            offset: b.offset,
                            size: std::num::NonZeroU64::new(b.n_bytes),
                        }),
                    })
                    .collect();
                if let Some(grid) = &kernel.grid {
                    entries.push(wgpu::BindGroupEntry {
                        binding: GRID_BINDING,
                        resource: grid.as_entire_binding(),
                    });
                }
                device.create_bind_group(&wgpu::BindGroupDescriptor {
                    label: None,
                    layout: &kernel.layout,
                    entries: &entries,
                })
            })
            .clone()
    }
}
