//! Schemas that take long to compile, or never do.

use serde_json::{Value, json};

use crate::load::process::Started;

use super::bodies::status;
use super::probe::watch;
use super::{Table, end};

/// Requests at once.
const N_AT_ONCE: usize = 100;
/// Memory of a server beyond what it held before.
const MAX_MORE_MIB: f64 = 1024.0;

/// Schemas of which each is small and asks for much.
fn hostile() -> Vec<Value> {
    let optional: serde_json::Map<String, Value> = (0..510)
        .map(|i| (format!("p{i}"), json!({"type": "string"})))
        .collect();
    let alternatives: Vec<Value> = (0..120)
        .map(|i| json!({"type": "object", "properties": {format!("a{i}"): {"type": "integer"}}}))
        .collect();
    let mut nested = json!({"type": "string"});
    for _ in 0..60 {
        nested = json!({"type": "array", "items": nested, "minItems": 50, "maxItems": 100});
    }
    vec![
        json!({"type": "integer", "multipleOf": 99_999_999}),
        json!({"type": "number", "multipleOf": 0.000_000_7}),
        json!({"$ref": "#"}),
        json!({"type": "object", "properties": optional}),
        json!({"type": "array", "minItems": 1000, "items": {"anyOf": alternatives}}),
        json!({"type": "string", "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"}),
        json!({"type": "string", "pattern": "(a|b|c|d){1000}{100}"}),
        json!({"type": "string", "minLength": 1_000_000, "maxLength": 2_000_000}),
        nested,
        json!({"type": "integer", "minimum": -1e300, "maximum": 1e300}),
    ]
}

pub(super) fn run(server: Started, table: &mut Table) -> Result<(), String> {
    let (address, pid) = (server.address, server.pid());
    let before = crate::load::process::holds(pid).map_or(0.0, |holds| holds.rss_mib);
    let schemas = hostile();
    let ask = |i: usize| {
        let schema = &schemas[i % schemas.len()];
        let messages = json!([{"role": "user", "content": "hi"}]);
        let body = match i % 2 {
            0 => json!({"messages": messages, "max_tokens": 4, "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "strict": true, "schema": schema},
            }}),
            _ => json!({"messages": messages, "max_tokens": 4, "tools": [{
                "type": "function",
                "function": {"name": "f", "strict": true, "parameters": {
                    "type": "object", "properties": {"a": schema},
                }},
            }]}),
        };
        status(address, "/v1/chat/completions", body.to_string().as_bytes()).unwrap_or(0)
    };
    let begun = std::time::Instant::now();
    let (statuses, watched) = watch(address, pid, || {
        std::thread::scope(|scope| {
            let asked: Vec<_> = (0..N_AT_ONCE)
                .map(|i| scope.spawn(move || ask(i)))
                .collect();
            let statuses = asked.into_iter().map(|asked| asked.join());
            statuses
                .map(Result::unwrap_or_default)
                .collect::<Vec<u16>>()
        })
    });
    let took = begun.elapsed().as_secs_f64() - 2.0;
    let mut counted = std::collections::BTreeMap::new();
    for status in &statuses {
        *counted.entry(*status).or_insert(0) += 1;
    }
    println!("{N_AT_ONCE} hostile schemas at once, by status: {counted:?}");
    table.row("schemas", format!("{N_AT_ONCE} at once"), took, 60.0, "s");
    table.expect("hostile schemas", &statuses, &[200, 400, 429, 500]);
    table.watched("schemas", &watched, before + MAX_MORE_MIB);

    // Nobody waits for one that is being compiled, not even the end.
    let busy: Vec<_> = (0..4)
        .map(|i| {
            let body = json!({"messages": [{"role": "user", "content": "hi"}], "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "strict": true, "schema": schemas[i % 2]},
            }});
            let body = body.to_string();
            std::thread::spawn(move || status(address, "/v1/chat/completions", body.as_bytes()))
        })
        .collect();
    std::thread::sleep(std::time::Duration::from_millis(300));
    end(server, "schemas", table)?;
    for sender in busy {
        let _ = sender.join();
    }
    Ok(())
}
