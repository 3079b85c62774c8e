//! How much memory the machine has to give, and giving some back.

/// Gives memory that was freed back to the system, where the allocator keeps it otherwise: the C
/// library of GNU does, for as long as anything lives behind it.
pub fn give_back_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the call takes a number, may come from any thread at any time, and changes nothing
    // that anybody has allocated.
    unsafe {
        libc::malloc_trim(0);
    }
}

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
    let stat = std::fs::read_to_string("/sys/fs/cgroup/memory.stat").unwrap_or_default();
    left_in_container(&limit, &used, &stat)
}

/// What a container has left: what it uses is not all taken, because the pages of files
/// that it mapped, such as a model's, are given up when memory is wanted.
#[cfg(any(target_os = "linux", test))]
fn left_in_container(limit: &str, used: &str, stat: &str) -> Option<u64> {
    let limit: u64 = limit.trim().parse().ok()?;
    let used: u64 = used.trim().parse().ok()?;
    let of = |name: &str| -> u64 {
        let mut lines = stat.lines().filter_map(|line| line.split_once(' '));
        let found = lines.find(|(found, _)| *found == name);
        found.and_then(|(_, n)| n.trim().parse().ok()).unwrap_or(0)
    };
    let of_files = of("active_file") + of("inactive_file");
    Some(limit.saturating_sub(used.saturating_sub(of_files)))
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

#[cfg(test)]
mod tests {
    use super::left_in_container;

    #[test]
    fn pages_of_a_mapped_model_do_not_count_as_used() {
        let stat = "anon 1000\nfile 6500\nactive_file 2000\ninactive_file 4000\nslab 7\n";
        assert_eq!(left_in_container("10000\n", "8000\n", stat), Some(8000));
        assert_eq!(left_in_container("10000", "8000", ""), Some(2000));
        assert_eq!(left_in_container("max", "8000", stat), None);
        assert_eq!(left_in_container("100", "8000", ""), Some(0));
    }
}
