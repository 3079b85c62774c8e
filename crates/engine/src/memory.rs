//! How much memory the machine has to give.

/// Bytes that can be allocated without pushing other programs out, as the
/// system estimates it; `None` where it does not say.
#[cfg(target_os = "linux")]
pub fn available_bytes() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let machine = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .and_then(|kib| kib.trim().parse::<u64>().ok())
        .map(|kib| kib * 1024)?;
    Some(machine.min(container_limit().unwrap_or(u64::MAX)))
}

/// Memory limit of the control group this process is in, if there is one.
#[cfg(target_os = "linux")]
fn container_limit() -> Option<u64> {
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok()?;
    let used = std::fs::read_to_string("/sys/fs/cgroup/memory.current").ok()?;
    let limit: u64 = limit.trim().parse().ok()?;
    let used: u64 = used.trim().parse().ok()?;
    Some(limit.saturating_sub(used))
}

/// Bytes of physical memory; the system has no estimate of what is free.
#[cfg(target_os = "macos")]
#[allow(unsafe_code)]
pub fn available_bytes() -> Option<u64> {
    let mut bytes: u64 = 0;
    let mut size = std::mem::size_of::<u64>();
    // SAFETY: the name is a C string, and `bytes` and `size` describe a buffer
    // of eight bytes that outlives the call.
    let status = unsafe {
        libc::sysctlbyname(
            c"hw.memsize".as_ptr(),
            (&raw mut bytes).cast(),
            &mut size,
            std::ptr::null_mut(),
            0,
        )
    };
    (status == 0).then_some(bytes)
}

/// Unknown on this system.
#[cfg(not(any(target_os = "linux", target_os = "macos")))]
pub fn available_bytes() -> Option<u64> {
    None
}
