//! A range of shared, immutable bytes: a mapped file or a buffer.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

/// Shared, immutable bytes. A clone or a slice shares the memory and costs a reference count.
///
/// The first byte lies at an address divisible by [`Bytes::ALIGNMENT`] when the value comes from
/// [`Bytes::map`] or from a `Vec`, so a tensor at an aligned offset can be viewed as numbers in
/// place.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<Owner>,
    start: usize,
    end: usize,
}

enum Owner {
    Buffer(Vec<u8>),
    Map {
        map: memmap2::Mmap,
        /// Says whose it is when a page of it is lost.
        #[cfg(unix)]
        _name: Option<crate::lost::Named>,
    },
}

impl Bytes {
    /// Address alignment, in bytes, of the first byte of a map or a buffer: the default alignment
    /// of tensors in a GGUF file.
    pub const ALIGNMENT: usize = 32;

    /// Maps a file for reading. Pages are read when touched and the system may drop them again.
    ///
    /// The file must stay as it is while any clone lives: if another process shortens it, touching
    /// a lost page ends this process (`SIGBUS` on Unix).
    ///
    /// # Errors
    /// Whatever the system says when it cannot tell the length of the file or map it.
    pub fn map(file: &File) -> io::Result<Bytes> {
        Bytes::map_of(file, None)
    }

    /// The same of the file at a path, whose name is said when a page of it is lost and
    /// [`name_lost_pages`](crate::name_lost_pages) was called.
    ///
    /// # Errors
    /// As [`Bytes::map`], and when the file cannot be opened.
    pub fn open(path: &Path) -> io::Result<Bytes> {
        Bytes::map_of(&File::open(path)?, Some(path))
    }

    #[cfg_attr(not(unix), allow(unused_variables))]
    fn map_of(file: &File, path: Option<&Path>) -> io::Result<Bytes> {
        if file.metadata()?.len() == 0 {
            return Ok(Bytes::from(Vec::new()));
        }
        // SAFETY: the map is read-only and private to this value, and every view of it is a byte
        // slice or numbers for which all bit patterns are valid. That nobody changes the file
        // underneath cannot be enforced here; it is the documented duty of the caller, as for every
        // program that maps its weights, and headers are copied out before they are trusted.
        let map = unsafe { memmap2::Mmap::map(file)? };
        let end = map.len();
        Ok(Bytes {
            owner: Arc::new(Owner::Map {
                #[cfg(unix)]
                _name: path.map(|path| crate::lost::name(path, &map)),
                map,
            }),
            start: 0,
            end,
        })
    }

    /// The bytes of `range`, sharing the memory.
    ///
    /// # Panics
    /// When the range does not lie within `0..self.len()`.
    pub fn slice(&self, range: Range<usize>) -> Bytes {
        assert!(
            range.start <= range.end && range.end <= self.len(),
            "slice {range:?} of {} bytes",
            self.len()
        );
        Bytes {
            owner: Arc::clone(&self.owner),
            start: self.start + range.start,
            end: self.start + range.end,
        }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let all: &[u8] = match &*self.owner {
            Owner::Buffer(buffer) => buffer,
            Owner::Map { map, .. } => map,
        };
        &all[self.start..self.end]
    }
}

impl From<Vec<u8>> for Bytes {
    /// Takes the vector as it is when its memory is aligned, and copies it once when it is not.
    fn from(bytes: Vec<u8>) -> Bytes {
        let len = bytes.len();
        let (buffer, start) = if bytes.as_ptr().addr().is_multiple_of(Bytes::ALIGNMENT) {
            (bytes, 0)
        } else {
            let mut padded: Vec<u8> = Vec::with_capacity(len + Bytes::ALIGNMENT);
            let start = padded.as_ptr().addr().wrapping_neg() % Bytes::ALIGNMENT;
            padded.resize(start, 0);
            padded.extend_from_slice(&bytes);
            (padded, start)
        };
        Bytes {
            owner: Arc::new(Owner::Buffer(buffer)),
            start,
            end: start + len,
        }
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_of_any_length_starts_aligned_and_keeps_its_bytes() {
        for len in 0..200usize {
            let source: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let bytes = Bytes::from(source.clone());
            assert_eq!(&*bytes, &source[..], "length {len}");
            assert_eq!(bytes.as_ptr().addr() % Bytes::ALIGNMENT, 0, "length {len}");
        }
    }

    #[test]
    fn a_slice_of_a_slice_counts_from_the_slice() {
        let bytes = Bytes::from((0..100u8).collect::<Vec<_>>());
        let inner = bytes.slice(10..50).slice(5..7);
        assert_eq!(&*inner, &[15, 16]);
    }

    #[test]
    #[should_panic(expected = "slice 3..6 of 5 bytes")]
    fn a_slice_cannot_reach_past_its_parent() {
        let bytes = Bytes::from(vec![0; 9]).slice(0..5);
        bytes.slice(3..6);
    }

    #[test]
    fn a_mapped_file_reads_as_its_contents_even_when_empty() {
        let path = std::env::temp_dir().join(format!("ds4-bytes-{}", std::process::id()));
        for contents in [&b""[..], &b"weights"[..]] {
            std::fs::write(&path, contents).unwrap();
            let bytes = Bytes::map(&File::open(&path).unwrap()).unwrap();
            assert_eq!(&*bytes, contents);
        }
        std::fs::remove_file(&path).unwrap();
    }
}
