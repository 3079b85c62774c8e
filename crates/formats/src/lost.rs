//! What is said when a page of a mapped file is gone.
//!
//! A page that cannot be read (the file was made shorter, its disk failed) ends the process by
//! `SIGBUS` when it is touched. That cannot be helped: there is nothing to go on with. But a program
//! can say which file it was.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// Maps whose names are known at once; those beyond have none.
const MAX_NAMED: usize = 64;

/// A mapped file. A place without a name is free.
struct Place {
    name: AtomicPtr<std::ffi::c_char>,
    start: AtomicUsize,
    end: AtomicUsize,
}

static PLACES: [Place; MAX_NAMED] = [const {
    Place {
        name: AtomicPtr::new(std::ptr::null_mut()),
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
    }
}; MAX_NAMED];

/// The name of a map, for as long as this lives.
pub(crate) struct Named(Option<&'static Place>);

/// Names the map of a file.
pub(crate) fn name(path: &Path, map: &[u8]) -> Named {
    let Ok(text) = CString::new(path.as_os_str().as_bytes()) else {
        return Named(None);
    };
    let text = text.into_raw();
    let free = PLACES.iter().find(|place| {
        let null = std::ptr::null_mut();
        let taken = place
            .name
            .compare_exchange(null, text, Ordering::AcqRel, Ordering::Relaxed);
        taken.is_ok()
    });
    match free {
        Some(place) => {
            let range = map.as_ptr_range();
            place.start.store(range.start.addr(), Ordering::Release);
            place.end.store(range.end.addr(), Ordering::Release);
        }
        None => {
            // SAFETY: the pointer came from `into_raw` above, and no place has taken it.
            drop(unsafe { CString::from_raw(text) });
        }
    }
    Named(free)
}

impl Drop for Named {
    fn drop(&mut self) {
        if let Some(place) = self.0 {
            // The name itself stays in memory: another thread may be saying it.
            place.end.store(0, Ordering::Release);
            place.start.store(0, Ordering::Release);
            place.name.store(std::ptr::null_mut(), Ordering::Release);
        }
    }
}

/// What was to be done on `SIGBUS` before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// From now on a lost page of a mapped file is said on standard error, with the name of the file,
/// before it ends the process.
pub fn name_lost_pages() {
    // SAFETY: all bytes zero are a valid `sigaction`, and both calls get pointers to live ones. The
    // handler keeps to what may be called at any moment.
    unsafe {
        let mut before: libc::sigaction = std::mem::zeroed();
        let asked = libc::sigaction(libc::SIGBUS, std::ptr::null(), &mut before);
        if asked != 0 || BEFORE.set(before).is_err() {
            return;
        }
        let mut action: libc::sigaction = std::mem::zeroed();
        let handler: extern "C" fn(_, _, _) = on_lost_page;
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
    }
}

/// Says which file it was and gives way to what was to be done before, by which the touch that is
/// then done again ends the process.
extern "C" fn on_lost_page(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the system gives a valid `info`. Only atomics are read, and only `write`, `strlen` and
    // `sigaction` are called, which POSIX allows in a handler. A name that was read from a place is
    // never freed.
    unsafe {
        let at = (*info).si_addr().addr();
        for place in &PLACES {
            let name = place.name.load(Ordering::Acquire);
            let range = place.start.load(Ordering::Acquire)..place.end.load(Ordering::Acquire);
            if !name.is_null() && range.contains(&at) {
                say(std::slice::from_raw_parts(name.cast(), libc::strlen(name)));
                say(
                    b": a part of this file is gone while it is in use: it was made shorter, or \
                      its disk fails; the program ends\n",
                );
            }
        }
        let before = BEFORE.get().map_or(std::ptr::null(), std::ptr::from_ref);
        libc::sigaction(signal, before, std::ptr::null_mut());
    }
}

fn say(bytes: &[u8]) {
    // SAFETY: the pointer and the length are those of a slice.
    // Nothing can be done about a standard error that does not take it.
    let _ = unsafe { libc::write(libc::STDERR_FILENO, bytes.as_ptr().cast(), bytes.len()) };
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Command;

    use super::*;
    use crate::Bytes;

    #[test]
    fn a_lost_page_of_a_file_is_said_with_its_name_and_ends_the_process() {
        let this = std::env::current_exe().expect("this program");
        let run = Command::new(this)
            .args(["--ignored", "--exact", "--nocapture"])
            .arg("lost::tests::touch_a_lost_page")
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&run.stderr);
        assert_eq!(run.status.signal(), Some(libc::SIGBUS), "{said}");
        let line = said.lines().find(|line| line.contains("ds4-lost-"));
        let line = line.unwrap_or_else(|| panic!("no name in {said}"));
        assert!(line.contains("a part of this file is gone"), "{line}");
    }

    #[test]
    #[ignore = "ends the process; the test above runs it"]
    fn touch_a_lost_page() {
        let path = std::env::temp_dir().join(format!("ds4-lost-{}", std::process::id()));
        std::fs::write(&path, vec![1; 1 << 16]).expect("written");
        let other = Bytes::open(&path).expect("mapped");
        let bytes = Bytes::open(&path).expect("mapped");
        drop(other);
        name_lost_pages();
        let file = File::options().write(true).open(&path).expect("a file");
        file.set_len(0).expect("made shorter");
        std::fs::remove_file(&path).expect("removed");
        assert_eq!(bytes[1 << 15], 1, "it was there");
    }

    #[test]
    fn more_maps_than_there_are_names_are_maps_without_one() {
        let path = Path::new("a file");
        let named: Vec<Named> = (0..2 * MAX_NAMED).map(|_| name(path, &[1, 2])).collect();
        assert!(named.iter().any(|named| named.0.is_none()));
        drop(named);
        assert!(name(path, &[1]).0.is_some());
    }
}
