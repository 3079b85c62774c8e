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

/// Bytes that can be allocated without pushing other programs out: pages that are free, that hold
/// parts of files, or that their owners said may go. Without such counts, all that there are.
#[cfg(target_os = "macos")]
pub fn available_bytes() -> Option<u64> {
    let all = sysctl(c"hw.memsize")?;
    let counts = [
        c"vm.page_free_count",
        c"vm.page_pageable_external_count",
        c"vm.page_purgeable_count",
    ];
    let left = || {
        let counts = counts.map(sysctl).into_iter().sum::<Option<u64>>()?;
        Some(left_of_pages(all, counts, sysctl(c"hw.pagesize")?))
    };
    Some(left().unwrap_or(all))
}

/// Bytes that a GPU without memory of its own may hold, weights with them; `None` where the system
/// does not say, or where GPUs have their own.
#[cfg(target_os = "macos")]
pub(crate) fn gpu_bytes() -> Option<u64> {
    let all = sysctl(c"hw.memsize")?;
    let limit = wired_limit(all, sysctl(c"iogpu.wired_limit_mb").unwrap_or(0));
    Some(available_bytes().map_or(limit, |left| left.min(limit)))
}

#[cfg(not(target_os = "macos"))]
pub(crate) fn gpu_bytes() -> Option<u64> {
    None
}

/// A number that macOS tells under a name, of four or eight bytes.
#[cfg(target_os = "macos")]
#[allow(unsafe_code)]
fn sysctl(name: &std::ffi::CStr) -> Option<u64> {
    // Both processors of Macs write the low bytes first: a number of four bytes is right too.
    let mut number: u64 = 0;
    let mut size = std::mem::size_of::<u64>();
    // SAFETY: the name is a C string, and `number` and `size` describe a buffer of eight bytes
    // that outlives the call.
    let status = unsafe {
        libc::sysctlbyname(
            name.as_ptr(),
            (&raw mut number).cast(),
            &mut size,
            std::ptr::null_mut(),
            0,
        )
    };
    (status == 0).then_some(number)
}

/// Bytes of so many pages, of a machine that has `all`.
#[cfg(any(target_os = "macos", test))]
fn left_of_pages(all: u64, n_pages: u64, page_bytes: u64) -> u64 {
    n_pages.saturating_mul(page_bytes).min(all)
}

/// Bytes that Metal keeps in place for a GPU: what `sudo sysctl iogpu.wired_limit_mb=N` sets, and
/// where that is 0, the system's own choice, two thirds of 36 GiB and less and three quarters of more.
#[cfg(any(target_os = "macos", test))]
fn wired_limit(all: u64, set_mib: u64) -> u64 {
    match set_mib {
        0 if all <= 36 << 30 => all / 3 * 2,
        0 => all / 4 * 3,
        mib => mib.saturating_mul(1 << 20).min(all),
    }
}

/// Unknown on this system.
#[cfg(not(any(target_os = "linux", target_os = "macos")))]
pub fn available_bytes() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::{left_in_container, left_of_pages, wired_limit};

    #[test]
    fn pages_of_a_mapped_model_do_not_count_as_used() {
        let stat = "anon 1000\nfile 6500\nactive_file 2000\ninactive_file 4000\nslab 7\n";
        assert_eq!(left_in_container("10000\n", "8000\n", stat), Some(8000));
        assert_eq!(left_in_container("10000", "8000", ""), Some(2000));
        assert_eq!(left_in_container("max", "8000", stat), None);
        assert_eq!(left_in_container("100", "8000", ""), Some(0));
    }

    #[test]
    fn a_macs_memory_is_what_it_can_give_and_its_gpu_gets_the_systems_share() {
        const GIB: u64 = 1 << 30;
        // 128 GiB in pages of 16 KiB, of which 96 GiB can be had.
        assert_eq!(left_of_pages(128 * GIB, 96 * GIB / 16384, 16384), 96 * GIB);
        assert_eq!(left_of_pages(GIB, u64::MAX, 16384), GIB);
        for (all, set_mib, expected) in [
            (36 * GIB, 0, 24 * GIB),
            (128 * GIB, 0, 96 * GIB),
            (128 * GIB, 120 << 10, 120 * GIB),
            (128 * GIB, 999 << 10, 128 * GIB),
        ] {
            assert_eq!(wired_limit(all, set_mib), expected, "{all} {set_mib}");
        }
    }
}
