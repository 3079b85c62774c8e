//! Answering a prompt.

use std::process::Stdio;

use serde_json::Value;

use crate::program::{Ds4, Ran};
use crate::speaking_model::{self, N_VOCAB};

struct Speaker {
    ds4: Ds4,
}

impl Speaker {
    fn new() -> Speaker {
        let ds4 = Ds4::new();
        speaking_model::write(ds4.home());
        Speaker { ds4 }
    }

    fn ask(&self, args: &[&str]) -> Ran {
        let model = ["-m", "speaking.gguf", "--ctx", "1024"];
        self.ds4.run(model.iter().chain(args))
    }
}

#[test]
fn dumped_tokens_are_those_of_the_rendered_prompt() {
    let speaker = Speaker::new();
    let (bos, user, assistant, think, end_think) = (256, 258, 259, 260, 261);
    let ids = |args: &[&str]| -> Vec<u32> {
        let ran = speaker.ask(args);
        let lines = ran.answer().lines();
        let id = |line: &str| {
            line.split('\t')
                .next()
                .expect("an id")
                .parse()
                .expect("an id")
        };
        lines.map(id).collect()
    };
    let text = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
    for (args, expected) in [
        (
            &["--nothink"][..],
            [vec![bos, user], text("Hi"), vec![assistant, end_think]].concat(),
        ),
        (
            &["--think"],
            [vec![bos, user], text("Hi"), vec![assistant, think]].concat(),
        ),
        (
            &["--nothink", "--system", "Be."],
            [
                vec![bos],
                text("Be."),
                vec![user],
                text("Hi"),
                vec![assistant, end_think],
            ]
            .concat(),
        ),
        (
            &["--nothink", "-sys", "Be."],
            [
                vec![bos],
                text("Be."),
                vec![user],
                text("Hi"),
                vec![assistant, end_think],
            ]
            .concat(),
        ),
        // Thinking hard is lowered in a small context.
        (
            &["--think-max"],
            [vec![bos, user], text("Hi"), vec![assistant, think]].concat(),
        ),
    ] {
        let args = [args, &["--dump-tokens", "-p", "Hi"]].concat();
        assert_eq!(ids(&args), expected, "{args:?}");
    }
    let effort = "Reasoning Effort: Absolute maximum";
    let args = [
        "--think-max",
        "--think-max-min-ctx",
        "0",
        "--dump-tokens",
        "-p",
        "Hi",
    ];
    let prefix = text(effort);
    assert_eq!(ids(&args)[..=prefix.len()], [&[bos][..], &prefix].concat());

    let ran = speaker.ask(&["--nothink", "--dump-tokens", "-p", "\u{e9}"]);
    let pieces: Vec<&str> = ran.answer().lines().collect();
    assert_eq!(pieces[0], "256\t\"<｜begin▁of▁sentence｜>\"");
    assert_eq!(pieces[2], "195\t\"\u{fffd}\"", "half a character");
}

#[test]
fn the_answer_is_alone_on_stdout_and_greedy_answers_repeat() {
    let speaker = Speaker::new();
    let ask = || speaker.ask(&["-p", "Hello", "--nothink", "--temp", "0", "-n", "24"]);
    let first = ask();
    assert!(!first.answer().is_empty());
    assert!(first.answer().ends_with('\n'));
    assert!(!first.answer().contains('\x1b'), "{first:?}");
    assert_eq!(first.answer(), ask().answer());
    let closing = first.lines();
    let model = first.stderr.lines().next().unwrap_or_default();
    assert!(
        model.starts_with("model: ") && model.ends_with(", speaking.gguf"),
        "{first:?}"
    );
    assert_eq!(closing.len(), 1, "{first:?}");
    for words in [
        "prefill 9 tokens at",
        "0 cached",
        "decode 24 tokens at",
        "limit of -n",
    ] {
        assert!(closing[0].contains(words), "{words:?}: {}", closing[0]);
    }
    let quiet = speaker.ask(&["-p", "Hello", "--nothink", "--temp", "0", "-n", "24", "-q"]);
    assert_eq!(
        (quiet.answer(), quiet.stderr.as_str()),
        (first.answer(), "")
    );
}

#[test]
fn a_seed_repeats_an_answer_and_another_seed_changes_it() {
    let speaker = Speaker::new();
    let ask = |seed| {
        let ran = speaker.ask(&["-p", "Hello", "--nothink", "-n", "24", "--seed", seed]);
        ran.answer().to_owned()
    };
    assert_eq!(ask("1"), ask("1"));
    assert_ne!(ask("1"), ask("2"));
}

#[test]
fn a_prompt_comes_from_a_flag_a_file_or_stdin() {
    let speaker = Speaker::new();
    std::fs::write(speaker.ds4.home().join("prompt.txt"), "Hello").expect("a writable home");
    let rest = [
        "--nothink",
        "--temp",
        "0",
        "-n",
        "8",
        "-q",
        "-m",
        "speaking.gguf",
    ];
    let from = |args: &[&str]| {
        let ran = speaker.ds4.run_with(args.iter().chain(&rest), b"Hello");
        ran.answer().to_owned()
    };
    // The empty device, which holds nothing to be read with it.
    let alone = |args: &[&str]| {
        let ran = speaker.ds4.run(args.iter().chain(&rest));
        ran.answer().to_owned()
    };
    let expected = alone(&["-p", "Hello"]);
    assert_eq!(alone(&["Hello"]), expected);
    assert_eq!(alone(&["run", "Hello"]), expected);
    assert_eq!(from(&["--prompt-file", "prompt.txt"]), expected);
    assert_eq!(from(&["--prompt-file", "-"]), expected);
    assert_eq!(from(&["-p", "-"]), expected);
    assert_eq!(from(&["-"]), expected);
    assert_eq!(from(&[]), expected);
    assert_eq!(
        from(&["-p", "and this"]),
        alone(&["-p", "Hello\n\nand this"]),
        "what stands on stdin goes before the question"
    );
    assert_eq!(
        speaker
            .ds4
            .run_with(["-p", "Hello"].iter().chain(&rest), b"\n")
            .answer(),
        expected,
        "nothing stands there"
    );
}

#[test]
fn an_answer_as_json_has_its_counts_and_times() {
    let speaker = Speaker::new();
    let args = ["-p", "Hello", "--nothink", "--temp", "0", "-n", "8", "-q"];
    let plain = speaker.ask(&args);
    let ran = speaker.ask(&[&args[..], &["--json"]].concat());
    let answer: Value = serde_json::from_str(ran.answer()).expect("JSON");
    assert_eq!(answer["model"], "a random speaker");
    let content = answer["content"].as_str().expect("text");
    assert_eq!(
        content.trim_end_matches('\n'),
        plain.answer().trim_end_matches('\n')
    );
    assert_eq!(answer["reasoning"], "");
    assert_eq!(answer["finish_reason"], "length");
    for (name, expected) in [
        ("ctx", 1024),
        ("prompt_tokens", 9),
        ("cached_tokens", 0),
        ("computed_tokens", 9),
        ("generated_tokens", 8),
    ] {
        assert_eq!(answer[name], expected, "{name}");
    }
    for name in ["prefill_ms", "prefill_tps", "decode_ms", "decode_tps"] {
        assert!(answer[name].as_f64().expect("a number") > 0.0, "{name}");
    }
    speaker
        .ask(&["--json"])
        .refused(&["standard input is empty"]);
}

#[test]
fn flags_of_other_programs_are_taken_or_answered_by_what_to_say() {
    let speaker = Speaker::new();
    let short = ["-p", "Hello", "--nothink", "--temp", "0", "-n", "4"];
    let with = |flags: &[&str]| speaker.ask(&[&short[..], flags].concat());
    let plain = with(&[]).answer().to_owned();
    assert_eq!(with(&["--cpu"]).answer(), plain);
    let layers = with(&["-ngl", "99", "--mtp", "draft.gguf"]);
    assert_eq!(layers.answer(), plain);
    assert!(
        layers.stderr.contains("-ngl is without effect"),
        "{layers:?}"
    );
    assert!(
        layers.stderr.contains("--mtp is without effect"),
        "{layers:?}"
    );
    // Where there is no such device, one line says what to use.
    for flag in ["--cuda", "--metal"] {
        let ran = with(&[flag]);
        if ran.status != Some(0) {
            ran.refused(&[]);
            assert!(ran.stderr.to_lowercase().contains("cpu"), "{ran:?}");
        }
    }
    let contradiction = with(&["--cpu", "--backend", "reference"]);
    assert_eq!(contradiction.status, Some(2), "{contradiction:?}");
    let endless = ["Hello", "--nothink", "-n", "-1", "-c", "300", "--seed", "1"];
    let endless = speaker
        .ds4
        .run(endless.iter().chain(&["-m", "speaking.gguf"]));
    endless.answer();
}

#[test]
fn a_command_misspelt_and_a_file_in_place_of_a_question_are_answered_by_what_was_meant() {
    let speaker = Speaker::new();
    speaker
        .ask(&["inspct"])
        .refused(&["inspct", "ds4 inspect", "-p inspct"]);
    speaker.ask(&["serv"]).refused(&["ds4 serve"]);
    speaker.ask(&["model.gguf"]).refused(&["-m model.gguf"]);
    speaker
        .ds4
        .run(["chat", "Hello"])
        .refused(&["ds4 chat takes no question"]);
    let served = speaker.ds4.run(["serve", "--no-such-flag"]);
    if cfg!(feature = "server") {
        assert_eq!(served.status, Some(2), "{served:?}");
        assert!(served.stderr.contains("ds4-server"), "{served:?}");
    } else {
        served.refused(&["--features full"]);
    }
}

#[test]
fn reasoning_is_left_out_of_a_pipe_unless_asked_for() {
    let speaker = Speaker::new();
    let args = ["-p", "Hello", "--think", "--temp", "0", "-n", "24", "-q"];
    let hidden = speaker.ask(&args);
    let shown = speaker.ask(&[&args[..], &["--show-reasoning"]].concat());
    assert!(shown.answer().starts_with("<think>\n"), "{shown:?}");
    let (_, content) = shown.answer().split_once("</think>\n\n").expect("the tags");
    assert_eq!(hidden.answer(), content);
}

#[test]
fn logprobs_are_written_for_every_step_and_belong_to_the_answer() {
    let speaker = Speaker::new();
    let ran = speaker.ask(&[
        "-p",
        "Hello",
        "--nothink",
        "--temp",
        "0",
        "-n",
        "6",
        "--dump-logprobs",
        "out.json",
        "--logprobs-top-k",
        "5",
    ]);
    let text = std::fs::read_to_string(speaker.ds4.home().join("out.json")).expect("written");
    let report: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(report["source"], "ds4");
    assert_eq!(report["prompt_tokens"], 9);
    assert_eq!(report["ctx"], 1024);
    assert_eq!(report["top_k"], 5);
    let steps = report["steps"].as_array().expect("steps");
    assert_eq!(steps.len(), 6);
    let mut bytes = Vec::new();
    for (i, step) in steps.iter().enumerate() {
        assert_eq!(step["step"], i);
        let top = step["top_logprobs"].as_array().expect("a list");
        assert_eq!(top.len(), 5);
        assert_eq!(
            top[0]["token"], step["selected"],
            "greedy takes the likeliest"
        );
        assert_eq!(top[0]["logprob"], step["logprob"]);
        let logprobs: Vec<f64> = top
            .iter()
            .map(|t| t["logprob"].as_f64().expect("a number"))
            .collect();
        assert!(
            logprobs.is_sorted_by(|a, b| a >= b) && logprobs[0] <= 0.0,
            "{logprobs:?}"
        );
        let piece = step["selected"]["bytes"].as_array().expect("bytes");
        bytes.extend(piece.iter().map(|b| b.as_u64().expect("a byte") as u8));
    }
    assert_eq!(
        ran.answer().trim_end_matches('\n'),
        String::from_utf8_lossy(&bytes).trim_end_matches('\n')
    );
    assert!(
        report["steps"][0]["selected"]["id"]
            .as_u64()
            .expect("an id")
            < N_VOCAB as u64
    );
}

#[test]
fn without_a_model_the_built_in_one_answers_or_the_error_says_how_to_get_one() {
    let ds4 = Ds4::new();
    let ran = ds4.run(["-p", "Hello", "--nothink", "-n", "8", "-v", "--temp", "0"]);
    let download = match cfg!(feature = "pull") {
        true => "ds4 pull q2",
        false => "hf download antirez/deepseek-v4-gguf",
    };
    let model = ds4_conformance::golden::project_root().join("models/ds4-small-q8_0.gguf");
    if cfg!(feature = "builtin-model") && model.is_file() {
        assert!(!ran.answer().trim().is_empty(), "{ran:?}");
        assert!(ran.stderr.contains("small built-in model"), "{ran:?}");
        assert!(ran.stderr.contains(download), "{ran:?}");
        let args = ["-p", "Hello", "--nothink", "-n", "8", "--temp", "0"];
        let plain = ds4.run(args);
        assert_eq!(plain.answer(), ran.stdout);
        let model = plain.stderr.lines().next().unwrap_or_default();
        assert!(
            model.starts_with("model: ds4 small built-in model") && model.contains("-m FILE"),
            "also without a terminal: {plain:?}"
        );
        let quiet = ds4.run(args.iter().chain(&["-q"]));
        assert_eq!((quiet.answer(), quiet.stderr.as_str()), (ran.answer(), ""));
    } else {
        ran.refused(&["no model", "-m FILE", "$DS4_MODEL", download]);
    }
}

#[test]
fn the_variable_and_the_models_folder_name_a_model_and_the_banner_says_so() {
    let speaker = Speaker::new();
    let home = speaker.ds4.home();
    let args = ["-p", "Hello", "--nothink", "-n", "4", "--temp", "0", "-v"];
    let by_variable = Ran::of(
        speaker
            .ds4
            .command(args)
            .env("DS4_MODEL", "speaking.gguf")
            .output()
            .expect("ds4 starts"),
    );
    by_variable.answer();
    assert!(
        by_variable
            .stderr
            .contains("speaking.gguf, from $DS4_MODEL"),
        "{by_variable:?}"
    );
    let folder = home.join(".local/share/ds4/models");
    std::fs::create_dir_all(&folder).expect("a writable home");
    std::fs::rename(home.join("speaking.gguf"), folder.join("speaking.gguf"))
        .expect("the same disk");
    let by_folder = speaker.ds4.run(args);
    assert_eq!(by_folder.answer(), by_variable.answer());
    assert!(
        by_folder
            .stderr
            .contains("in the models folder, the first by name"),
        "{by_folder:?}"
    );
    // What lies here comes before what lies at home.
    std::fs::create_dir(home.join("gguf")).expect("a writable home");
    std::fs::copy(folder.join("speaking.gguf"), home.join("gguf/one.gguf")).expect("a copy");
    let here = speaker.ds4.run(args);
    assert!(
        here.stderr.contains("gguf/one.gguf, in the folder gguf"),
        "{here:?}"
    );
    std::fs::rename(home.join("gguf/one.gguf"), home.join("ds4flash.gguf")).expect("a name");
    let here = speaker.ds4.run(args);
    assert!(
        here.stderr.contains("ds4flash.gguf, in the working folder"),
        "{here:?}"
    );
    assert_eq!(here.answer(), by_variable.answer());
}

#[test]
fn an_error_names_the_variable_that_named_the_file() {
    let ds4 = Ds4::new();
    std::fs::write(ds4.home().join("page.gguf"), "a page of a web site").expect("a writable home");
    for file in ["none.gguf", "page.gguf"] {
        let output = ds4
            .command(["-p", "Hello"])
            .env("DS4_MODEL", file)
            .output()
            .expect("ds4 starts");
        Ran::of(output).refused(&["$DS4_MODEL", file]);
    }
}

#[test]
fn a_context_longer_than_the_models_is_lowered_with_a_warning() {
    let speaker = Speaker::new();
    let args = ["-p", "Hello", "--nothink", "-n", "4", "-m", "speaking.gguf"];
    let ran = speaker.ds4.run(args.iter().chain(&["--ctx", "100000"]));
    ran.answer();
    let warning = ran.lines()[0];
    for words in ["100000", "a random speaker", "4,096"] {
        assert!(warning.contains(words), "{words:?}: {ran:?}");
    }
}

#[test]
fn a_reader_that_leaves_ends_the_program_quietly() {
    let speaker = Speaker::new();
    let mut command = speaker.ds4.command(["text", "parse"]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("ds4 starts");
    drop(child.stdout.take());
    let mut input = child.stdin.take().expect("a pipe");
    let writer = std::thread::spawn(move || {
        for _ in 0..100_000 {
            if std::io::Write::write_all(&mut input, b"{\"id\":1,\"text\":\"a\"}\n").is_err() {
                break;
            }
        }
    });
    let ran = Ran::of(child.wait_with_output().expect("ds4 ends"));
    writer.join().expect("the writer ends");
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""));
}

#[cfg(unix)]
#[test]
fn nobody_on_standard_error_changes_no_answer_and_no_status() {
    let speaker = Speaker::new();
    let home = speaker.ds4.home();
    // By a shell, which gives the number to nothing, and with a reader that has gone.
    let without = |args: &[&str], is_closed: bool| -> (Option<i32>, Vec<u8>) {
        let mut command = match is_closed {
            true => {
                let mut shell = std::process::Command::new("sh");
                shell.args(["-c", "exec \"$0\" \"$@\" 2>&-", env!("CARGO_BIN_EXE_ds4")]);
                shell.args(args).current_dir(home).env("HOME", home);
                shell.env_remove("DS4_MODEL").stdin(Stdio::null());
                shell
            }
            false => {
                let mut command = speaker.ds4.command(args);
                command.stderr(Stdio::piped());
                command
            }
        };
        let mut child = command.stdout(Stdio::piped()).spawn().expect("it starts");
        drop(child.stderr.take());
        let output = child.wait_with_output().expect("it ends");
        (output.status.code(), output.stdout)
    };
    let answers = [
        "-p",
        "Hello",
        "-m",
        "speaking.gguf",
        "--nothink",
        "--temp",
        "0",
        "-n",
        "8",
        "-v",
    ];
    let expected = speaker.ds4.run(answers).answer().as_bytes().to_vec();
    for is_closed in [true, false] {
        assert_eq!(
            without(&answers, is_closed),
            (Some(0), expected.clone()),
            "{is_closed}"
        );
        let fails = ["-p", "Hello", "-m", "none.gguf"];
        assert_eq!(
            without(&fails, is_closed),
            (Some(1), Vec::new()),
            "{is_closed}"
        );
        let bench = [
            "bench",
            "-m",
            "speaking.gguf",
            "--contexts",
            "16",
            "-n",
            "1",
        ];
        let (status, table) = without(&bench, is_closed);
        assert_eq!((status, table.is_empty()), (Some(0), false), "{is_closed}");
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_an_answer_and_keeps_what_was_said() {
    let speaker = Speaker::new();
    let args = [
        "-p",
        "Hello",
        "--nothink",
        "-m",
        "speaking.gguf",
        "--ctx",
        "4096",
        "--seed",
        "1",
    ];
    let mut command = speaker.ds4.command(args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("ds4 starts");
    let mut first = [0];
    let mut stdout = child.stdout.take().expect("a pipe");
    std::io::Read::read_exact(&mut stdout, &mut first).expect("it begins to answer");
    let kill = std::process::Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(kill.expect("kill runs").success());
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut stdout, &mut rest).expect("it ends its answer");
    let ran = Ran::of(child.wait_with_output().expect("ds4 ends"));
    if ran.status == Some(0) {
        // The answer was complete before the signal came.
        return;
    }
    assert_eq!(ran.status, Some(130), "{ran:?}");
    assert!(ran.stderr.contains("; stopped"), "{ran:?}");
    assert_eq!(rest.last(), Some(&b'\n'), "the line is ended");
}
