//! What the machine can do, measured with the threads that the benchmark uses.

use std::time::Instant;

use ds4_cpu::Pool;

/// Bytes that are read: larger than any cache.
const N_BYTES: usize = 1 << 30;

/// Bytes a second that `n_threads` threads read from 1 GiB, the best of several passes.
pub(crate) fn read_bandwidth(n_threads: usize) -> f64 {
    let mut pool = Pool::new(n_threads);
    let memory = vec![1u64; N_BYTES / 8];
    let chunk = memory.len() / (64 * n_threads);
    (0..9)
        .map(|_| {
            let start = Instant::now();
            pool.run(memory.len() / chunk, |task, _| {
                std::hint::black_box(sum(&memory[task * chunk..][..chunk]));
            });
            N_BYTES as f64 / start.elapsed().as_secs_f64()
        })
        .fold(0.0, f64::max)
}

/// The sum of all words, with the widest loads there are.
fn sum(words: &[u64]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the machine has the instructions.
        return unsafe { sum_avx512(words) };
    }
    words.iter().fold(0, |sum, word| sum.wrapping_add(*word))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn sum_avx512(words: &[u64]) -> u64 {
    let mut sums = [0u64; 64];
    let (chunks, rest) = words.as_chunks::<64>();
    for chunk in chunks {
        for i in 0..64 {
            sums[i] = sums[i].wrapping_add(chunk[i]);
        }
    }
    rest.iter()
        .chain(&sums)
        .fold(0, |sum, word| sum.wrapping_add(*word))
}
