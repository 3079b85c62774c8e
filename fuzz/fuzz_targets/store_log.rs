//! The readers of turn logs and journals on arbitrary bytes, as they are and with
//! headers and checksums made good, since no mutation would get past those.
#![no_main]

use ds4_engine::store::{read_journal_bytes, read_log_bytes};
use libfuzzer_sys::fuzz_target;
use xxhash_rust::xxh3::xxh3_64;

/// Writes the header of a log and the checksums that its records ask for.
fn repair_log(log: &mut [u8]) -> Option<()> {
    let (header, mut rest) = log.split_first_chunk_mut::<8>()?;
    *header = *b"DSL2\x02\0\0\0";
    loop {
        let (head, after) = rest.split_first_chunk_mut::<8>()?;
        let n = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        let (body, after) = after.split_at_mut_checked(usize::try_from(n).ok()?)?;
        head[4..].copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
        rest = after;
    }
}

/// Writes the magic of a journal and its checksum.
fn repair_journal(journal: &mut [u8]) -> Option<()> {
    let (body, checksum) = journal.split_last_chunk_mut::<8>()?;
    body.first_chunk_mut::<4>()?.copy_from_slice(b"DSJ2");
    *checksum = xxh3_64(body).to_le_bytes();
    Some(())
}

fn read(log: &[u8], journal: &[u8]) {
    if let Some((_, end)) = read_log_bytes(log) {
        assert!(end <= log.len());
        assert_eq!(read_log_bytes(&log[..end]).map(|(_, end)| end), Some(end));
    }
    if let Some(n_entries) = read_journal_bytes(journal) {
        assert!(n_entries <= journal.len());
    }
}

fuzz_target!(|bytes: &[u8]| {
    read(bytes, bytes);
    let (mut log, mut journal) = (bytes.to_vec(), bytes.to_vec());
    // What is too short to be made good is read as it is.
    let _ = repair_log(&mut log);
    let _ = repair_journal(&mut journal);
    read(&log, &journal);
});
