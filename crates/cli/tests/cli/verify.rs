//! `ds4 verify`: what it says of damaged files, of vectors, and of this machine.

use std::fs;
use std::path::PathBuf;

use ds4_conformance::golden::project_root;
use ds4_formats::gguf::{Gguf, TensorSpec};
use serde_json::Value;

use crate::program::{Ds4, Ran};

/// A copy of the built-in model in the program's home, with its sums.
struct Copy {
    ds4: Ds4,
    path: PathBuf,
    bytes: Vec<u8>,
    specs: Vec<TensorSpec>,
}

impl Copy {
    fn new() -> Copy {
        let ds4 = Ds4::new();
        let path = ds4.home().join("m.gguf");
        fs::copy(project_root().join("models/ds4-small-q8_0.gguf"), &path).expect("a copy");
        let bytes = fs::read(&path).expect("the copy");
        let specs = Gguf::open(&path)
            .expect("a model")
            .tensors()
            .cloned()
            .collect();
        Copy {
            ds4,
            path,
            bytes,
            specs,
        }
    }

    fn verify(&self, more: &[&str]) -> Ran {
        self.ds4.run([&["verify", "m.gguf"], more].concat())
    }

    fn with_sums(self) -> Copy {
        assert!(self.verify(&["--write-sums"]).answer().contains("good"));
        self
    }

    /// Runs on changed bytes.
    fn after(&self, change: impl FnOnce(&mut Vec<u8>)) -> Ran {
        let mut bytes = self.bytes.clone();
        change(&mut bytes);
        fs::write(&self.path, bytes).expect("a file");
        let ran = self.verify(&[]);
        fs::write(&self.path, &self.bytes).expect("a file");
        ran
    }

    fn spec(&self, name: &str) -> &TensorSpec {
        self.specs
            .iter()
            .find(|s| s.name == name)
            .expect("a tensor")
    }
}

#[test]
fn a_good_file_is_good_and_says_what_it_was_compared_with() {
    let copy = Copy::new();
    assert!(
        copy.verify(&[])
            .answer()
            .contains("no sums of it are known")
    );
    let copy = copy.with_sums();
    assert!(
        copy.verify(&[])
            .answer()
            .contains("compared with the file of sums")
    );
    let report: Value = serde_json::from_str(copy.verify(&["--json"]).answer()).expect("JSON");
    assert_eq!(report["is_good"], true);
    let sum = report["sha256"].as_str().expect("a sum").to_owned();
    copy.verify(&["--sha256", &sum]).answer();
    copy.verify(&["--sha256", &sum.replace(&sum[..1], "z")])
        .refused(&["64 hexadecimal digits"]);
    copy.verify(&["--sha256", &"0".repeat(64)])
        .refused(&["SHA-256", "--sha256"]);
}

#[test]
fn a_wrong_byte_of_any_tensor_is_located() {
    let copy = Copy::new().with_sums();
    for name in [
        "token_embd.weight",
        "blk.3.ffn_down_exps.weight",
        "blk.2.attn_sinks.weight",
        "output.weight",
    ] {
        let spec = copy.spec(name);
        for at in [0, spec.n_bytes / 2, spec.n_bytes - 1] {
            let ran = copy.after(|bytes| bytes[(spec.offset + at) as usize] ^= 0x10);
            let piece = at >> 20 << 20;
            ran.refused(&[name, &format!("wrong bytes among {piece} to")]);
        }
    }
}

#[test]
fn swapped_tensors_and_a_changed_table_are_named() {
    let copy = Copy::new().with_sums();
    let (a, b) = ("blk.2.attn_kv.weight", "blk.3.attn_kv.weight");
    let (first, second) = (copy.spec(a).clone(), copy.spec(b).clone());
    assert_eq!(first.n_bytes, second.n_bytes);
    let ran = copy.after(|bytes| {
        let n = first.n_bytes as usize;
        let (x, y) = (first.offset as usize, second.offset as usize);
        let kept = bytes[x..x + n].to_vec();
        bytes.copy_within(y..y + n, x);
        bytes[y..y + n].copy_from_slice(&kept);
    });
    ran.refused(&[a, &format!("holds the bytes of {b}"), "2 things"]);

    // The row of the table ends with the offset from where the data begin.
    let row_end = |bytes: &[u8], name: &str| {
        let at = bytes.windows(name.len()).position(|w| w == name.as_bytes());
        let dims = at.expect("the name") + name.len();
        dims + 4 + 8 * copy.spec(name).ne.len() + 4 + 8
    };
    let ran = copy.after(|bytes| {
        let (x, y) = (row_end(bytes, a), row_end(bytes, b));
        let kept = bytes[x - 8..x].to_vec();
        bytes.copy_within(y - 8..y, x - 8);
        bytes[y - 8..y].copy_from_slice(&kept);
    });
    ran.refused(&[a, &format!("the place of {b}")]);
    let ran = copy.after(|bytes| {
        let key = b"general.name";
        let at = bytes
            .windows(key.len())
            .position(|w| w == key)
            .expect("the key");
        bytes[at + key.len() + 12] ^= 1;
    });
    ran.refused(&["metadata"]);
    copy.after(|bytes| bytes.truncate(bytes.len() - 100))
        .refused(&["m.gguf"]);
}

#[test]
fn without_sums_blocks_that_are_no_numbers_or_were_never_written_are_found() {
    let copy = Copy::new();
    let name = "blk.4.ffn_up_exps.weight";
    let spec = copy.spec(name);
    // The scale of block 5 of row 3: an infinite half.
    let row_bytes = 34 * spec.ne[0] / 32;
    let at = (spec.offset + 3 * row_bytes + 5 * 34) as usize;
    let ran = copy.after(|bytes| bytes[at..at + 2].copy_from_slice(&[0x00, 0x7c]));
    ran.refused(&[name, "expert 0, row 3", &format!("byte {at} of the file")]);
    let (start, end) = (spec.offset as usize, (spec.offset + spec.n_bytes) as usize);
    let ran = copy.after(|bytes| bytes[start..end].fill(0));
    ran.refused(&[name, "never written"]);
    let table = copy
        .specs
        .iter()
        .find(|s| s.name.contains("tid2eid"))
        .expect("a table");
    let at = table.offset as usize + 40;
    let ran = copy.after(|bytes| bytes[at..at + 4].copy_from_slice(&99i32.to_le_bytes()));
    ran.refused(&[&table.name, "token 5", "expert 99"]);
}

#[test]
fn a_file_of_sums_that_is_none_is_refused_with_what_to_do() {
    let copy = Copy::new();
    for text in ["", "{}", r#"{"format":"ds4-sums","version":2}"#] {
        fs::write(copy.ds4.home().join("m.gguf.sums"), text).expect("a file");
        copy.verify(&[]).refused(&["m.gguf.sums", "--write-sums"]);
    }
    fs::remove_file(copy.ds4.home().join("m.gguf.sums")).expect("removed");
    copy.ds4.run(["verify", "no.gguf"]).refused(&["no.gguf"]);
}

#[test]
fn this_machine_computes_what_the_reference_computes() {
    let ran = Ds4::new().run(["verify", "--backend", "cpu", "--quick", "--json"]);
    let report: Value = serde_json::from_str(ran.answer()).expect("JSON");
    assert_eq!(report["n_wrong"], 0, "{report}");
    assert_eq!(report["tests"].as_array().map(Vec::len), Some(5));
}

#[test]
fn what_stands_far_back_in_a_text_is_found() {
    let ds4 = Ds4::new();
    let args = ["verify", "--recall=700", "--json"];
    let report: Value = serde_json::from_str(ds4.run(args).answer()).expect("JSON");
    let length = &report["lengths"][0];
    let n_tokens = length["n_tokens"].as_u64().expect("a number");
    assert!((600..1000).contains(&n_tokens), "{report}");
    assert_eq!(report["n_asked"], 3);
    assert!(length["n_left"].as_u64() > Some(24), "{report}");
    // The built-in model finds words in texts; of lists it knows little.
    assert!(report["n_right"].as_u64() >= Some(1), "{report}");
    ds4.run([
        "verify",
        "--recall=90",
        "--min-agreement",
        "1",
        "-m",
        "no.gguf",
    ])
    .refused(&["no.gguf"]);
    ds4.run(["verify", "--recall=x"]).refused(&["--recall=x"]);
    ds4.run(["verify", "--recall=9000000"])
        .refused(&["context"]);
}

#[test]
fn vectors_of_another_vocabulary_are_not_counted() {
    let ds4 = Ds4::new();
    let dir = ds4.home().join("v");
    fs::create_dir_all(dir.join("prompts")).expect("a folder");
    fs::write(dir.join("prompts/p.txt"), "What is 17 + 25?").expect("a file");
    let header = "# ds4-official-logprob-vectors-v1\n";
    let case = |token: &str| format!("{header}case c 64 1 x/p.txt\nstep 0 {token} 1\nend\n");
    // The built-in model writes numbers digit by digit.
    fs::write(dir.join("official.vec"), case("31")).expect("a file");
    let ran = ds4.run(["verify", "--vectors", "v", "--json", "--min-agreement", "1"]);
    let report: Value = serde_json::from_str(ran.answer()).expect("JSON");
    assert_eq!(report["n_agreeing"], 1, "{report}");
    fs::write(dir.join("official.vec"), case("35")).expect("a file");
    let args = ["verify", "--vectors", "v", "--min-agreement", "1"];
    ds4.run(args).refused(&["0 %", "at least 100 %"]);
    fs::write(dir.join("official.vec"), case("00112233445566778899")).expect("a file");
    ds4.run(args).refused(&["no case could be run"]);
    fs::write(dir.join("official.vec"), "x").expect("a file");
    ds4.run(args)
        .refused(&["official.vec", "expected the first line"]);
}
