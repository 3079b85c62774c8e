//! A conversation on a terminal.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};
use serde_json::Value;

use crate::program::Ds4;
use crate::speaking_model;

/// How long an answer may take before it counts as missing.
const PATIENCE: Duration = Duration::from_secs(120);

/// `ds4` on a terminal of its own.
struct Terminal {
    ds4: Ds4,
    child: Child,
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    shown: String,
}

impl Terminal {
    fn new(args: &[&str]) -> Terminal {
        let ds4 = Ds4::new();
        speaking_model::write(ds4.home());
        Terminal::in_home(ds4, args)
    }

    /// Another one where one was before.
    fn in_home(ds4: Ds4, args: &[&str]) -> Terminal {
        Terminal::running(ds4, &[&["-m", "speaking.gguf"], args].concat())
    }

    fn running(ds4: Ds4, args: &[&str]) -> Terminal {
        Terminal::of_columns(0, ds4, args)
    }

    /// One that says how wide it is, unless that is 0.
    fn of_columns(columns: u16, ds4: Ds4, args: &[&str]) -> Terminal {
        let size = Winsize {
            ws_col: columns,
            ws_row: 24,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(Some(&size), None).expect("a terminal");
        let stdio = || Stdio::from(pty.slave.try_clone().expect("another handle"));
        let mut command = ds4.command(args);
        command
            .env("TERM", "xterm")
            .stdin(stdio())
            .stdout(stdio())
            .stderr(stdio());
        let child = command.spawn().expect("ds4 starts");
        drop(command);
        drop(pty.slave);
        let keyboard = File::from(pty.master);
        let mut from = keyboard.try_clone().expect("another handle");
        let (to, screen) = channel();
        // Ends when the last handle of the terminal's other side is closed.
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n) = from.read(&mut bytes) {
                if n == 0 || to.send(bytes[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Terminal {
            ds4,
            child,
            keyboard,
            screen,
            shown: String::new(),
        }
    }

    fn press(&mut self, keys: impl AsRef<[u8]>) {
        let keys = keys.as_ref();
        self.keyboard.write_all(keys).expect("the keys are taken");
    }

    /// Waits until these words are on the screen, and takes what is there up to them.
    #[track_caller]
    fn see(&mut self, words: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.shown.find(words) {
                return self.shown.drain(..at + words.len()).collect();
            }
            let left = until.saturating_duration_since(Instant::now());
            match self.screen.recv_timeout(left) {
                Ok(bytes) => self.shown.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => panic!("{words:?} is not on the screen: {:?}", self.shown),
            }
        }
    }

    /// Enters a line at the prompt.
    #[track_caller]
    fn enter(&mut self, line: &str) {
        self.see("> ");
        self.press(format!("{line}\r"));
    }

    #[track_caller]
    fn ends(mut self) -> Ds4 {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().expect("ds4 can be asked") {
                assert!(status.success(), "{status}: {:?}", self.shown);
                return self.ds4;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.child.kill().expect("ds4 can be ended");
        panic!("ds4 does not end: {:?}", self.shown);
    }

    fn json(&self, name: &str) -> Value {
        let text = std::fs::read_to_string(self.ds4.home().join(name)).expect("a saved file");
        serde_json::from_str(&text).expect("JSON")
    }
}

const SHORT: [&str; 7] = ["--ctx", "1024", "-n", "12", "--temp", "0", "--nothink"];

#[test]
fn a_conversation_grows_is_saved_and_goes_on_from_its_file() {
    let mut terminal = Terminal::new(&SHORT);
    terminal.see("a context of 1,024 tokens");
    terminal.enter("first");
    terminal.see("prefill 9 tokens");
    terminal.enter("two\\\rlines");
    // The second turn finds the first in the cache.
    let closing = terminal.see("decode");
    assert!(!closing.contains(", 0 cached"), "{closing:?}");
    terminal.enter("/save talk.json");
    terminal.see("4 messages in talk.json");
    let saved = terminal.json("talk.json");
    assert_eq!(saved["version"], 1);
    assert_eq!(saved["settings"]["thinking"], "off");
    let messages = saved["messages"].as_array().expect("messages");
    assert_eq!(messages[0]["content"], "first");
    assert_eq!(messages[2]["content"], "two\nlines");
    assert_eq!(messages[1]["role"], "assistant");

    terminal.enter("/clear");
    terminal.see("a new conversation");
    terminal.enter("/status");
    terminal.see("in 0 messages");
    terminal.enter("/load talk.json");
    terminal.see("> first");
    terminal.see("> two");
    terminal.see("4 messages; thinking off");
    terminal.enter("/save again.json");
    terminal.see("4 messages in again.json");
    // Its own file is replaced without a question, another is not.
    terminal.enter("/save again.json");
    terminal.see("4 messages in again.json");
    terminal.enter("/save talk.json");
    terminal.see("talk.json is there already. Overwrite it? [y/N] ");
    terminal.press("n\r");
    terminal.enter("/save talk.json");
    terminal.see("Overwrite it? [y/N] ");
    terminal.press("y\r");
    terminal.see("4 messages in talk.json");
    terminal.enter("/ctx 2048");
    terminal.see("a context of 2,048 tokens");
    terminal.enter("/think");
    terminal.see("thinking on");
    terminal.enter("/quit");
    let home = terminal.ends();
    let read = |name: &str| std::fs::read(home.home().join(name)).expect("a saved file");
    assert_eq!(read("talk.json"), read("again.json"));
}

#[test]
fn messages_are_answered_again_taken_back_and_asked_under_another_system_text() {
    let mut terminal = Terminal::new(&SHORT);
    terminal.enter("first");
    terminal.see("prefill 9 tokens");
    terminal.enter("/retry");
    // The prompt is in the cache.
    let closing = terminal.see("decode");
    assert!(!closing.contains(", 0 cached"), "{closing:?}");
    terminal.enter("second");
    terminal.see("decode");
    terminal.enter("/undo");
    terminal.see("taken back: second");
    terminal.enter("/save talk.json");
    terminal.see("2 messages in talk.json");
    terminal.enter("/system Be brief.");
    terminal.see("the system text is set");
    terminal.enter("/system");
    terminal.see("Be brief.");
    terminal.enter("/temp 0.5");
    terminal.see("temperature 0.5, top-k 0, top-p 1, min-p 0.05");
    terminal.enter("/top-k 40");
    terminal.see("top-k 40");
    terminal.enter("/top-p 0.9");
    terminal.see("top-p 0.9");
    terminal.enter("/min-p 0");
    terminal.see("min-p 0");
    terminal.enter("/seed 7");
    terminal.see("temperature 0.5, top-k 40, top-p 0.9, min-p 0, seed 7");
    // Tab completes what is unambiguous.
    terminal.see("> ");
    terminal.press("/stat\t\r");
    terminal.see("thinking  off");
    terminal.enter("/quit");
    terminal.ends();
}

#[test]
fn a_turn_after_thinking_computes_only_what_is_new() {
    let args = ["--ctx", "2048", "-n", "40", "--think", "--seed", "3"];
    let mut terminal = Terminal::new(&args);
    terminal.enter("first");
    let closing = terminal.see(" t/s, 0 cached; decode ");
    assert!(closing.contains("prefill 9 tokens"), "{closing:?}");
    let n_said: usize = number(&terminal.see(" token"));
    for (i, message) in ["second", "third"].iter().enumerate() {
        terminal.enter(message);
        let closing = terminal.see("decode ");
        let (_, computed) = closing.split_once("prefill ").expect("a closing line");
        let n_computed = number(computed);
        // The last token that was said, end of sentence, user, the message, assistant, think.
        assert!(n_computed <= message.len() + 5, "{closing:?}");
        let (_, cached) = closing.rsplit_once("t/s, ").expect("a closing line");
        assert!(number(cached) >= 9 + i + n_said - 1, "{closing:?}");
    }
    terminal.see("> ");
    terminal.press("\x04");
    terminal.ends();
}

#[test]
fn the_last_conversation_goes_on_from_its_state_on_disk() {
    let args = ["--ctx", "4096", "-n", "12", "--temp", "0", "--nothink"];
    let mut terminal = Terminal::new(&args);
    // Long enough to be worth keeping.
    terminal.enter(&"word ".repeat(150));
    terminal.see("decode");
    terminal.enter("/quit");
    let home = terminal.ends();
    let mut terminal = Terminal::in_home(home, &args);
    terminal.see("/resume goes on with the last conversation, 2 messages");
    terminal.enter("/resume");
    terminal.see("> word word");
    terminal.see("2 messages; thinking off");
    terminal.enter("on");
    let closing = terminal.see("decode ");
    let (_, computed) = closing.split_once("prefill ").expect("a closing line");
    assert!(number(computed) < 20, "{closing:?}");
    terminal.enter("/quit");
    let home = terminal.ends();
    let folder = home.home().join(".local/state/ds4/last");
    let mode = std::fs::metadata(&folder).expect("a folder").permissions();
    let mode = std::os::unix::fs::PermissionsExt::mode(&mode);
    assert_eq!(mode & 0o777, 0o700, "what was said is for its owner");
}

#[test]
fn a_private_conversation_leaves_nothing_behind() {
    let mut terminal = Terminal::new(&[&SHORT[..], &["--private"]].concat());
    terminal.enter("first");
    terminal.see("decode");
    terminal.enter("/resume");
    terminal.see("--private");
    terminal.enter("/quit");
    let home = terminal.ends();
    assert!(!home.home().join(".local/state").exists());
}

/// The number that a text begins with, thousands separated.
#[track_caller]
fn number(text: &str) -> usize {
    let digits: String = text
        .chars()
        .take_while(|c| c.is_ascii_digit() || *c == ',')
        .filter(|c| *c != ',')
        .collect();
    digits
        .parse()
        .unwrap_or_else(|_| panic!("a number begins {text:?}"))
}

#[test]
fn what_goes_wrong_is_said_and_the_conversation_goes_on() {
    let mut terminal = Terminal::new(&SHORT);
    let home = terminal.ds4.home().to_owned();
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(home.join(name), bytes).expect("a writable home");
    };
    write("latin1.txt", b"caf\xe9");
    write("long.txt", &b"word ".repeat(300));
    write("short.txt", b"a file");
    for (line, words) in [
        ("/sing", "there is no command /sing"),
        ("/stauts", "did you mean /status?"),
        ("/temp 9", "temperature"),
        ("/retry", "there is nothing to answer again"),
        ("/undo", "there is no message to take back"),
        ("/resume", "there is no conversation to go on with"),
        ("/ctx", "/ctx needs a number"),
        ("/read none.txt", "cannot read none.txt"),
        ("/read latin1.txt", "not UTF-8"),
        ("/read long.txt", "the context holds 1,024"),
        ("/load none.json", "none.json"),
        ("/save no/such/folder/x.json", "cannot write"),
        ("/ctx 99999999", "opened with 4,096 tokens"),
        ("/ctx 1k", "a context of 1,024 tokens"),
    ] {
        terminal.enter(line);
        terminal.see(words);
    }
    // A message that does not fit is taken out again.
    terminal.enter(&"word ".repeat(300));
    terminal.see("the prompt has 1,504 tokens");
    terminal.enter("/read short.txt");
    terminal.see("short.txt goes before your next message");
    terminal.enter("and this");
    terminal.see("prefill");
    terminal.enter("/save talk.json");
    terminal.see("2 messages in talk.json");
    let saved = terminal.json("talk.json");
    assert_eq!(saved["messages"][0]["content"], "a file\n\nand this");
    terminal.see("> ");
    // Ctrl+C clears a line, and leaves on the second empty one.
    terminal.press("abc\x03");
    terminal.see("> ");
    terminal.press("\x03");
    terminal.see("again or Ctrl+D leaves");
    terminal.see("> ");
    // Not twice in a row: something was typed between.
    terminal.press("x");
    terminal.see("x");
    terminal.press("\x7f\x03");
    terminal.see("again or Ctrl+D leaves");
    terminal.see("> ");
    terminal.press("\x03");
    let home = terminal.ends();
    let history = home.home().join(".local/state/ds4/history");
    let mode = std::fs::metadata(&history)
        .expect("a history")
        .permissions();
    let mode = std::os::unix::fs::PermissionsExt::mode(&mode);
    assert_eq!(mode & 0o777, 0o600, "the history is for its owner");
}

#[test]
fn a_byte_that_is_no_text_is_left_out_and_the_conversation_goes_on() {
    let mut terminal = Terminal::new(&SHORT);
    terminal.see("> ");
    // As a terminal in another encoding types it.
    terminal.press(b"caf\xff");
    terminal.see("not UTF-8");
    terminal.see("> caf");
    terminal.press("e\r");
    terminal.see("decode");
    terminal.enter("/save talk.json");
    terminal.see("2 messages in talk.json");
    assert_eq!(terminal.json("talk.json")["messages"][0]["content"], "cafe");
    terminal.enter("/quit");
    let home = terminal.ends();

    // From a pipe the line is lost, and the next one is not.
    let args = ["chat", "-m", "speaking.gguf", "--ctx", "1024", "--private"];
    let ran = home.run_with(args, b"caf\xe9\n/status\n/quit\n");
    assert!(ran.answer().contains("in 0 messages"), "{ran:?}");
    assert!(ran.stderr.contains("not UTF-8"), "{ran:?}");
}

#[test]
fn what_takes_long_says_from_the_beginning_how_far_it_is() {
    let mut terminal = Terminal::new(&SHORT);
    terminal.enter(&"x".repeat(700));
    // Before the first step is over.
    terminal.see("reading 0 of 704 tokens");
    terminal.see("prefill 704 tokens");
    terminal.enter("/quit");
    let home = terminal.ends();
    let bench = [
        "bench",
        "-m",
        "speaking.gguf",
        "--contexts",
        "64,128",
        "-n",
        "2",
    ];
    let mut terminal = Terminal::running(home, &bench);
    terminal.see("warming up");
    for words in [
        "context 64: prefill 0 of 64",
        "context 64: decode 0 of 2",
        "context 128: prefill 0 of 64",
    ] {
        terminal.see(words);
    }
    terminal.ends();
}

#[test]
fn no_word_is_broken_at_the_end_of_a_narrow_terminals_line() {
    let ds4 = Ds4::new();
    speaking_model::write(ds4.home());
    let long = "-m speaking.gguf --ctx 100000 -n 1 --nothink -v --cpu -ngl 99 -p x";
    let args: Vec<&str> = long.split(' ').collect();
    let mut terminal = Terminal::of_columns(32, ds4, &args);
    let shown = terminal.see("limit of -n") + &terminal.see("\n");
    terminal.ends();
    let mut lines = Vec::new();
    for line in shown.lines() {
        // Without styles, and of a line that was replaced the last state.
        let line = line
            .trim_end_matches('\r')
            .rsplit('\r')
            .next()
            .unwrap_or_default();
        let mut text = String::new();
        let mut parts = line.split("\x1b[");
        text.push_str(parts.next().unwrap_or_default());
        for part in parts {
            text.push_str(
                part.split_once(char::is_alphabetic)
                    .map_or("", |(_, text)| text),
            );
        }
        assert!(text.chars().count() <= 32, "{text:?} in {shown:?}");
        lines.push(text);
    }
    let whole = lines.join(" ");
    for words in [
        "-ngl is without effect: --backend says what computes, and takes all layers",
        "is longer than that of a random speaker: opened with 4,096 tokens",
        "decode 1 token at",
    ] {
        assert!(whole.contains(words), "{words:?} is not in {whole:?}");
    }
}

#[test]
fn ctrl_c_stops_the_reading_of_a_prompt_and_what_was_read_counts() {
    // On a machine that runs the test late the prompt may be read before the key is pressed; not
    // twenty times.
    for _ in 1..=20 {
        let args = ["--ctx", "4096", "--chunk", "4", "-n", "4", "--nothink"];
        let mut terminal = Terminal::new(&args);
        terminal.enter(&"x".repeat(3500));
        terminal.see("reading 0 of 3,504 tokens");
        let id = nix::unistd::Pid::from_raw(terminal.child.id() as i32);
        nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGINT).expect("it lives");
        terminal.see("prefill ");
        let closing = terminal.see("decode ") + &terminal.see("\n");
        if !closing.contains(" of 3,504 tokens at ") {
            terminal.enter("/quit");
            terminal.ends();
            continue;
        }
        let n_read = number(&closing);
        assert!(n_read < 3504, "{closing:?}");
        assert!(closing.contains("; stopped"), "{closing:?}");
        assert!(closing.contains("decode 0 tokens"), "{closing:?}");
        // The conversation goes on after what was read.
        terminal.enter("/undo");
        terminal.see("taken back: xxx");
        terminal.enter(&"x".repeat(3500));
        terminal.see("prefill ");
        let closing = terminal.see("decode ");
        let (_, cached) = closing.rsplit_once("t/s, ").expect("a closing line");
        assert_eq!(number(cached), n_read, "{closing:?}");
        terminal.enter("/quit");
        terminal.ends();
        return;
    }
    panic!("no reading was stopped");
}

#[test]
fn ctrl_c_stops_a_reply_and_keeps_what_was_said() {
    // A random model may end its reply before the key is pressed; not with twenty seeds.
    for seed in 1..=20 {
        let args = ["--ctx", "4096", "--seed", &seed.to_string(), "--nothink"];
        let mut terminal = Terminal::new(&args);
        terminal.see("> ");
        terminal.press(format!("{}\r", "x".repeat(2000)));
        terminal.see("\u{fffd}");
        let status = std::process::Command::new("kill")
            .args(["-INT", &terminal.child.id().to_string()])
            .status();
        assert!(status.expect("kill runs").success());
        terminal.see("decode");
        let stopped = terminal.see("\n").contains("; stopped");
        terminal.enter("/save talk.json");
        terminal.see("2 messages");
        let reply = &terminal.json("talk.json")["messages"][1];
        assert!(!reply["content"].as_str().expect("text").is_empty());
        assert_eq!(reply["open"] == true, stopped, "{reply}");
        // Before the prompt is there, the key would mean something else.
        terminal.see("> ");
        terminal.press("\x04");
        terminal.ends();
        if stopped {
            return;
        }
    }
    panic!("no reply was stopped");
}
