use std::time::Duration;

use super::*;

#[test]
fn what_was_said_is_reused_up_to_the_last_reply_that_stands_unchanged() {
    let text = "<｜User｜>a<｜Assistant｜>one<｜User｜>b<｜Assistant｜>two".to_owned();
    let len = |part: &str| text.find(part).expect("a part") + part.len();
    let spoken = Spoken {
        ends: vec![(len("one"), 4), (len("two"), 9)],
        tokens: (0..10).collect(),
        text: text.clone(),
    };
    let n_shared = |text: &str| spoken.shared(text).len();
    let whole = spoken.text.clone();
    assert_eq!(n_shared(&whole), 2);
    assert_eq!(
        n_shared(&format!("{whole}<｜end▁of▁sentence｜><｜User｜>c")),
        2
    );
    assert_eq!(
        n_shared(&format!("{whole} and more")),
        1,
        "it goes on otherwise"
    );
    assert_eq!(n_shared(&whole.replace("two", "three")), 1);
    assert_eq!(n_shared(&whole.replace("one", "1")), 0);
    assert_eq!(n_shared(""), 0);
}

#[test]
fn the_closing_line_counts_what_was_computed() {
    let outcome = |n_computed: usize, n_decoded, reason| Outcome {
        reply: Reply::default(),
        reason,
        timings: Timings {
            n_prompt: 1200,
            n_cached: 200,
            n_done: 200 + n_computed,
            prefill: Duration::from_secs(10),
            n_decoded,
            decode: Duration::from_secs(2),
        },
    };
    assert_eq!(
        closing_line(&outcome(1000, 21, FinishReason::Stop)),
        "prefill 1,000 tokens at 100.0 t/s, 200 cached; decode 21 tokens at 10.0 t/s"
    );
    assert_eq!(
        closing_line(&outcome(512, 0, FinishReason::Cancelled)),
        "prefill 512 of 1,000 tokens at 51.2 t/s, 200 cached; decode 0 tokens at - t/s; stopped"
    );
    assert_eq!(
        closing_line(&outcome(0, 0, FinishReason::Cancelled)),
        "prefill 0 of 1,000 tokens at - t/s, 200 cached; decode 0 tokens at - t/s; stopped"
    );
}

#[test]
fn the_release_is_told_by_names_and_by_what_lies_beside_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let plain = at("model.gguf");
    assert_eq!(revision_of(&plain, "DeepSeek V4 Flash"), Revision::Preview);
    assert_eq!(revision_of(&at("model-0731.gguf"), "x"), Revision::R0731);
    assert_eq!(revision_of(&plain, "Flash 0731"), Revision::R0731);
    std::fs::write(at("config.json"), r#"{"vocab_size": 1}"#).unwrap();
    assert_eq!(revision_of(&plain, "x"), Revision::Preview);
    std::fs::write(at("config.json"), r#"{"dspark_block_size": 5}"#).unwrap();
    assert_eq!(revision_of(&plain, "x"), Revision::R0731);
    std::fs::remove_file(at("config.json")).unwrap();
    std::fs::create_dir(at("encoding")).unwrap();
    std::fs::write(at("encoding/encoding_dsv4.py"), "# Beyond maximum").unwrap();
    assert_eq!(revision_of(&plain, "x"), Revision::R0731);
    // A folder name is not the file's name.
    std::fs::create_dir(at("0731")).unwrap();
    assert_eq!(revision_of(&at("0731/model.gguf"), "x"), Revision::Preview);
}
