//! Running `ds4` apart from the user's own settings.

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// The program in an empty home.
pub(crate) struct Ds4 {
    home: TempDir,
}

impl Ds4 {
    pub(crate) fn new() -> Ds4 {
        Ds4 {
            home: tempfile::tempdir().expect("a temporary folder"),
        }
    }

    /// The home folder, which is also the working folder.
    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ds4"));
        command
            .args(args)
            .current_dir(self.home())
            .env("HOME", self.home())
            .env_remove("DS4_MODEL")
            .env_remove("XDG_DATA_HOME")
            .env_remove("XDG_STATE_HOME")
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Ran {
        Ran::of(self.command(args).output().expect("ds4 starts"))
    }

    /// Runs with bytes on stdin.
    pub(crate) fn run_with<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
        stdin: &[u8],
    ) -> Ran {
        let mut command = self.command(args);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("ds4 starts");
        let mut input = child.stdin.take().expect("a pipe");
        let stdin = stdin.to_vec();
        // The program may end before it has read everything.
        let writer = std::thread::spawn(move || drop(input.write_all(&stdin)));
        let output = child.wait_with_output().expect("ds4 ends");
        writer.join().expect("the writer ends");
        Ran::of(output)
    }
}

/// Runs a command whose stderr is a terminal; what it left, `stderr` being all that was shown there.
#[cfg(unix)]
pub(crate) fn watched(mut command: Command) -> Ran {
    use std::fs::File;
    use std::io::Read as _;

    let terminal = nix::pty::openpty(None, None).expect("a terminal");
    command
        .env("TERM", "xterm")
        .env_remove("NO_COLOR")
        .stdout(Stdio::piped())
        .stderr(Stdio::from(terminal.slave));
    let child = command.spawn().expect("ds4 starts");
    // The last handle of the terminal's other side here, so that reading ends with the program.
    drop(command);
    let mut screen = File::from(terminal.master);
    let reader = std::thread::spawn(move || {
        let (mut shown, mut bytes) = (Vec::new(), [0; 4096]);
        // It ends with an error where nobody holds the other side.
        while let Ok(n @ 1..) = screen.read(&mut bytes) {
            shown.extend_from_slice(&bytes[..n]);
        }
        shown
    });
    let output = child.wait_with_output().expect("ds4 ends");
    Ran::of(Output {
        stderr: reader.join().expect("the reader ends"),
        ..output
    })
}

/// What a run left.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn of(output: Output) -> Ran {
        Ran {
            status: output.status.code(),
            stdout: String::from_utf8(output.stdout).expect("stdout is text"),
            stderr: String::from_utf8(output.stderr).expect("stderr is text"),
        }
    }

    /// stdout of a run that succeeded.
    #[track_caller]
    pub(crate) fn answer(&self) -> &str {
        assert_eq!(self.status, Some(0), "{self:?}");
        &self.stdout
    }

    /// What stderr says besides which model is open.
    pub(crate) fn lines(&self) -> Vec<&str> {
        let lines = self.stderr.lines();
        lines.filter(|line| !line.starts_with("model: ")).collect()
    }

    /// Checks that the run failed with one line on stderr that has these words in it.
    #[track_caller]
    pub(crate) fn refused(&self, words: &[&str]) {
        assert_eq!(self.status, Some(1), "{self:?}");
        let lines = self.lines();
        assert_eq!(lines.len(), 1, "one line of error: {self:?}");
        assert!(lines[0].starts_with("ds4: "), "{self:?}");
        for word in words {
            assert!(lines[0].contains(word), "{word:?} is not in: {}", lines[0]);
        }
    }
}
