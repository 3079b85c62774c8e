//! Where test data lies, and how its rows are read.
#![allow(dead_code, reason = "every test binary uses its own part")]

use std::collections::{BTreeSet, HashSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use ds4_text::Tokenizer;
use proptest::test_runner::Config as ProptestConfig;
use serde_json::Value;

/// This many random cases; a failing one is printed and not written into the tree.
pub(crate) fn cases(n: u32) -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(n)
    }
}

/// A file or folder of `testdata/text`.
pub(crate) fn testdata(name: &str) -> PathBuf {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_folder.join("../../testdata/text").join(name)
}

/// A file of the shared data, looked for beside this folder's ancestors. When there is none, says
/// that the calling test is skipped.
pub(crate) fn shared(name: &str) -> Option<PathBuf> {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found = crate_folder
        .ancestors()
        .map(|folder| folder.join("shared/data").join(name))
        .find(|path| path.exists());
    if found.is_none() {
        absent(name);
    }
    found
}

/// Says once that tests pass without `shared/data/name`. The test harness keeps what `println!`
/// writes to itself; this it does not.
fn absent(name: &str) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    if SAID.lock().unwrap().insert(name.to_owned()) {
        let _ = writeln!(
            std::io::stderr(),
            "skipped: what needs shared/data/{name}, which is not beside any parent folder"
        );
    }
}

pub(crate) fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The rows of a JSON-lines file.
pub(crate) fn rows(path: &Path) -> Vec<Value> {
    let rows: Vec<Value> = lines(path).iter().map(|line| json(line)).collect();
    assert!(!rows.is_empty(), "{} has no rows", path.display());
    rows
}

/// The lines of a JSON-lines file that are not blank.
pub(crate) fn lines(path: &Path) -> Vec<String> {
    let text = read(path);
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    lines.map(str::to_owned).collect()
}

pub(crate) fn json(text: &str) -> Value {
    ds4_text::json::parse(text).unwrap_or_else(|e| panic!("{e} in {text}"))
}

pub(crate) fn ids(value: &Value) -> Vec<u32> {
    let numbers = value.as_array().expect("an array of ids");
    let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    numbers.iter().map(|v| id(v).expect("an id")).collect()
}

pub(crate) fn str<'a>(row: &'a Value, key: &str) -> &'a str {
    row[key]
        .as_str()
        .unwrap_or_else(|| panic!("no text {key:?} in {row}"))
}

/// Bytes from their hexadecimal form.
pub(crate) fn unhex(text: &str) -> Vec<u8> {
    let byte = |i| u8::from_str_radix(&text[i..i + 2], 16).expect("hexadecimal");
    (0..text.len()).step_by(2).map(byte).collect()
}

/// The small vocabulary that lies beside the tests.
pub(crate) fn small_tokenizer() -> Tokenizer {
    let text = read(&testdata("small_tokenizer.json"));
    Tokenizer::from_tokenizer_json(&text).expect("the small vocabulary loads")
}

/// The published vocabulary, where shared data is present.
pub(crate) fn published_tokenizer() -> Option<Tokenizer> {
    let text = read(&shared("tokenizer/tokenizer.json")?);
    Some(Tokenizer::from_tokenizer_json(&text).expect("the published vocabulary loads"))
}

/// The arrays that a converter writes into a GGUF file: tokens, types, merges.
///
/// `by_flag` types an added token by its special flag; otherwise everything that looks like a
/// marker is typed as control, as the usual converter does.
pub(crate) fn gguf_parts(
    tokenizer_json: &str,
    by_flag: bool,
) -> (Vec<String>, Vec<i32>, Vec<String>) {
    let document = json(tokenizer_json);
    let vocab = document["model"]["vocab"]
        .as_object()
        .expect("a vocabulary");
    let added = document["added_tokens"].as_array().expect("added tokens");
    let mut entries: Vec<(u64, String, i32)> = vocab
        .iter()
        .map(|(text, id)| (id.as_u64().expect("an id"), text.clone(), 1))
        .collect();
    let added_ids: HashSet<_> = added.iter().map(|token| token["id"].as_u64()).collect();
    entries.retain(|entry| !added_ids.contains(&Some(entry.0)));
    for token in added {
        let text = str(token, "content");
        let looks_special = text.starts_with("<｜") && text.ends_with("｜>");
        let control = token["special"] == true || !by_flag && looks_special;
        let kind = if control { 3 } else { 4 };
        entries.push((token["id"].as_u64().expect("an id"), text.to_owned(), kind));
    }
    entries.sort();
    let merges = document["model"]["merges"].as_array().expect("merges");
    let merge = |merge: &Value| match merge {
        Value::Array(pair) => format!(
            "{} {}",
            pair[0].as_str().unwrap(),
            pair[1].as_str().unwrap()
        ),
        text => text.as_str().expect("a merge").to_owned(),
    };
    (
        entries.iter().map(|entry| entry.1.clone()).collect(),
        entries.iter().map(|entry| entry.2).collect(),
        merges.iter().map(merge).collect(),
    )
}
