//! What it costs to say which tokens may follow in a block of calls, with the published
//! vocabulary of 129,280 tokens, where shared data is present.

use std::cell::Cell;
use std::path::Path;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use ds4_server::generation::{Endpoint, Generation, PromptSource, Tool};
use ds4_server::schema::Schemas;
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
        input: None,
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
        b.iter_with_large_drop(|| Schemas::new(&tokenizer));
    });
    let schemas = Schemas::new(&tokenizer).expect("a vocabulary");
    let made = Cell::new(0);
    group.bench_function("grammar", |b| {
        b.iter_with_large_drop(|| {
            // Another name, so that nothing is known of it.
            let mut other = generation.clone();
            made.set(made.get() + 1);
            other.tools[0].name = format!("tool_{}", made.get());
            schemas.calls(&other)
        });
    });
    group.bench_function("reader", |b| {
        b.iter_with_large_drop(|| schemas.calls(&generation));
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
            let (reader, _) = schemas.calls(&generation).expect("schemas");
            let mut reader = reader.expect("tools");
            assert!(reader.push_text(written.as_bytes()), "{written}");
            reader
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
