//! Whatever is wrong with a file, a prompt or a flag, the answer is one line that says what to do.

use std::path::Path;

use ds4_conformance::golden::project_root;
use ds4_formats::gguf::{Gguf, Metadata, write_tensors};
use ds4_formats::{GgmlType, Tensor};

use crate::program::Ds4;
use crate::speaking_model;

/// Writes a copy of a committed model with other metadata or tensors.
fn damaged(path: &Path, damage: impl FnOnce(&mut Metadata, &mut Vec<Tensor>)) {
    let model = project_root().join("testdata/forward/no-sliding/model.gguf");
    let gguf = Gguf::open(model).expect("a committed model");
    let mut metadata = gguf.metadata().clone();
    let mut tensors: Vec<Tensor> = gguf
        .tensors()
        .map(|spec| gguf.tensor(&spec.name).expect("its own tensor"))
        .collect();
    damage(&mut metadata, &mut tensors);
    let mut file = Vec::new();
    write_tensors(&mut file, metadata, &tensors).expect("a writable model");
    std::fs::write(path, file).expect("a writable folder");
}

fn at<'a>(tensors: &'a mut [Tensor], name: &str) -> &'a mut Tensor {
    let found = tensors.iter_mut().find(|t| t.name == name);
    found.unwrap_or_else(|| panic!("no tensor {name}"))
}

#[test]
fn a_file_that_is_no_model_is_refused_by_what_is_wrong_with_it() {
    let ds4 = Ds4::new();
    let path = |name: &str| ds4.home().join(name);
    damaged(&path("whole.gguf"), |_, _| {});
    let whole = std::fs::read(path("whole.gguf")).expect("just written");

    for (name, len) in [
        ("empty", 0),
        ("stub", 3),
        ("header", 300),
        ("data", whole.len() - 64),
    ] {
        std::fs::write(path(&format!("{name}.gguf")), &whole[..len]).expect("a writable folder");
    }
    std::fs::write(path("text.gguf"), "a page of a web site").expect("a writable folder");
    let mut unknown = whole.clone();
    let name = b"output.weight";
    let found = unknown.windows(name.len()).position(|w| w == name);
    // After the name: the number of dimensions, two dimensions, then the type.
    let type_at = found.expect("the tensor's name") + name.len() + 4 + 2 * 8;
    unknown[type_at..type_at + 4].copy_from_slice(&40u32.to_le_bytes());
    std::fs::write(path("unknown-type.gguf"), unknown).expect("a writable folder");

    damaged(&path("architecture.gguf"), |metadata, _| {
        metadata.insert("general.architecture", "llama");
    });
    damaged(&path("missing.gguf"), |_, tensors| {
        tensors.retain(|t| t.name != "blk.1.attn_kv.weight");
    });
    damaged(&path("shape.gguf"), |_, tensors| {
        let norm = at(tensors, "output_norm.weight");
        let data = norm.data.slice(0..norm.data.len() - 4);
        let ne = [norm.ne[0] - 1];
        *norm = Tensor::new("output_norm.weight", GgmlType::F32, &ne, data).expect("a tensor");
    });
    damaged(&path("role.gguf"), |_, tensors| {
        let norm = at(tensors, "output_norm.weight");
        norm.ty = GgmlType::I32;
    });
    damaged(&path("experts.gguf"), |_, tensors| {
        let ids = at(tensors, "blk.0.ffn_gate_tid2eid.weight");
        ids.data = vec![0x7f; ids.data.len()].into();
    });
    damaged(&path("key.gguf"), |metadata, _| {
        let kept: Vec<_> = metadata
            .iter()
            .filter(|(key, _)| !key.ends_with(".block_count"))
            .map(|(key, value)| (key.to_owned(), value.clone()))
            .collect();
        *metadata = Metadata::new();
        for (key, value) in kept {
            metadata.insert(key, value);
        }
    });

    for (file, words) in [
        ("none.gguf", &["none.gguf", "cannot read"][..]),
        ("empty.gguf", &["empty.gguf", "not a GGUF file"]),
        ("stub.gguf", &["stub.gguf", "not a GGUF file"]),
        ("header.gguf", &["header.gguf", "incomplete"]),
        ("data.gguf", &["data.gguf", "tensor"]),
        ("text.gguf", &["text.gguf", "not a GGUF file", "download"]),
        (
            "unknown-type.gguf",
            &["unknown-type.gguf", "output.weight", "40"],
        ),
        (
            "architecture.gguf",
            &["architecture.gguf", "llama", "deepseek4"],
        ),
        (
            "missing.gguf",
            &["missing.gguf", "blk.1.attn_kv.weight", "missing"],
        ),
        (
            "shape.gguf",
            &["shape.gguf", "output_norm.weight", "47", "48"],
        ),
        ("role.gguf", &["role.gguf", "output_norm.weight", "I32"]),
        (
            "experts.gguf",
            &["experts.gguf", "ffn_gate_tid2eid", "2139062143"],
        ),
        ("key.gguf", &["key.gguf", "deepseek4.block_count"]),
    ] {
        for command in [
            &["inspect", file][..],
            &["logits", "--tokens", "1", "--out", "logits", "-m", file],
            &["bench", "-m", file],
            &["-p", "hello", "-m", file],
        ] {
            ds4.run(command).refused(words);
        }
    }
    // The undamaged copy is a model, without a tokenizer.
    ds4.run(["inspect", "whole.gguf"]).answer();
    ds4.run(["-p", "hello", "-m", "whole.gguf"]).refused(&[
        "whole.gguf",
        "no tokenizer",
        "ds4 logits",
    ]);
}

#[test]
fn a_prompt_that_cannot_be_answered_is_refused_by_what_is_wrong_with_it() {
    let ds4 = Ds4::new();
    let model = speaking_model::write(ds4.home());
    let model = model.to_str().expect("a readable path");
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(ds4.home().join(name), bytes).expect("a writable home");
    };
    write("latin1.txt", b"caf\xe9");
    write("blank.txt", b" \n\n");
    write("long.txt", "word ".repeat(200).as_bytes());
    for (args, words) in [
        (
            &["--prompt-file", "none.txt"][..],
            &["none.txt", "cannot read"][..],
        ),
        (
            &["--prompt-file", "latin1.txt"],
            &["latin1.txt", "UTF-8", "offset 3"],
        ),
        (&["--prompt-file", "blank.txt"], &["blank.txt", "empty"]),
        (&["--prompt-file", "."], &["folder"]),
        (&["-p", ""], &["empty"]),
        // BOS, user, 1,000 bytes, assistant and think tokens.
        (
            &["--prompt-file", "long.txt", "--ctx", "512"],
            &["1,004 tokens", "512", "--ctx"],
        ),
        (&["-p", "x", "--temp", "-1"], &["temperature", "-1"]),
        (&["-p", "x", "--top-p", "2"], &["top_p", "2"]),
        (
            &["-p", "x", "--dump-logprobs", "no/such/folder/x.json"],
            &["no/such/folder/x.json"],
        ),
        (
            &["-p", "x", "--backend", "reference", "--simd", "scalar"],
            &["--simd"],
        ),
    ] {
        let args = args.iter().copied().chain(["-m", model]);
        ds4.run(args).refused(words);
    }
    ds4.run_with(["-m", model], b"")
        .refused(&["standard input is empty"]);
    ds4.run_with(["-m", model], b"\xff")
        .refused(&["standard input", "UTF-8"]);
}

#[test]
fn token_lists_that_are_none_are_refused() {
    let ds4 = Ds4::new();
    damaged(&ds4.home().join("m.gguf"), |_, _| {});
    let write = |name: &str, text: &str| {
        std::fs::write(ds4.home().join(name), text).expect("a writable home");
    };
    write("words.txt", "one two");
    write("empty.txt", "");
    for (tokens, words) in [
        (
            ["--tokens-file", "none.txt"],
            &["none.txt", "cannot read"][..],
        ),
        (
            ["--tokens-file", "words.txt"],
            &["words.txt", "\"one\"", "token ids"],
        ),
        (["--tokens-file", "empty.txt"], &["no tokens"]),
        (["--tokens", "1,97"], &["97", "index 1", "vocabulary of 97"]),
    ] {
        let args = ["logits", "-m", "m.gguf", "--out", "logits"];
        ds4.run(args.into_iter().chain(tokens)).refused(words);
    }
    ds4.run([
        "logits",
        "-m",
        "m.gguf",
        "--tokens",
        "1",
        "--out",
        "no/such/folder/x",
    ])
    .refused(&["cannot write no/such/folder/x"]);
}

#[test]
fn flags_that_contradict_each_other_are_usage_errors() {
    let ds4 = Ds4::new();
    for args in [
        &["-p", "x", "--prompt-file", "y"][..],
        &["-p", "x", "--think", "--nothink"],
        &["-p", "x", "--nothink", "--think-max"],
        &["-p", "x", "--quiet", "--verbose"],
        &["-p", "x", "--logprobs-top-k", "5"],
        &["-p", "x", "-n", "0"],
        &["-p", "x", "--ctx", "many"],
        &["-p", "x", "--backend", "abacus"],
        &["logits", "-m", "m", "--out", "x"],
        &[
            "logits",
            "-m",
            "m",
            "--out",
            "x",
            "--tokens",
            "1",
            "--tokens-file",
            "y",
        ],
        &[
            "logits", "-m", "m", "--out", "x", "--tokens", "1", "--chunk", "4,0",
        ],
        &["logits", "-m", "m", "--out", "x", "--tokens", "-1"],
        &["inspect"],
        &["text", "sing"],
    ] {
        let ran = ds4.run(args);
        assert_eq!(ran.status, Some(2), "{args:?}: {ran:?}");
        assert!(ran.stderr.starts_with("error: "), "{args:?}: {ran:?}");
    }
}

#[cfg(unix)]
#[test]
fn a_pipe_in_the_place_of_a_model_is_refused_and_not_waited_for() {
    let ds4 = Ds4::new();
    let pipe = ds4.home().join("pipe.gguf");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("mkfifo").success());
    let ran = ds4.run(["-m", "pipe.gguf", "-p", "hi"]);
    ran.refused(&["pipe.gguf", "found a pipe or a device, expected a file"]);
}
