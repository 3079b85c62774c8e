//! The readers of turn logs and journals on arbitrary bytes.
#![no_main]

use ds4_engine::store::{read_journal_bytes, read_log_bytes};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some((_, end)) = read_log_bytes(bytes) {
        assert!(end <= bytes.len());
        assert_eq!(read_log_bytes(&bytes[..end]).map(|(_, end)| end), Some(end));
    }
    let _ = read_journal_bytes(bytes);
});
