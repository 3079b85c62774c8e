//! `ds4 eval`: predicting, comparing, scoring, and going on.

use std::fs;

use ds4_conformance::golden::project_root;
use serde_json::{Value, json};

use crate::program::Ds4;

fn home() -> Ds4 {
    let ds4 = Ds4::new();
    let text = fs::read_to_string(project_root().join("LICENSE-MIT")).expect("a text");
    fs::write(ds4.home().join("t.txt"), text).expect("a file");
    ds4
}

fn eval(ds4: &Ds4, args: &[&str]) -> Value {
    let text = ["eval", "t.txt", "--chunk-tokens", "64", "--json"];
    let ran = ds4.run([&text[..], args].concat());
    serde_json::from_str(ran.answer()).expect("JSON")
}

#[test]
fn a_model_is_at_distance_zero_from_itself_and_not_from_a_coarser_one() {
    let ds4 = home();
    let own = eval(&ds4, &["--chunks", "4", "--save-logits", "l"]);
    assert_eq!(own["n_tokens"], 4 * 63);
    assert_eq!(own["kl"], Value::Null);
    let same = eval(&ds4, &["--chunks", "4", "--kl", "l", "--plot", "p.svg"]);
    assert_eq!(
        (&same["kl"], &same["top1_agreement"]),
        (&json!(0.0), &json!(1.0))
    );
    assert_eq!(same["nll"], own["nll"]);
    let picture = fs::read_to_string(ds4.home().join("p.svg")).expect("a picture");
    assert!(picture.contains("<polyline"), "{picture}");

    let model = project_root().join("models/ds4-small-q8_0.gguf");
    let model = model.to_str().expect("a name");
    for (ty, least, most) in [("Q6_K", 1e-6, 0.05), ("IQ1_S", 0.2, 20.0)] {
        let file = format!("{ty}.gguf");
        let types = format!("*_exps.weight={ty}");
        ds4.run(["quantize", model, &file, "--mix", "keep", "--type", &types])
            .answer();
        let other = eval(&ds4, &["--chunks", "4", "--kl", "l", "-m", &file]);
        let kl = other["kl"].as_f64().expect("a number");
        assert!((least..most).contains(&kl), "{ty}: {other}");
    }
    // Another way to compute the same model: activations of 8 bits, or of 32 in another order.
    for way in [["--backend", "reference"], ["--simd", "scalar"]] {
        let other = eval(
            &ds4,
            &[&["--chunks", "4", "--kl", "l"][..], &way[..]].concat(),
        );
        let kl = other["kl"].as_f64().expect("a number");
        assert!(kl < 0.01, "{way:?}: {other}");
    }
}

#[test]
fn an_evaluation_goes_on_after_the_last_whole_piece() {
    let ds4 = home();
    let whole = eval(&ds4, &["--chunks", "4", "--save-logits", "l"]);
    eval(
        &ds4,
        &["--chunks", "2", "--out", "o.csv", "--save-logits", "m"],
    );
    // A piece that was cut off is done again.
    let path = ds4.home().join("o.csv");
    let mut text = fs::read_to_string(&path).expect("a file");
    text.truncate(text.len() - 5);
    fs::write(&path, text).expect("a file");
    let again = eval(
        &ds4,
        &["--chunks", "4", "--out", "o.csv", "--save-logits", "m"],
    );
    assert_eq!(
        (&again["n_kept"], &again["n_pieces"]),
        (&json!(1), &json!(4))
    );
    assert_eq!(again["nll"], whole["nll"]);
    let read = |name: &str| fs::read(ds4.home().join(name)).expect("a file");
    assert!(read("l") == read("m"));
    let done = eval(&ds4, &["--chunks", "4", "--out", "o.csv"]);
    assert_eq!((&done["n_kept"], &done["nll"]), (&json!(4), &again["nll"]));
    let fewer = eval(&ds4, &["--chunks", "2", "--out", "o.csv"]);
    assert_eq!(
        (&fewer["n_kept"], &fewer["n_tokens"]),
        (&json!(2), &json!(2 * 63))
    );
    let args = ["eval", "t.txt", "--chunk-tokens", "32"];
    ds4.run([&args[..], &["--out", "o.csv"]].concat())
        .refused(&["o.csv", "already there"]);
    ds4.run([&args[..], &["--kl", "m"]].concat())
        .refused(&["another text"]);
    ds4.run(["eval", "t.txt", "--chunk-tokens", "64", "--kl", "t.txt"])
        .refused(&["t.txt", "no file of"]);
}

#[test]
fn answers_are_scored_and_choices_chosen() {
    let ds4 = home();
    let lines = [
        json!({"prompt": "What is 17 + 25?", "answer": "17 + 25 = 42."}),
        json!({"prompt": "What is 17 + 25?", "answer": "No."}),
        json!({"prompt": "What is 8 + 9?", "choices": ["8 + 9 = 11.", "8 + 9 = 17."], "answer": 1}),
        json!({"prompt": "What is 8 + 9?", "choices": ["8 + 9 = 17.", "8 + 9 = 11."], "answer": 1}),
    ];
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    fs::write(ds4.home().join("l.jsonl"), &text).expect("a file");
    let args = [
        "eval", "--lines", "l.jsonl", "--chat", "--json", "--out", "o.csv",
    ];
    let run = |more: &[&str]| -> Value {
        let ran = ds4.run([&args[..], more].concat());
        serde_json::from_str(ran.answer()).expect("JSON")
    };
    run(&["--chunks", "1"]);
    let report = run(&[]);
    assert_eq!(report["n_kept"], 1);
    for (kind, n_right) in [("continuations", 1), ("choices", 1)] {
        assert_eq!(report[kind]["n"], 2, "{report}");
        assert_eq!(report[kind]["n_right"], n_right, "{report}");
    }
    for (line, word) in [
        ("{", "line 1"),
        (
            r#"{"prompt":"a","answer":3,"choices":["b"]}"#,
            "none of 1 choices",
        ),
        (r#"{"prompt":"a","answer":""}"#, "no tokens"),
        ("", "no lines"),
    ] {
        fs::write(ds4.home().join("l.jsonl"), line).expect("a file");
        ds4.run(["eval", "--lines", "l.jsonl"])
            .refused(&["l.jsonl", word]);
    }
    ds4.run(["eval"]).refused(&["--lines"]);
}
