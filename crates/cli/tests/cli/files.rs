//! Files that are missing, cut off, foreign or cannot be written, a disk without room, and Ctrl+C:
//! the same of every command that works on files.

use std::fs;

use ds4_conformance::golden::project_root;

#[cfg(unix)]
use crate::program::watched;
use crate::program::{Ds4, Ran};

/// A home with a text, the built-in model in parts, and things that are no models.
fn home() -> Ds4 {
    let ds4 = Ds4::new();
    let model = fs::read(small_model()).expect("a model");
    let text = fs::read(project_root().join("LICENSE-MIT")).expect("a text");
    let put = |name: &str, bytes: &[u8]| fs::write(ds4.home().join(name), bytes).expect("a file");
    put("t.txt", &text);
    put("cut.gguf", &model[..model.len() / 2]);
    put("table.gguf", &model[..1000]);
    put("text.gguf", &text);
    put("empty.gguf", b"");
    put("bytes.txt", &[0xff; 4000]);
    fs::create_dir(ds4.home().join("folder.gguf")).expect("a folder");
    fs::create_dir_all(ds4.home().join("v/prompts")).expect("a folder");
    put("v/prompts/p.txt", b"What is 17 + 25?");
    put(
        "v/official.vec",
        b"# ds4-official-logprob-vectors-v1\ncase c 64 1 p.txt\nstep 0 31 1\nend\n",
    );
    ds4
}

fn small_model() -> String {
    let path = project_root().join("models/ds4-small-q8_0.gguf");
    path.to_str().expect("a name").to_owned()
}

#[test]
fn every_command_names_a_model_file_that_it_cannot_use() {
    let ds4 = home();
    for file in [
        "no.gguf",
        "cut.gguf",
        "table.gguf",
        "text.gguf",
        "empty.gguf",
        "folder.gguf",
    ] {
        for args in [
            vec!["verify", file],
            vec!["inspect", file],
            vec!["quantize", file, "o.gguf", "--mix", "keep"],
            vec!["imatrix", "t.txt", "i.gguf", "-m", file],
            vec!["eval", "t.txt", "-m", file],
            vec!["verify", "--vectors", "v", "-m", file],
        ] {
            ds4.run(&args).refused(&[file]);
        }
        assert!(!ds4.home().join("o.gguf").exists(), "{file}");
        assert!(!ds4.home().join("i.gguf").exists(), "{file}");
    }
}

#[test]
fn every_command_names_another_input_that_it_cannot_use() {
    let ds4 = home();
    let model = small_model();
    let eval = ["eval", "t.txt", "--chunk-tokens", "64", "--chunks", "1"];
    for file in ["no", "bytes.txt", "folder.gguf"] {
        ds4.run(["imatrix", file, "i.gguf"]).refused(&[file]);
        ds4.run(["eval", file]).refused(&[file]);
        ds4.run(["eval", "--lines", file]).refused(&[file]);
        ds4.run([&eval[..], &["--kl", file]].concat())
            .refused(&[file]);
        ds4.run([
            "quantize",
            &model,
            "o.gguf",
            "--mix",
            "q2",
            "--imatrix",
            file,
        ])
        .refused(&[file]);
        ds4.run(["verify", "--vectors", file]).refused(&[file]);
    }
}

#[test]
fn every_command_names_a_file_that_it_cannot_write() {
    let ds4 = home();
    let model = small_model();
    let eval = ["eval", "t.txt", "--chunk-tokens", "64", "--chunks", "1"];
    // Nobody makes files in a folder that is none.
    for (place, word) in [("no/x", "no/"), ("t.txt/x", "t.txt/")] {
        ds4.run(["quantize", &model, place, "--mix", "keep"])
            .refused(&["cannot write", word]);
        let args = [
            "imatrix",
            "t.txt",
            place,
            "--chunk-tokens",
            "64",
            "--chunks",
            "1",
        ];
        ds4.run(args).refused(&["cannot write", word]);
        for flag in ["--out", "--save-logits", "--plot"] {
            ds4.run([&eval[..], &[flag, place]].concat())
                .refused(&["cannot write", word]);
        }
    }
}

/// Runs with files limited to so many blocks of 512 bytes, which is how a full disk looks from here.
#[cfg(unix)]
fn without_room(ds4: &Ds4, blocks: u32, args: &[&str]) -> Ran {
    let command = ds4.command::<&str>([]);
    let limited = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    let mut shell = std::process::Command::new("sh");
    shell
        .args(["-c", &limited])
        .arg(command.get_program())
        .args(args);
    shell.current_dir(ds4.home()).env("HOME", ds4.home());
    shell
        .env_remove("DS4_MODEL")
        .env_remove("XDG_DATA_HOME")
        .env_remove("XDG_STATE_HOME");
    Ran::of(
        shell
            .stdin(std::process::Stdio::null())
            .output()
            .expect("a shell"),
    )
}

#[cfg(unix)]
#[test]
fn without_room_on_the_disk_every_command_says_where_and_leaves_no_file_that_looks_whole() {
    let ds4 = home();
    let model = small_model();
    let eval = ["eval", "t.txt", "--chunk-tokens", "64", "--chunks", "1"];
    without_room(&ds4, 2000, &["quantize", &model, "o.gguf", "--mix", "keep"]).refused(&[
        "cannot write",
        "o.gguf",
        "room",
    ]);
    assert!(!ds4.home().join("o.gguf").exists());
    let args = [
        "imatrix",
        "t.txt",
        "i.gguf",
        "--chunk-tokens",
        "64",
        "--chunks",
        "1",
    ];
    without_room(&ds4, 8, &args).refused(&["cannot write", "i.gguf"]);
    assert!(!ds4.home().join("i.gguf").exists());
    for (flag, file) in [("--out", "o.csv"), ("--save-logits", "l")] {
        without_room(&ds4, 1, &[&eval[..], &[flag, file]].concat())
            .refused(&["cannot write", file]);
    }
    without_room(&ds4, 0, &[&eval[..], &["--plot", "p.svg"]].concat())
        .refused(&["cannot write", "p.svg"]);
    fs::copy(&model, ds4.home().join("m.gguf")).expect("a copy");
    without_room(&ds4, 8, &["verify", "m.gguf", "--write-sums"])
        .refused(&["cannot write", "m.gguf.sums"]);
    assert!(!ds4.home().join("m.gguf.sums").exists());
    // With room the same commands do.
    ds4.run(["quantize", &model, "o.gguf", "--mix", "keep"])
        .answer();
    ds4.run(args).answer();
    ds4.run(["verify", "m.gguf", "--write-sums"]).answer();
}

/// Starts a command and presses Ctrl+C once `is_at_work`; says how it ended.
#[cfg(unix)]
fn interrupted(ds4: &Ds4, args: &[&str], is_at_work: impl Fn() -> bool) -> Ran {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use std::process::Stdio;

    let mut command = ds4.command(args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("ds4 starts");
    while !is_at_work() && child.try_wait().expect("a child").is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    // One that has ended meanwhile takes no signal.
    let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGINT);
    Ran::of(child.wait_with_output().expect("it ends"))
}

#[cfg(unix)]
#[test]
fn every_command_shows_how_far_it_is_and_reports_as_one_document() {
    let ds4 = home();
    let model = small_model();
    long_text(&ds4, 12);
    let line = r#"{"prompt": "What is 17 + 25?", "answer": "17 + 25 = 42."}"#;
    let lines = format!("{line}\n").repeat(60);
    fs::write(ds4.home().join("l.jsonl"), lines).expect("a file");
    let slow = "*_exps.weight=IQ1_M";
    let quantize = ["quantize", &model, "o.gguf", "--mix", "q2", "--type", slow];
    for (args, shown, member) in [
        (&quantize[..], " %", "n_tensors"),
        (
            &["imatrix", "long.txt", "i.gguf", "--chunk-tokens", "64"],
            " pieces",
            "n_chunks",
        ),
        (
            &["eval", "long.txt", "--chunk-tokens", "64"],
            " pieces",
            "nll",
        ),
        (
            &["eval", "--lines", "l.jsonl", "--chat"],
            " of 60 lines",
            "continuations",
        ),
        (&["verify", "--quick"], "the backend", "tests"),
        (&["verify", "--recall=2000"], " tokens", "n_right"),
    ] {
        let ran = watched(ds4.command([args, &["--json"]].concat()));
        let report: serde_json::Value = serde_json::from_str(ran.answer()).expect("JSON");
        assert!(!report[member].is_null(), "{args:?}: {report}");
        assert!(ran.stderr.contains(shown), "{args:?}: {ran:?}");
    }
    // A file of this size is checked in a moment.
    fs::copy(&model, ds4.home().join("m.gguf")).expect("a copy");
    let ran = ds4.run(["verify", "m.gguf", "--json"]);
    let report: serde_json::Value = serde_json::from_str(ran.answer()).expect("JSON");
    assert!(report.is_object(), "{report}");
}

/// A text of so many copies of the small one.
#[cfg(unix)]
fn long_text(ds4: &Ds4, copies: usize) {
    let text = fs::read_to_string(ds4.home().join("t.txt")).expect("a text");
    fs::write(ds4.home().join("long.txt"), text.repeat(copies)).expect("a file");
}

/// Interrupts a command that has more and more to do until it is not done before the signal comes:
/// on a busy machine that may be late.
#[cfg(unix)]
fn stopped_half_way(mut attempt: impl FnMut(usize) -> Ran) -> Ran {
    let mut ran = attempt(1);
    for factor in [4, 16] {
        if ran.status == Some(130) {
            break;
        }
        assert_eq!(ran.status, Some(0), "{ran:?}");
        ran = attempt(factor);
    }
    assert_eq!(ran.status, Some(130), "{ran:?}");
    assert!(ran.stderr.contains("goes on"), "{ran:?}");
    ran
}

#[cfg(unix)]
#[test]
fn after_ctrl_c_quantize_goes_on_to_the_same_bytes() {
    let ds4 = home();
    let model = small_model();
    // The experts in the type that takes longest; or all matrices of the layers.
    let args = |out, factor: usize| {
        let slow = if factor == 1 {
            "*_exps.weight"
        } else {
            "blk.*"
        };
        let types = format!("{slow}=IQ1_M");
        let command = [
            "quantize", &model, out, "--mix", "q2", "--type", &types, "-t", "1",
        ];
        command.map(str::to_owned)
    };
    let record = ds4.home().join(".o.gguf.part.json");
    let mut factor = 1;
    stopped_half_way(|f| {
        factor = f;
        let _ = fs::remove_file(ds4.home().join("o.gguf"));
        let args = args("o.gguf", f);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        interrupted(&ds4, &args, || record.exists())
    });
    assert!(record.exists() && !ds4.home().join("o.gguf").exists());
    ds4.run(args("o.gguf", factor)).answer();
    ds4.run(args("whole.gguf", factor)).answer();
    let read = |name: &str| fs::read(ds4.home().join(name)).expect("a file");
    assert!(read("o.gguf") == read("whole.gguf"));
}

#[cfg(unix)]
#[test]
fn after_ctrl_c_an_evaluation_goes_on_to_the_same_report() {
    let ds4 = home();
    let args = |out| {
        [
            "eval",
            "long.txt",
            "--chunk-tokens",
            "64",
            "--json",
            "--out",
            out,
        ]
    };
    let table = ds4.home().join("o.csv");
    // 32 lines a piece, below the two of the head.
    let has_begun = || fs::read_to_string(&table).is_ok_and(|t| t.lines().count() > 34);
    stopped_half_way(|factor| {
        let _ = fs::remove_file(&table);
        long_text(&ds4, 12 * factor);
        interrupted(&ds4, &args("o.csv"), has_begun)
    });
    let report = |text: &str| -> serde_json::Value { serde_json::from_str(text).expect("JSON") };
    let again = report(ds4.run(args("o.csv")).answer());
    assert!(again["n_kept"].as_u64() >= Some(1), "{again}");
    let whole = report(ds4.run(args("whole.csv")).answer());
    assert_eq!(again["nll"], whole["nll"]);
}

#[cfg(unix)]
#[test]
fn after_ctrl_c_scoring_answers_goes_on_to_the_same_table() {
    let ds4 = home();
    let args = |out| ["eval", "--lines", "l.jsonl", "--chat", "--out", out];
    let table = ds4.home().join("o.csv");
    let has_begun = || fs::read_to_string(&table).is_ok_and(|t| t.lines().count() > 2);
    stopped_half_way(|factor| {
        let _ = fs::remove_file(&table);
        let line = |i: usize| {
            let (a, b) = (1 + i % 90, 1 + i / 90);
            let answer = format!("{a} + {b} = {}.", a + b);
            format!(
                "{}\n",
                serde_json::json!({"prompt": format!("What is {a} + {b}?"), "answer": answer})
            )
        };
        let lines: String = (0..120 * factor).map(line).collect();
        fs::write(ds4.home().join("l.jsonl"), lines).expect("a file");
        interrupted(&ds4, &args("o.csv"), has_begun)
    });
    ds4.run(args("o.csv")).answer();
    ds4.run(args("whole.csv")).answer();
    let read = |name: &str| fs::read_to_string(ds4.home().join(name)).expect("a file");
    assert_eq!(read("o.csv"), read("whole.csv"));
}

#[cfg(unix)]
#[test]
fn after_ctrl_c_counting_importances_goes_on_to_the_same_file() {
    let ds4 = home();
    let args = |out| {
        [
            "imatrix",
            "long.txt",
            out,
            "--chunk-tokens",
            "64",
            "--save-seconds",
            "0",
        ]
    };
    let counts = ds4.home().join("i.gguf");
    stopped_half_way(|factor| {
        let _ = fs::remove_file(&counts);
        long_text(&ds4, 6 * factor);
        interrupted(&ds4, &args("i.gguf"), || counts.exists())
    });
    ds4.run(args("i.gguf")).answer();
    ds4.run(args("whole.gguf")).answer();
    let read = |name: &str| fs::read(ds4.home().join(name)).expect("a file");
    assert!(read("i.gguf") == read("whole.gguf"));
}

/// Nothing of a check is kept: after Ctrl+C it begins anew, and says nothing of what it did not see.
#[cfg(unix)]
#[test]
fn after_ctrl_c_verify_has_said_nothing_and_changed_nothing() {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Stdio;

    let ds4 = home();
    fs::copy(small_model(), ds4.home().join("m.gguf")).expect("a copy");
    let before = fs::read_dir(ds4.home()).expect("a folder").count();
    // A signal that is there before the command is at work, wherever it finds it.
    for delay in 0..4 {
        let mut command = ds4.command(["verify", "m.gguf", "--json", "--write-sums"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().expect("ds4 starts");
        std::thread::sleep(std::time::Duration::from_millis(10 * delay));
        let pid = nix::unistd::Pid::from_raw(child.id() as i32);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT);
        let output = child.wait_with_output().expect("it ends");
        // Before it listens for signals the system ends it; or it was done.
        let was_ended = output.status.signal() == Some(2);
        let n_files = fs::read_dir(ds4.home()).expect("a folder").count();
        match output.status.code() {
            Some(0) => fs::remove_file(ds4.home().join("m.gguf.sums")).expect("its sums"),
            code => {
                assert!(code == Some(130) || was_ended, "{output:?}");
                assert!(output.stdout.is_empty(), "{output:?}");
                assert_eq!(n_files, before);
            }
        }
    }
    let ran = ds4.run(["verify", "m.gguf", "--json", "--write-sums"]);
    let report: serde_json::Value = serde_json::from_str(ran.answer()).expect("JSON");
    assert!(report.is_object(), "{report}");
}
