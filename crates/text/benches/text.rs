//! Speed of loading, encoding and decoding with the published vocabulary, where shared data is
//! present.

#[path = "../tests/common/mod.rs"]
mod common;

use common::{gguf_parts, read, shared};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ds4_text::{Detokenizer, EndReason, ReplyParser, Start, Tokenizer, ToolSchemas, json};

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

/// A reply that thinks and then saves a long file, in pieces as long as tokens are.
fn parser(c: &mut Criterion) {
    let file = include_str!("../src/parse.rs");
    let text = format!(
        "{file}</think>Done.\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"save\">\n\
         <｜DSML｜parameter name=\"body\" string=\"true\">{file}</｜DSML｜parameter>\n\
         </｜DSML｜invoke>\n</｜DSML｜tool_calls>"
    );
    let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
    let ends: Vec<usize> = ends
        .enumerate()
        .filter(|(i, _)| i % 4 == 3)
        .map(|(_, end)| end)
        .collect();
    let schema = json::parse("{}").expect("a schema");
    let tools: ToolSchemas = [("save".to_owned(), schema)].into_iter().collect();
    let mut group = c.benchmark_group("parse");
    group.throughput(Throughput::Elements(ends.len() as u64));
    group.bench_function("four_characters_a_push", |b| {
        b.iter(|| {
            let mut parser = ReplyParser::new(Start::Reasoning, tools.clone());
            let mut at = 0;
            for &end in &ends {
                std::hint::black_box(parser.push(&text[at..end]));
                at = end;
            }
            parser.push(&text[at..]);
            parser.finish(EndReason::Stop)
        });
    });
    group.finish();
}

criterion_group!(benches, vocabulary, tokenizer, parser);
criterion_main!(benches);
