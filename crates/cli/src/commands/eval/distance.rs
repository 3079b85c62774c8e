//! Stored log-probabilities, and the distance of a model from them.
//!
//! Of every position the [`N_KEPT`] likeliest tokens are kept, and the probability of all others
//! together. The divergence over these classes is at most that over all tokens, and 0 for the same
//! model. `docs/cli.md` has the bytes.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use xxhash_rust::xxh3::xxh3_64;

/// Tokens that are kept of a position.
pub(super) const N_KEPT: usize = 256;
const MAGIC: &[u8; 8] = b"DS4LOGP\0";
const VERSION: u32 = 2;
const HEADER_BYTES: u64 = 32;

/// What is kept of a position.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Kept {
    /// The likeliest tokens, in falling order, the lowest id first among equals.
    ids: Vec<u32>,
    /// Their log-probabilities.
    log_p: Vec<f32>,
}

/// How far a row is from what was kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Distance {
    /// Kullback-Leibler divergence from the stored to this one, natural.
    pub kl: f64,
    /// Both find the same token likeliest.
    pub agrees: bool,
}

impl Kept {
    /// The likeliest tokens of a row of log-probabilities.
    pub(super) fn of(log_p: &[f32]) -> Kept {
        let mut ids: Vec<u32> = (0..log_p.len() as u32).collect();
        let order = |a: &u32, b: &u32| {
            let (x, y) = (log_p[*a as usize], log_p[*b as usize]);
            y.total_cmp(&x).then(a.cmp(b))
        };
        let n = N_KEPT.min(ids.len());
        if n < ids.len() {
            ids.select_nth_unstable_by(n, order);
            ids.truncate(n);
        }
        ids.sort_unstable_by(order);
        let log_p = ids.iter().map(|id| log_p[*id as usize]).collect();
        Kept { ids, log_p }
    }

    /// How far a row of log-probabilities is from this.
    pub(super) fn distance(&self, log_q: &[f32]) -> Distance {
        let (mut kl, mut p_kept, mut q_kept) = (0.0, 0.0, 0.0);
        for (id, log_p) in self.ids.iter().zip(&self.log_p) {
            let (log_p, log_q) = (f64::from(*log_p), f64::from(log_q[*id as usize]));
            kl += log_p.exp() * (log_p - log_q);
            p_kept += log_p.exp();
            q_kept += log_q.exp();
        }
        let (p_rest, q_rest) = (1.0 - p_kept, 1.0 - q_kept);
        // Sums of f32 leave less than this of a rest that is none.
        const NOTHING: f64 = 1e-5;
        if p_rest > NOTHING && q_rest > 0.0 {
            kl += p_rest * (p_rest / q_rest).ln();
        }
        let mut best = 0;
        for (i, x) in log_q.iter().enumerate() {
            if *x > log_q[best] {
                best = i;
            }
        }
        Distance {
            kl: kl.max(0.0),
            agrees: self.ids.first() == Some(&(best as u32)),
        }
    }

    /// Bytes of a position: ids, log-probabilities, and their sum.
    fn record_bytes(n_kept: usize) -> u64 {
        n_kept as u64 * 8 + 4
    }
}

/// A file of stored positions.
pub(super) struct Store {
    file: File,
    n_kept: usize,
    name: String,
}

impl Store {
    /// Makes a file, or goes on with one after `n_positions`.
    ///
    /// # Errors
    /// It cannot be written, or is of another text or vocabulary.
    pub(super) fn create(
        path: &Path,
        n_vocab: usize,
        text: u64,
        n_positions: u64,
    ) -> Result<Store> {
        let name = path.display().to_string();
        if n_positions > 0 {
            let mut store = Store::open(path, n_vocab, text)?;
            let end = HEADER_BYTES + n_positions * Kept::record_bytes(store.n_kept);
            if store.file.metadata()?.len() < end {
                bail!(
                    "{name} has fewer positions than --out says are done: delete both to begin anew"
                );
            }
            drop(store.file);
            store.file = OpenOptions::new()
                .write(true)
                .open(path)
                .with_context(|| name.clone())?;
            store.file.set_len(end)?;
            store.file.seek(SeekFrom::Start(end))?;
            return Ok(store);
        }
        let mut file = File::create(path).with_context(|| format!("cannot write {name}"))?;
        let n_kept = N_KEPT.min(n_vocab);
        let mut header = MAGIC.to_vec();
        header.extend(VERSION.to_le_bytes());
        header.extend((n_vocab as u32).to_le_bytes());
        header.extend((n_kept as u32).to_le_bytes());
        header.extend(0u32.to_le_bytes());
        header.extend(text.to_le_bytes());
        file.write_all(&header)?;
        Ok(Store { file, n_kept, name })
    }

    /// Opens a file of this text and vocabulary.
    ///
    /// # Errors
    /// It is another kind of file, or of another text or vocabulary.
    pub(super) fn open(path: &Path, n_vocab: usize, text: u64) -> Result<Store> {
        let name = path.display().to_string();
        let mut file = File::open(path).with_context(|| name.clone())?;
        let mut header = [0; HEADER_BYTES as usize];
        let word = |header: &[u8; 32], at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        if file.read_exact(&mut header).is_err()
            || &header[..8] != MAGIC
            || word(&header, 8) != VERSION
        {
            bail!("{name} is no file of `ds4 eval --save-logits` of version {VERSION}");
        }
        if word(&header, 12) as usize != n_vocab {
            bail!(
                "{name} is of a vocabulary of {}, and this model has {n_vocab}",
                word(&header, 12)
            );
        }
        let n_kept = word(&header, 16) as usize;
        if n_kept == 0 || n_kept > N_KEPT.min(n_vocab) {
            bail!(
                "{name} keeps {n_kept} tokens of a position, expected up to {N_KEPT}: it is damaged"
            );
        }
        if header[24..32] != text.to_le_bytes() {
            bail!("{name} is of another text, or of pieces of another length");
        }
        Ok(Store { file, n_kept, name })
    }

    /// Appends a position.
    ///
    /// # Errors
    /// As the file system says.
    pub(super) fn put(&mut self, kept: &Kept) -> Result<()> {
        let mut record = Vec::with_capacity(Kept::record_bytes(self.n_kept) as usize);
        kept.ids
            .iter()
            .for_each(|id| record.extend(id.to_le_bytes()));
        kept.log_p
            .iter()
            .for_each(|p| record.extend(p.to_le_bytes()));
        let sum = xxh3_64(&record) as u32;
        record.extend(sum.to_le_bytes());
        self.file
            .write_all(&record)
            .with_context(|| format!("cannot write {}", self.name))
    }

    /// Waits until what was put is on disk.
    ///
    /// # Errors
    /// As the file system says.
    pub(super) fn flush(&mut self) -> Result<()> {
        Ok(self.file.sync_data()?)
    }

    /// Reads a position.
    ///
    /// # Errors
    /// There are fewer, or its tokens are not in the vocabulary.
    pub(super) fn get(&mut self, position: u64, n_vocab: usize) -> Result<Kept> {
        let n = Kept::record_bytes(self.n_kept);
        let mut record = vec![0; n as usize];
        self.file
            .seek(SeekFrom::Start(HEADER_BYTES + position * n))?;
        self.file.read_exact(&mut record).with_context(|| {
            format!(
                "{} ends before position {position}: it was made of fewer pieces",
                self.name
            )
        })?;
        let words = record.as_chunks::<4>().0;
        let (ids, rest) = words.split_at(self.n_kept);
        let (log_p, sum) = rest.split_at(self.n_kept);
        let is_whole = sum == [(xxh3_64(&record[..8 * self.n_kept]) as u32).to_le_bytes()];
        let ids: Vec<u32> = ids.iter().map(|w| u32::from_le_bytes(*w)).collect();
        let log_p: Vec<f32> = log_p.iter().map(|w| f32::from_le_bytes(*w)).collect();
        let is_sound = is_whole
            && ids.iter().all(|id| (*id as usize) < n_vocab)
            && log_p.iter().all(|p| p.is_finite() && *p <= 1e-3);
        if !is_sound {
            bail!("{} is damaged at position {position}", self.name);
        }
        Ok(Kept { ids, log_p })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(seed: f32, n: usize) -> Vec<f32> {
        let logits: Vec<f32> = (0..n).map(|i| 3.0 * (seed * i as f32).sin()).collect();
        super::super::log_probabilities(&logits).unwrap()
    }

    fn full_kl(p: &[f32], q: &[f32]) -> f64 {
        let terms = p
            .iter()
            .zip(q)
            .map(|(p, q)| f64::from(*p).exp() * f64::from(p - q));
        terms.sum()
    }

    #[test]
    fn a_row_is_at_distance_zero_from_itself_and_never_nearer_than_the_classes_allow() {
        for n in [3, 256, 257, 3000] {
            let (p, q) = (row(1.1, n), row(1.3, n));
            let kept = Kept::of(&p);
            let same = kept.distance(&p);
            assert_eq!((same.kl, same.agrees), (0.0, true), "{n}");
            let other = kept.distance(&q);
            let full = full_kl(&p, &q);
            assert!(
                other.kl > 0.0 && other.kl <= full * 1.001 + 1e-6,
                "{n}: {} {full}",
                other.kl
            );
        }
    }

    #[test]
    fn what_is_stored_is_read_again_and_damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let rows = [Kept::of(&row(0.7, 300)), Kept::of(&row(0.9, 300))];
        let mut store = Store::create(&path, 300, 7, 0).unwrap();
        rows.iter().for_each(|kept| store.put(kept).unwrap());
        drop(store);
        // Going on after the first cuts the second off.
        let mut store = Store::create(&path, 300, 7, 1).unwrap();
        store.put(&rows[0]).unwrap();
        let mut store = Store::open(&path, 300, 7).unwrap();
        assert_eq!(store.get(0, 300).unwrap(), rows[0]);
        assert_eq!(store.get(1, 300).unwrap(), rows[0]);
        assert!(store.get(2, 300).is_err());
        assert!(Store::open(&path, 300, 8).is_err());
        assert!(Store::open(&path, 301, 7).is_err());
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[HEADER_BYTES as usize + 3] = 255;
        std::fs::write(&path, &bytes).unwrap();
        assert!(Store::open(&path, 300, 7).unwrap().get(0, 300).is_err());
        for n in 0..HEADER_BYTES as usize {
            std::fs::write(&path, &bytes[..n]).unwrap();
            assert!(Store::open(&path, 300, 7).is_err(), "{n}");
        }
    }
    /// A file with one position of a vocabulary of three.
    const GOLDEN: &str = "4453344c4f475000020000000300000003000000000000000700000000000000010000000000000002000000000080be000000c0000020c074e92238";

    #[test]
    fn the_bytes_are_those_of_the_table_and_any_other_byte_is_an_error() {
        let bytes: Vec<u8> = (0..GOLDEN.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&GOLDEN[i..i + 2], 16).unwrap())
            .collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let kept = Kept::of(&[-2.0, -0.25, -2.5]);
        let mut store = Store::create(&path, 3, 7, 0).unwrap();
        store.put(&kept).unwrap();
        drop(store);
        let found = std::fs::read(&path).unwrap();
        let hex: String = found.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, GOLDEN);
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            Store::open(&path, 3, 7)?.get(0, 3)
        };
        assert_eq!(read(&bytes).unwrap(), kept);
        // Bytes 20 to 24 of the header are not used.
        for n in (0..bytes.len()).filter(|n| !(20..24).contains(n)) {
            assert!(read(&bytes[..n]).is_err(), "cut at {n}");
            let mut damaged = bytes.clone();
            damaged[n] ^= 1 << (n % 8);
            assert!(read(&damaged).is_err(), "byte {n}");
        }
    }
}
