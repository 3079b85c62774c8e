//! What a load amounted to, and whether the server stood it.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use super::process::Holds;

/// Wrong outcomes that are told in full.
const MAX_TOLD: usize = 20;
/// A server leaks files or memory when it holds this many more at the end of the load than at the
/// end of its first quarter, and
const FILES_SLACK: usize = 16;
/// this share and this many MiB more. In between it fills what has a limit: slots, states to
/// return to, turns and responses that clients may refer to.
const MEMORY_SLACK: (f64, f64) = (0.10, 48.0);
/// Longest time that 99 of 100 answers of `/health` may take.
const HEALTH_P99: Duration = Duration::from_millis(50);

/// What the clients saw.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    outcomes: BTreeMap<String, usize>,
    wrong: Vec<String>,
    n_wrong: usize,
    first_text: Vec<Duration>,
    /// Answers of `/health`, and whether a prompt was being computed.
    health: Vec<(Duration, bool)>,
}

impl Tally {
    fn with<T>(&self, change: impl FnOnce(&mut Seen) -> T) -> T {
        change(&mut self.seen.lock().unwrap_or_else(|e| e.into_inner()))
    }

    pub(crate) fn outcome(&self, what: &str) {
        self.with(|seen| *seen.outcomes.entry(what.to_owned()).or_default() += 1);
    }

    pub(crate) fn wrong(&self, what: String) {
        self.with(|seen| {
            seen.n_wrong += 1;
            if seen.wrong.len() < MAX_TOLD {
                seen.wrong.push(what);
            }
        });
    }

    pub(crate) fn first_text(&self, after: Duration) {
        self.with(|seen| seen.first_text.push(after));
    }

    pub(crate) fn health(&self, after: Duration, prefilling: bool) {
        self.with(|seen| seen.health.push((after, prefilling)));
    }
}

/// What was seen from outside the clients.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    /// Time since the start, and what the process held.
    pub(crate) holds: Vec<(Duration, Holds)>,
    /// What it held before and after the load.
    pub(crate) before: Holds,
    pub(crate) after: Holds,
    /// Length of the load.
    pub(crate) lasted: Duration,
    /// Tokens computed and generated meanwhile.
    pub(crate) n_computed: f64,
    pub(crate) n_generated: f64,
    /// Slots that were busy and requests that waited when all clients were gone.
    pub(crate) busy: usize,
    pub(crate) waiting: usize,
    pub(crate) store_bytes: Option<u64>,
    pub(crate) panics: Vec<String>,
    /// How long the server took to end, and whether it ended well.
    pub(crate) ended: Option<(Duration, bool)>,
}

/// The value that this share of the sorted values does not exceed.
fn quantile(sorted: &[Duration], share: f64) -> Duration {
    let at = (sorted.len() as f64 * share).ceil() as usize;
    let at = at.clamp(1, sorted.len().max(1)) - 1;
    sorted.get(at).copied().unwrap_or_default()
}

fn three(name: &str, mut times: Vec<Duration>) -> (String, Duration) {
    times.sort_unstable();
    let ms = |d: Duration| d.as_secs_f64() * 1000.0;
    let p99 = quantile(&times, 0.99);
    let line = format!(
        "{name:<28} {:>8} times   p50 {:>9.2} ms   p99 {:>9.2} ms   max {:>9.2} ms",
        times.len(),
        ms(quantile(&times, 0.5)),
        ms(p99),
        ms(times.last().copied().unwrap_or_default()),
    );
    (line, p99)
}

/// The median of what is told of the samples.
fn median(samples: &[(Duration, Holds)], of: impl Fn(&Holds) -> f64) -> f64 {
    let mut values: Vec<f64> = samples.iter().map(|(_, holds)| of(holds)).collect();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// What speaks against the server: nothing, if it stood the load.
pub(crate) fn print(tally: &Tally, watched: &Watched) -> Vec<String> {
    let mut against = Vec::new();
    let (outcomes, wrong, n_wrong, first_text, health) = tally.with(|seen| {
        (
            seen.outcomes.clone(),
            seen.wrong.clone(),
            seen.n_wrong,
            seen.first_text.clone(),
            seen.health.clone(),
        )
    });
    println!("requests");
    for (what, n) in &outcomes {
        println!("  {n:>8}  {what}");
    }
    println!("  {n_wrong:>8}  with a wrong outcome");
    against.extend(wrong);
    if n_wrong > MAX_TOLD {
        against.push(format!("... and {} more", n_wrong - MAX_TOLD));
    }
    println!("times");
    let while_prefilling = health.iter().filter(|(_, p)| *p).map(|(t, _)| *t).collect();
    let (line, p99) = three("/health", health.into_iter().map(|(t, _)| t).collect());
    println!("  {line}");
    let (line, p99_prefilling) = three("/health during a prefill", while_prefilling);
    println!("  {line}");
    if p99.max(p99_prefilling) > HEALTH_P99 {
        against.push(format!("p99 of /health is above {HEALTH_P99:?}"));
    }
    println!("  {}", three("to the first text", first_text).0);
    let seconds = watched.lasted.as_secs_f64().max(f64::MIN_POSITIVE);
    println!(
        "tokens\n  {:.0} of prompts computed ({:.0}/s), {:.0} generated ({:.0}/s) in {seconds:.0} s",
        watched.n_computed,
        watched.n_computed / seconds,
        watched.n_generated,
        watched.n_generated / seconds,
    );
    println!("process       RSS MiB   threads   files");
    let show = |name: &str, holds: &Holds| {
        let Holds {
            rss_mib,
            n_threads,
            n_files,
        } = holds;
        println!("  {name:<10} {rss_mib:>8.0} {n_threads:>9} {n_files:>7}");
    };
    show("before", &watched.before);
    let step = watched.holds.len().div_ceil(10).max(1);
    for (at, holds) in watched.holds.iter().step_by(step) {
        show(&format!("{:.0} s", at.as_secs_f64()), holds);
    }
    show("after", &watched.after);
    let quarter = watched.holds.len() / 4;
    if quarter > 0 {
        let second = &watched.holds[quarter..2 * quarter];
        let last = &watched.holds[watched.holds.len() - quarter..];
        let memory = |samples| median(samples, |holds| holds.rss_mib);
        let files = |samples| median(samples, |holds| holds.n_files as f64);
        let (share, mib) = MEMORY_SLACK;
        let (was, is) = (memory(second), memory(last));
        println!("  RSS: median of the second quarter {was:.0} MiB, of the last {is:.0} MiB");
        if is > was * (1.0 + share) + mib {
            against.push(format!("RSS grew from {was:.0} to {is:.0} MiB"));
        }
        let (was, is) = (files(second), files(last));
        if is > was + FILES_SLACK as f64 {
            against.push(format!("open files grew from {was:.0} to {is:.0}"));
        }
    }
    if watched.after.n_files > watched.before.n_files + FILES_SLACK {
        against.push(format!(
            "{} files are open when all clients are gone, {} were before",
            watched.after.n_files, watched.before.n_files
        ));
    }
    println!(
        "at the end\n  {} slots busy, {} requests waiting",
        watched.busy, watched.waiting
    );
    if watched.busy + watched.waiting > 0 {
        against.push("slots are busy or requests wait with nobody there".to_owned());
    }
    if let Some(bytes) = watched.store_bytes {
        println!(
            "  {:.1} MiB in the store",
            bytes as f64 / f64::from(1 << 20)
        );
    }
    if let Some((time, well)) = watched.ended {
        println!("  told to stop, it ended after {:.2} s", time.as_secs_f64());
        if !well {
            against.push("it did not end with success".to_owned());
        }
    }
    against.extend(watched.panics.iter().map(|line| format!("a panic: {line}")));
    against
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(rss_mib: f64, n_files: usize) -> Holds {
        Holds {
            rss_mib,
            n_threads: 1,
            n_files,
        }
    }

    fn samples(of: impl Fn(u64) -> Holds) -> Vec<(Duration, Holds)> {
        (0..40).map(|s| (Duration::from_secs(s), of(s))).collect()
    }

    #[test]
    fn quantiles_are_values_that_occurred() {
        let times: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(quantile(&times, 0.5), Duration::from_millis(50));
        assert_eq!(quantile(&times, 0.99), Duration::from_millis(99));
        assert_eq!(quantile(&times[..1], 0.99), Duration::from_millis(1));
        assert_eq!(quantile(&[], 0.99), Duration::ZERO);
    }

    #[test]
    fn growth_hangs_and_slow_health_speak_against_a_server() {
        let good = || Watched {
            holds: samples(|s| holds(100.0 + s.min(9) as f64 * 50.0, 10 + (s % 7) as usize)),
            before: holds(90.0, 10),
            after: holds(550.0, 10),
            ..Watched::default()
        };
        let steady = Tally::default();
        steady.outcome("replied");
        steady.health(Duration::from_millis(1), true);
        assert_eq!(print(&steady, &good()), Vec::<String>::new());

        let leaks = |change: fn(&mut Watched)| {
            let mut watched = good();
            change(&mut watched);
            print(&steady, &watched).len()
        };
        assert_eq!(leaks(|w| w.busy = 1), 1);
        assert_eq!(leaks(|w| w.after.n_files = 60), 1);
        assert_eq!(
            leaks(|w| w.holds = samples(|s| holds(100.0 + 20.0 * s as f64, 10))),
            1
        );
        assert_eq!(
            leaks(|w| w.holds = samples(|s| holds(100.0, 10 + s as usize))),
            1
        );
        assert_eq!(leaks(|w| w.ended = Some((Duration::ZERO, false))), 1);
        let slow = Tally::default();
        slow.health(Duration::from_millis(80), true);
        slow.wrong("no terminal event".to_owned());
        assert_eq!(print(&slow, &good()).len(), 2);
    }
}
