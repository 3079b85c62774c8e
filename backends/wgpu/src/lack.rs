//! What every kernel needs of an adapter, and adapters that are taken to have less than they do.

use std::str::FromStr;

use crate::adapter::WgpuError;

/// Features that every kernel needs.
pub(crate) const NEEDED: wgpu::Features = wgpu::Features::IMMEDIATES;

/// Lanes of the workgroups that do not ask how many there may be.
const LANES: u64 = 256;
/// Bytes of workgroup memory of attention over tiles and of products in f32, with room.
const WORKGROUP_BYTES: u64 = 32 << 10;
/// Storage buffers of the kernel that takes most.
const STORAGE_BUFFERS: u64 = 16;
/// Bytes of a kernel's immediates.
const IMMEDIATE_BYTES: u64 = 64;

/// Something that an adapter is taken not to have: to go around what a driver gets wrong, and for
/// tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// Immediates, without which nothing runs.
    Immediates,
    /// Operations of subgroups.
    Subgroups,
    /// Arithmetic in f16.
    Halves,
    /// Cooperative matrices.
    Matrices,
    /// Products of packed 8-bit integers.
    Integers,
    /// More lanes of a workgroup.
    Lanes(u32),
    /// More bytes of workgroup memory.
    WorkgroupBytes(u32),
    /// More storage buffers of a kernel.
    StorageBuffers(u32),
    /// More bytes of a binding.
    BindingBytes(u64),
    /// More memory, in bytes.
    MemoryBytes(u64),
}

impl Lack {
    pub(crate) fn apply(
        self,
        features: &mut wgpu::Features,
        limits: &mut wgpu::Limits,
        memory_bytes: &mut Option<u64>,
    ) {
        match self {
            Lack::Immediates => features.remove(wgpu::Features::IMMEDIATES),
            Lack::Subgroups => features.remove(wgpu::Features::SUBGROUP),
            Lack::Halves => features.remove(wgpu::Features::SHADER_F16),
            Lack::Matrices => features.remove(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX),
            Lack::Integers => {}
            Lack::Lanes(n) => {
                for limit in [
                    &mut limits.max_compute_invocations_per_workgroup,
                    &mut limits.max_compute_workgroup_size_x,
                ] {
                    *limit = n.min(*limit);
                }
            }
            Lack::WorkgroupBytes(n) => {
                let limit = &mut limits.max_compute_workgroup_storage_size;
                *limit = n.min(*limit);
            }
            Lack::StorageBuffers(n) => {
                let limit = &mut limits.max_storage_buffers_per_shader_stage;
                *limit = n.min(*limit);
            }
            Lack::BindingBytes(n) => {
                let limit = &mut limits.max_storage_buffer_binding_size;
                *limit = n.min(*limit);
            }
            Lack::MemoryBytes(n) => {
                *memory_bytes = Some(memory_bytes.map_or(n, |has| has.min(n)));
            }
        }
    }
}

/// What [`Lack::from_str`] knows.
const NAMES: &str = "immediates, subgroups, f16, matrices, integers, lanes=N, workgroup-bytes=N, \
                     storage-buffers=N, binding-bytes=N, memory-bytes=N";

impl FromStr for Lack {
    type Err = String;

    fn from_str(text: &str) -> Result<Lack, String> {
        let unknown = || format!("{text:?} is nothing that a GPU may lack; there are {NAMES}");
        let Some((name, number)) = text.split_once('=') else {
            return match text {
                "immediates" => Ok(Lack::Immediates),
                "subgroups" => Ok(Lack::Subgroups),
                "f16" => Ok(Lack::Halves),
                "matrices" => Ok(Lack::Matrices),
                "integers" => Ok(Lack::Integers),
                _ => Err(unknown()),
            };
        };
        let wide: u64 = number
            .parse()
            .map_err(|_| format!("{number:?} in {text:?} is no number"))?;
        let number = u32::try_from(wide).unwrap_or(u32::MAX);
        match name {
            "lanes" => Ok(Lack::Lanes(number)),
            "workgroup-bytes" => Ok(Lack::WorkgroupBytes(number)),
            "storage-buffers" => Ok(Lack::StorageBuffers(number)),
            "binding-bytes" => Ok(Lack::BindingBytes(wide)),
            "memory-bytes" => Ok(Lack::MemoryBytes(wide)),
            _ => Err(unknown()),
        }
    }
}

/// Whether the adapter has what every kernel needs.
pub(crate) fn check(
    adapter: &str,
    features: wgpu::Features,
    limits: &wgpu::Limits,
) -> Result<(), WgpuError> {
    if !features.contains(NEEDED) {
        return Err(WgpuError::Feature {
            adapter: adapter.to_owned(),
            lacking: "immediates (push constants)".to_owned(),
        });
    }
    let lanes = limits
        .max_compute_invocations_per_workgroup
        .min(limits.max_compute_workgroup_size_x);
    for (what, has, needs) in [
        ("lanes of a workgroup", u64::from(lanes), LANES),
        (
            "bytes of workgroup memory",
            limits.max_compute_workgroup_storage_size.into(),
            WORKGROUP_BYTES,
        ),
        (
            "storage buffers of a kernel",
            limits.max_storage_buffers_per_shader_stage.into(),
            STORAGE_BUFFERS,
        ),
        (
            "bytes of immediates",
            limits.max_immediate_size.into(),
            IMMEDIATE_BYTES,
        ),
        (
            "workgroups of a dimension",
            limits.max_compute_workgroups_per_dimension.into(),
            crate::record::MAX_GROUPS.into(),
        ),
    ] {
        if has < needs {
            return Err(WgpuError::Limit {
                adapter: adapter.to_owned(),
                what,
                has,
                needs,
            });
        }
    }
    Ok(())
}

/// Bytes of a graphics card's own memory: its largest heap. Devices that share the processor's memory
/// have none of their own, and Metal's limit is the plan's.
#[cfg(not(target_vendor = "apple"))]
pub(crate) fn own_memory(adapter: &wgpu::Adapter, info: &wgpu::AdapterInfo) -> Option<u64> {
    const DEVICE_LOCAL: u32 = 1;
    if info.device_type != wgpu::DeviceType::DiscreteGpu {
        return None;
    }
    // SAFETY: the adapter is only asked for its properties and outlives the borrow.
    let adapter = unsafe { adapter.as_hal::<wgpu::hal::api::Vulkan>() }?;
    let instance = adapter.shared_instance().raw_instance();
    // SAFETY: the physical device is of this instance, which the adapter keeps.
    let memory =
        unsafe { instance.get_physical_device_memory_properties(adapter.raw_physical_device()) };
    memory.memory_heaps[..memory.memory_heap_count as usize]
        .iter()
        .filter(|heap| heap.flags.as_raw() & DEVICE_LOCAL != 0)
        .map(|heap| heap.size)
        .max()
}

/// Metal's devices share the processor's memory.
#[cfg(target_vendor = "apple")]
pub(crate) fn own_memory(_: &wgpu::Adapter, _: &wgpu::AdapterInfo) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_adapter_may_lack_has_a_name() {
        for (text, lack) in [
            ("immediates", Lack::Immediates),
            ("subgroups", Lack::Subgroups),
            ("f16", Lack::Halves),
            ("matrices", Lack::Matrices),
            ("integers", Lack::Integers),
            ("lanes=128", Lack::Lanes(128)),
            ("workgroup-bytes=16384", Lack::WorkgroupBytes(16384)),
            ("storage-buffers=8", Lack::StorageBuffers(8)),
            ("binding-bytes=1", Lack::BindingBytes(1)),
            ("memory-bytes=5000000000", Lack::MemoryBytes(5_000_000_000)),
        ] {
            assert_eq!(text.parse(), Ok(lack));
            assert!(NAMES.contains(text.split('=').next().unwrap_or_default()));
        }
        for wrong in ["", "subgroup", "lanes", "lanes=many", "heat=3"] {
            assert!(wrong.parse::<Lack>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_adapter_below_a_limit_is_named_with_both_numbers() {
        let enough = || wgpu::Limits {
            max_compute_invocations_per_workgroup: 256,
            max_compute_workgroup_size_x: 256,
            max_compute_workgroup_storage_size: 32 << 10,
            max_storage_buffers_per_shader_stage: 16,
            max_immediate_size: 64,
            max_compute_workgroups_per_dimension: 65_535,
            ..wgpu::Limits::default()
        };
        assert_eq!(check("it", NEEDED, &enough()), Ok(()));
        type Less = fn(&mut wgpu::Limits);
        let cases: [(Less, &str); 5] = [
            (|l| l.max_compute_workgroup_size_x = 128, "128 lanes"),
            (
                |l| l.max_compute_workgroup_storage_size = 16 << 10,
                "16384 bytes of workgroup memory",
            ),
            (
                |l| l.max_storage_buffers_per_shader_stage = 8,
                "8 storage buffers",
            ),
            (|l| l.max_immediate_size = 0, "0 bytes of immediates"),
            (
                |l| l.max_compute_workgroups_per_dimension = 1024,
                "1024 workgroups",
            ),
        ];
        for (less, says) in cases {
            let mut limits = enough();
            less(&mut limits);
            let error = check("it", NEEDED, &limits).expect_err("too little");
            let text = error.to_string();
            assert!(text.contains("it has") && text.contains(says), "{text}");
        }
        let error = check("it", wgpu::Features::empty(), &enough()).expect_err("no immediates");
        assert!(error.to_string().contains("immediates"), "{error}");
    }
}
