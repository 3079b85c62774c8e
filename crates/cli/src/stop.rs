//! What tells a server to stop, and what ends it at once.

use std::fs::{File, Metadata};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::sync::watch;

use crate::interrupt::EXIT_STATUS;

/// Exit statuses of programs that these signals ended, as shells report them.
#[cfg(unix)]
const HANGUP_STATUS: u8 = 129;
#[cfg(unix)]
const TERMINATED_STATUS: u8 = 143;
/// Time between two looks at the served file.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Says when to stop. Reasons can be given by many.
#[derive(Clone)]
pub(crate) struct Stop {
    reason: watch::Sender<Option<String>>,
}

impl Stop {
    /// Ctrl+C, SIGTERM (by which services are stopped) and SIGHUP (a terminal that is closed) are
    /// reasons from now on. The second of them ends the program at once, whatever it does: the
    /// thread that waits for it does nothing else.
    pub(crate) fn watch_signals() -> Result<Stop> {
        let stop = Stop {
            reason: watch::channel(None).0,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .context("cannot watch for signals")?;
        let mut signals = {
            let _entered = runtime.enter();
            Signals::watch()?
        };
        let told = stop.clone();
        std::thread::Builder::new()
            .name("ds4-signals".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    signals.next().await;
                    told.because("stopping; running requests may finish");
                    let status = signals.next().await;
                    std::process::exit(i32::from(status));
                });
            })
            .context("cannot watch for signals")?;
        Ok(stop)
    }

    /// Gives a reason. The first one counts.
    pub(crate) fn because(&self, reason: &str) {
        self.reason.send_if_modified(|given| {
            let is_first = given.is_none();
            given.get_or_insert_with(|| reason.to_owned());
            is_first
        });
    }

    /// Waits for a reason.
    pub(crate) async fn reason(&self) -> String {
        let mut reasons = self.reason.subscribe();
        // The sender is here, so there is an end to the waiting only by a reason.
        match reasons.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => String::new(),
        }
    }

    /// Looks at a file whose bytes are in use, for as long as the program runs. One that is made
    /// shorter would end the program by a signal, and one that is written to would make nonsense of
    /// every reply; another file in its place does no harm.
    pub(crate) fn watch_file(&self, path: &Path) -> Result<()> {
        let file = File::open(path).with_context(|| path.display().to_string())?;
        let before = seen(&file.metadata()?);
        let (stop, path) = (self.clone(), path.to_owned());
        std::thread::Builder::new()
            .name("ds4-file".to_owned())
            .spawn(move || {
                loop {
                    std::thread::sleep(LOOK_INTERVAL);
                    // A file that cannot be asked says nothing.
                    if file.metadata().is_ok_and(|now| seen(&now) != before) {
                        return stop.because(&format!(
                            "stopping: {} was changed while it is served, and what comes of it \
                             now would be wrong; start again with the file as it should be",
                            path.display()
                        ));
                    }
                }
            })
            .context("cannot watch the model's file")?;
        Ok(())
    }
}

/// What tells one state of a file from another: bytes and time of the last change.
fn seen(file: &Metadata) -> (u64, Option<std::time::SystemTime>) {
    (file.len(), file.modified().ok())
}

struct Signals {
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    hang_up: tokio::signal::unix::Signal,
}

impl Signals {
    /// Watches for them from now on. Needs to be called where a runtime is entered.
    fn watch() -> Result<Signals> {
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            Ok(Signals {
                interrupt: signal(SignalKind::interrupt()).context("cannot watch for Ctrl+C")?,
                terminate: signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?,
                hang_up: signal(SignalKind::hangup()).context("cannot watch for SIGHUP")?,
            })
        }
        #[cfg(not(unix))]
        Ok(Signals {})
    }

    /// Waits for the next one: the exit status of a program that it ends.
    async fn next(&mut self) -> u8 {
        #[cfg(unix)]
        tokio::select! {
            _ = self.interrupt.recv() => EXIT_STATUS,
            _ = self.terminate.recv() => TERMINATED_STATUS,
            _ = self.hang_up.recv() => HANGUP_STATUS,
        }
        #[cfg(not(unix))]
        {
            // One that cannot be watched for never comes.
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending::<()>().await;
            }
            EXIT_STATUS
        }
    }
}
