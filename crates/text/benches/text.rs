//! Speed of loading, encoding and decoding with the published vocabulary, where shared data is
//! present.

#[path = "../tests/common/mod.rs"]
mod common;

use common::{gguf_parts, read, shared};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ds4_text::{Detokenizer, Tokenizer};

fn vocabulary(c: &mut Criterion) {
    let Some(path) = shared("tokenizer/tokenizer.json") else {
        return;
    };
    let document = read(&path);
    let (tokens, types, merges) = gguf_parts(&document, true);
    let mut group = c.benchmark_group("load");
    group.sample_size(20);
    group.bench_function("tokenizer_json", |b| {
        b.iter_with_large_drop(|| Tokenizer::from_tokenizer_json(&document));
    });
    group.bench_function("gguf", |b| {
        b.iter_with_large_drop(|| {
            Tokenizer::from_gguf_parts("gpt2", "joyai-llm", &tokens, &types, &merges)
        });
    });
    group.finish();
}

fn tokenizer(c: &mut Criterion) {
    let Some(path) = shared("tokenizer/tokenizer.json") else {
        return;
    };
    let document = read(&path);
    let tokenizer = Tokenizer::from_tokenizer_json(&document).expect("the vocabulary loads");
    let file = |name| read(&shared(name).expect("a file beside the vocabulary"));
    let texts = [
        (
            "prose",
            file("vectors/prompts/long_memory_archive.txt").repeat(30),
        ),
        ("code", include_str!("../src/bpe.rs").repeat(60)),
        ("chinese", file("encoding/test_output_3.txt").repeat(150)),
        ("json", document[..1_000_000].to_owned()),
        ("one_letter_131072", "a".repeat(131_072)),
        ("blanks_131072", " ".repeat(131_072)),
        ("han_131072", "中".repeat(131_072)),
        ("signs_131072", "=".repeat(131_072)),
        ("no_class_131072", "\u{e000}".repeat(131_072)),
        ("mixed_word_131072", "abcdefghijklmnop".repeat(8_192)),
    ];
    let mut group = c.benchmark_group("encode");
    group.sample_size(20);
    for (name, text) in &texts {
        let n_ids = tokenizer.encode(text).len();
        println!("{name}: {} bytes, {n_ids} tokens", text.len());
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(*name, |b| b.iter(|| tokenizer.encode(text)));
    }
    group.finish();

    let ids = tokenizer.encode(&texts[0].1);
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Elements(ids.len() as u64));
    group.bench_function("stream", |b| {
        b.iter_batched_ref(
            || Detokenizer::new(&tokenizer),
            |detokenizer| {
                ids.iter()
                    .map(|&id| detokenizer.push(id).len())
                    .sum::<usize>()
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, vocabulary, tokenizer);
criterion_main!(benches);
