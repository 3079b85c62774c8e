//! How fast prompts are computed and states are read, as measured.

use std::time::Duration;

use super::MIXED_CHUNK;

/// Tokens that a stored state must be ahead of the slots to be read, however fast that
/// would be.
pub const MIN_LOAD_GAIN: usize = 64;
/// Bytes a second at which states are read, until one was read.
pub const READ_RATE: f64 = (256 << 20) as f64;
/// Fewest prompt tokens of a step, however slow the device.
pub const MIN_PREFILL_ROWS: usize = 16;
/// Prompt tokens of a step that may take only so long, while it is not known how long steps take.
pub const FIRST_ROWS: usize = 32;
/// Weight of the last step in the rate of prefill.
const WEIGHT: f64 = 0.25;
/// Loads that the rate of reading remembers.
const N_LOADS: usize = 8;

/// What was measured so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Rates {
    /// Tokens a second, a mean in which a step counts less with every later one.
    prefill: Option<f64>,
    /// The same of prompt tokens beside decoding sequences, whose rows cost little more.
    mixed: Option<f64>,
    /// Bytes a second of the last loads. The best of them counts: what else the
    /// machine did slows a load down, and nothing speeds it up.
    loads: [f64; N_LOADS],
    n_loads: usize,
}

impl Rates {
    /// A step of prompt tokens alone.
    pub(super) fn note_prefill(&mut self, n_tokens: usize, time: Duration) {
        if n_tokens >= MIN_PREFILL_ROWS {
            note(&mut self.prefill, n_tokens, time);
        }
    }

    /// A step of `n_tokens` prompt tokens beside others.
    pub(super) fn note_mixed(&mut self, n_tokens: usize, time: Duration) {
        if n_tokens >= MIN_PREFILL_ROWS {
            note(&mut self.mixed, n_tokens, time);
        }
    }

    /// How long computing so many prompt tokens takes, once that is known.
    pub(super) fn prefill_time(&self, n_tokens: usize) -> Option<Duration> {
        let seconds = n_tokens as f64 / self.prefill?;
        Duration::try_from_secs_f64(seconds).ok()
    }

    /// Prompt tokens of a step that takes no longer than this.
    pub(super) fn prefill_rows(&self, time: Option<Duration>) -> usize {
        match (self.prefill, time) {
            (_, None) => usize::MAX,
            (None, Some(_)) => FIRST_ROWS,
            (Some(rate), Some(time)) => rows_in(rate, time),
        }
    }

    /// The same of a step in which others are decoding, which is hardly faster than one alone.
    pub(super) fn mixed_rows(&self, time: Option<Duration>) -> usize {
        let known = self.mixed.or(self.prefill).zip(time);
        known.map_or(MIXED_CHUNK, |(rate, time)| rows_in(rate, time))
    }

    /// A state that was read and put into a slot.
    pub(super) fn note_load(&mut self, n_bytes: u64, time: Duration) {
        if !time.is_zero() {
            self.loads[self.n_loads % N_LOADS] = n_bytes as f64 / time.as_secs_f64();
            self.n_loads += 1;
        }
    }

    /// Whether reading `n_bytes` is worth it, when it saves the computing of
    /// `n_tokens`. Before a prompt was computed any but the smallest gain is.
    pub(super) fn is_worth_loading(&self, n_tokens: usize, n_bytes: u64) -> bool {
        let read = match self.n_loads {
            0 => READ_RATE,
            _ => self.loads.iter().copied().fold(0.0, f64::max),
        };
        let is_faster = match self.prefill {
            None => true,
            Some(prefill) => n_bytes as f64 / read < n_tokens as f64 / prefill,
        };
        n_tokens >= MIN_LOAD_GAIN && is_faster
    }
}

fn note(mean: &mut Option<f64>, n_tokens: usize, time: Duration) {
    if !time.is_zero() {
        let rate = n_tokens as f64 / time.as_secs_f64();
        let before = mean.unwrap_or(rate);
        *mean = Some(before + WEIGHT * (rate - before));
    }
}

fn rows_in(rate: f64, time: Duration) -> usize {
    ((rate * time.as_secs_f64()) as usize).max(MIN_PREFILL_ROWS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_has_as_many_rows_as_its_time_allows() {
        let mut rates = Rates::default();
        assert_eq!(rates.prefill_rows(Some(SECOND)), FIRST_ROWS);
        assert_eq!(rates.mixed_rows(Some(SECOND)), MIXED_CHUNK);
        rates.note_prefill(400, SECOND);
        assert_eq!(rates.mixed_rows(Some(SECOND / 10)), 40);
        rates.note_mixed(100, SECOND);
        assert_eq!(rates.prefill_rows(Some(SECOND / 2)), 200);
        assert_eq!(rates.mixed_rows(Some(SECOND / 2)), 50);
        assert_eq!(rates.mixed_rows(Some(SECOND / 100)), MIN_PREFILL_ROWS);
        assert_eq!(rates.prefill_rows(Some(Duration::MAX)), usize::MAX);
        assert_eq!(rates.prefill_rows(None), usize::MAX);
        assert_eq!(rates.mixed_rows(None), MIXED_CHUNK);
    }

    /// A machine on which a step takes some time, and every row some more.
    #[test]
    fn steps_come_to_take_the_time_they_may_however_long_the_first_one_took() {
        let limit = 0.8;
        for (name, a_step, a_row, first) in [
            // The whole model on four cores: most experts are read by any step of some rows.
            ("slow", 0.4, 0.02, 1.0),
            // Its file is not in memory yet.
            ("cold", 0.4, 0.02, 60.0),
            ("laptop", 0.1, 0.004, 1.0),
            ("large device", 0.004, 0.000_1, 1.0),
            ("too slow for any", 2.0, 0.1, 1.0),
        ] {
            let mut rates = Rates::default();
            let mut n_rows = rates.prefill_rows(Some(Duration::from_secs_f64(limit)));
            assert_eq!(n_rows, FIRST_ROWS, "{name}");
            let mut seconds = first * (a_step + a_row * n_rows as f64);
            for _ in 0..40 {
                rates.note_prefill(n_rows, Duration::from_secs_f64(seconds));
                n_rows = rates.prefill_rows(Some(Duration::from_secs_f64(limit)));
                seconds = a_step + a_row * n_rows as f64;
            }
            let least = a_step + a_row * MIN_PREFILL_ROWS as f64;
            assert!(
                seconds < limit.max(least) * 1.05,
                "{name}: {n_rows} rows in {seconds} s"
            );
            assert!(
                seconds > limit * 0.9 || n_rows == MIN_PREFILL_ROWS,
                "{name}: {seconds} s"
            );
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_load_is_worth_it_when_computing_takes_longer() {
        let mut rates = Rates::default();
        assert!(!rates.is_worth_loading(MIN_LOAD_GAIN - 1, 0));
        assert!(rates.is_worth_loading(MIN_LOAD_GAIN, u64::MAX));
        // 1,000 tokens a second: a second of reading is worth 1,000 tokens.
        rates.note_prefill(1000, SECOND);
        let second = READ_RATE as u64;
        assert!(rates.is_worth_loading(1001, second));
        assert!(!rates.is_worth_loading(999, second));
        // A disk of a tenth of that.
        rates.note_load(second / 10, SECOND);
        assert!(!rates.is_worth_loading(1001, second));
        assert!(rates.is_worth_loading(10_001, second));
        // One slow load among faster ones says nothing about the disk.
        rates.note_load(second, SECOND);
        rates.note_load(1, SECOND);
        assert!(rates.is_worth_loading(1001, second));
        // A few rows do not say how fast a prompt is computed.
        rates.note_prefill(MIN_PREFILL_ROWS - 1, 10 * SECOND);
        assert!(!rates.is_worth_loading(999, second));
    }
}
