//! What this machine has.

/// Bytes of memory that a program could take now without pushing others out; `None` where the
/// system does not say.
#[cfg(target_os = "linux")]
pub fn available_memory_bytes() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Bytes of memory that a program could take now without pushing others out; `None` where the
/// system does not say.
#[cfg(not(target_os = "linux"))]
pub fn available_memory_bytes() -> Option<u64> {
    None
}
