//! What others see of a server that is under attack, and what it holds.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::load::process::{holds, peak_mib, reset_peak};
use crate::load::wire::Wire;

use super::PATIENCE;

/// Pause between two questions to `/health`.
const PAUSE: Duration = Duration::from_millis(10);
/// Time after which a server that is left alone should have given back what it took.
const REST: Duration = Duration::from_secs(2);

#[derive(Default)]
pub(crate) struct Watched {
    pub(crate) health: Vec<Duration>,
    pub(crate) peak_mib: Option<f64>,
    pub(crate) after_mib: Option<f64>,
    pub(crate) wrong: Vec<String>,
}

impl Watched {
    /// Number of answers, and milliseconds of the 99th of a hundred and of the last.
    pub(crate) fn health(&self) -> (usize, f64, f64) {
        let mut sorted = self.health.clone();
        sorted.sort();
        let ms = |at: usize| {
            sorted
                .get(at)
                .map_or(f64::INFINITY, |d| d.as_secs_f64() * 1e3)
        };
        let n = sorted.len();
        (
            n,
            ms((n * 99 / 100).min(n.saturating_sub(1))),
            ms(n.saturating_sub(1)),
        )
    }
}

/// Watches a server during an attack.
pub(crate) fn watch<T>(address: SocketAddr, pid: u32, attack: impl FnOnce() -> T) -> (T, Watched) {
    reset_peak(pid);
    let is_over = AtomicBool::new(false);
    let mut watched = Watched::default();
    let result = std::thread::scope(|scope| {
        let prober = scope.spawn(|| probe(address, &is_over));
        let result = attack();
        is_over.store(true, Ordering::Relaxed);
        let (health, wrong) = prober.join().unwrap_or_default();
        watched.health = health;
        watched.wrong = wrong;
        result
    });
    watched.peak_mib = peak_mib(pid);
    std::thread::sleep(REST);
    watched.after_mib = holds(pid).map(|holds| holds.rss_mib);
    (result, watched)
}

fn probe(address: SocketAddr, is_over: &AtomicBool) -> (Vec<Duration>, Vec<String>) {
    let (mut health, mut wrong) = (Vec::new(), Vec::new());
    let mut wire = None;
    while !is_over.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let mut ask = || {
            let open = match wire.take() {
                Some(open) => open,
                None => Wire::open(address, PATIENCE)?,
            };
            let open = wire.insert(open);
            open.send("GET", "/health", "", b"")?;
            let mut head = open.head()?;
            open.body(&mut head)?;
            Ok::<u16, std::io::Error>(head.status)
        };
        match ask() {
            Ok(200) => health.push(begun.elapsed()),
            Ok(status) => wrong.push(format!("/health: {status}")),
            Err(error) => {
                // A connection that waits between two questions may have made room.
                if wire.take().is_none() || begun.elapsed() > PAUSE * 100 {
                    wrong.push(format!("/health: {error}"));
                }
            }
        }
        std::thread::sleep(PAUSE.saturating_sub(begun.elapsed()));
    }
    wrong.truncate(5);
    (health, wrong)
}
