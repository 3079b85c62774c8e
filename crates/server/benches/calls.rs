//! What it costs to say which tokens may follow in a block of calls, with the published
//! vocabulary of 129,280 tokens, where shared data is present.

use std::path::Path;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use ds4_server::calls::{CallReader, CallVocabulary};
use ds4_server::generation::{Endpoint, Generation, PromptSource, Tool};
use ds4_text::Tokenizer;
use serde_json::json;

/// As many tools as a large agent declares.
const N_TOOLS: usize = 25;

fn generation() -> Generation {
    let tools = (0..N_TOOLS).map(|i| Tool {
        name: format!("mcp__server__tool_{i}"),
        function: json!({"parameters": {"type": "object", "properties": {
            "path": {"type": "string"},
            "edits": {"type": "array"},
            "count": {"type": "integer"},
            "mode": {"enum": ["read", "write", "append"]},
        }, "required": ["path"]}}),
        deferred: false,
        origin: json!(null),
    });
    Generation {
        tools: tools.collect(),
        ..Generation::new(Endpoint::Chat, PromptSource::Text(String::new()))
    }
}

fn calls(c: &mut Criterion) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = folder.ancestors();
    let found = all.find_map(|folder| {
        std::fs::read_to_string(folder.join("shared/data/tokenizer/tokenizer.json")).ok()
    });
    let Some(document) = found else {
        println!("skipped: no shared data beside any parent folder");
        return;
    };
    let tokenizer = Tokenizer::from_tokenizer_json(&document).expect("the vocabulary loads");
    let generation = generation();
    let mut group = c.benchmark_group("calls");
    group.sample_size(20);
    group.bench_function("vocabulary", |b| {
        b.iter_with_large_drop(|| CallVocabulary::new(&tokenizer));
    });
    let vocabulary = Arc::new(CallVocabulary::new(&tokenizer));
    group.bench_function("reader", |b| {
        b.iter_with_large_drop(|| CallReader::new(Arc::clone(&vocabulary), &generation));
    });
    let call = "tool_calls>\n<｜DSML｜invoke name=\"mcp__server__tool_3\">\n";
    let path = "<｜DSML｜parameter name=\"path\" string=\"true\">";
    let edits = "<｜DSML｜parameter name=\"edits\" string=\"false\">";
    for (name, written) in [
        ("name", String::new()),
        ("parameter", call.to_owned()),
        ("string", format!("{call}{path}/tmp")),
        ("string_closing", format!("{call}{path}/tmp</")),
        ("json", format!("{call}{edits}")),
        ("json_string", format!("{call}{edits}[{{\"old")),
        (
            "json_behind",
            format!("{call}{edits}[{{\"old\": 1, \"new\": \"x\""),
        ),
    ] {
        let reader = || {
            let mut reader = CallReader::new(Arc::clone(&vocabulary), &generation);
            let read = reader.as_mut().is_some_and(|r| r.push(written.as_bytes()));
            assert!(read, "{written}");
            reader.expect("tools")
        };
        group.bench_function(format!("admitted/{name}"), |b| {
            b.iter_batched(
                reader,
                |mut reader| (reader.admitted(), reader),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, calls);
criterion_main!(benches);
