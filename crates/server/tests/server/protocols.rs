//! What the protocols ask of the server behind them.

use std::time::Duration;

use ds4_server::api::{CallPieces, CompletionsPrompt, Preferences};
use ds4_server::http::ServerOptions;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::script::{Behaviour, Script, tokenizer};
use crate::web::{Web, read_until};

fn options() -> ServerOptions {
    ServerOptions::default()
}

/// The text of the prompt that got a slot last.
fn last_prompt(web: &Web) -> String {
    let seen = web.seen.lock().unwrap();
    let (tokens, _) = seen.prompts.last().expect("a prompt");
    tokenizer().decode(tokens).expect("text")
}

fn turns(n: usize) -> Vec<Value> {
    let filler = "0123456789".repeat(10);
    let mut items = vec![json!({"role": "system", "content": "Be brief."})];
    for i in 0..n {
        items.push(json!({"role": "user", "content": format!("question {i} {filler}")}));
        if i + 1 < n {
            items.push(json!({"type": "function_call", "call_id": format!("c{i}"),
                              "name": "look", "arguments": "{}"}));
            items.push(
                json!({"type": "function_call_output", "call_id": format!("c{i}"),
                              "output": format!("result {i}")}),
            );
            items.push(json!({"role": "assistant", "content": format!("answer {i}")}));
        }
    }
    items
}

#[tokio::test(flavor = "multi_thread")]
async fn truncation_drops_whole_turns_from_the_oldest_and_drops_the_same_ones_again() {
    let behaviour = Behaviour {
        context: 4096,
        n_slots: 1,
        ..Behaviour::default()
    };
    let web = Web::start(behaviour, options(), vec!["t</think>said"; 16]).await;
    let tools = json!([{"type": "function", "name": "look", "parameters": {"type": "object"}}]);
    let body = |n: usize, truncation: &str| json!({"input": turns(n), "tools": tools, "truncation": truncation, "store": false});
    let path = "/v1/responses";
    let refused = web.post(path, &body(40, "disabled")).await;
    assert_eq!(refused.status, 400);
    assert_eq!(
        refused.json()["error"]["code"],
        "context_length_exceeded",
        "{refused:?}"
    );

    let error = &refused.json()["error"];
    assert_eq!(error["n_ctx"], 4096, "{error}");
    assert!(error["n_prompt_tokens"].as_u64() > Some(4095), "{error}");

    let answer = web.post(path, &body(40, "auto")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = answer.json();
    let warning = answer["warnings"][0].as_str().expect("a warning");
    assert!(warning.contains("oldest"), "{warning}");
    let text = last_prompt(&web);
    assert!(text.contains("Be brief.") && text.contains("\"name\": \"look\""));
    assert!(text.contains("question 39") && !text.contains("question 0 "));
    let first = (0..40)
        .find(|i| text.contains(&format!("question {i} ")))
        .expect("a turn");
    for i in 0..40 {
        for what in ["question", "result"] {
            let is_there =
                text.contains(&format!("{what} {i} ")) || text.contains(&format!("{what} {i}<"));
            let is_kept = i >= first && (what == "question" || i < 39);
            assert_eq!(is_there, is_kept, "{what} {i}, the first kept is {first}");
        }
    }
    let counted = web
        .post("/v1/responses/input_tokens", &body(40, "auto"))
        .await
        .json();
    assert_eq!(counted["input_tokens"], answer["usage"]["input_tokens"]);

    // Most turns that follow drop the same, and find in the cache what the one before computed.
    let mut cuts = vec![first];
    let mut n_before = answer["usage"]["input_tokens"].as_u64().expect("a count");
    for n in 41..48 {
        let next = web.post(path, &body(n, "auto")).await.json();
        let usage = &next["usage"];
        let text = last_prompt(&web);
        let first = (0..n).find(|i| text.contains(&format!("question {i} ")));
        let first = first.expect("a turn");
        if cuts.last() == Some(&first) {
            let cached = usage["input_tokens_details"]["cached_tokens"].as_u64();
            assert!(cached > Some(n_before - 60), "{cached:?} of {n_before}");
        }
        cuts.push(first);
        n_before = usage["input_tokens"].as_u64().expect("a count");
    }
    assert!(cuts.is_sorted(), "{cuts:?}");
    cuts.dedup();
    assert!((2..=4).contains(&cuts.len()), "{cuts:?}");

    let lone = json!({"input": "x".repeat(5000), "truncation": "auto"});
    assert_eq!(web.post(path, &lone).await.status, 400, "one turn stays");
    let short = web.post(path, &body(2, "auto")).await.json();
    assert_eq!(
        short.get("warnings"),
        None,
        "nothing is dropped without need"
    );
}

/// A request of every API for content by this schema, and where the API has it.
fn with_schema(schema: &Value, strict: Value) -> [(&'static str, &'static str, Value); 3] {
    let messages = json!([{"role": "user", "content": "hi"}]);
    let mut named = json!({"name": "n", "schema": schema, "strict": strict});
    let chat = json!({"messages": messages,
                      "response_format": {"type": "json_schema", "json_schema": named}});
    named["type"] = "json_schema".into();
    [
        (
            "/v1/chat/completions",
            "response_format.json_schema.schema",
            chat,
        ),
        (
            "/v1/responses",
            "text.format.schema",
            json!({"input": "hi", "text": {"format": named}}),
        ),
        (
            "/v1/messages",
            "output_config.format.schema",
            json!({"max_tokens": 50, "messages": messages, "output_config": {"format": named}}),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keyword_that_cannot_be_enforced_is_refused_by_its_pointer_or_relaxed() {
    let web = Web::start(
        Behaviour::default(),
        options(),
        vec!["t</think>{\"a\": 1}"; 12],
    )
    .await;
    let schema = json!({
        "type": "object",
        "properties": {
            "a": {"type": "integer"},
            "b/c": {"anyOf": [{"type": "null"}, {"type": "array", "uniqueItems": true}]},
            "d": {"$ref": "#/$defs/d"},
        },
        "required": ["a"],
        "$defs": {"d": {"type": "string", "pattern": "(?=x)"}},
    });
    let pointers = ["/properties/b~1c/anyOf/1/uniqueItems", "/$defs/d/pattern"];
    for (path, place, body) in with_schema(&schema, json!(true)) {
        let refused = web.post(path, &body).await;
        assert_eq!(refused.status, 400, "{path}: {refused:?}");
        let message = refused.json()["error"]["message"].clone();
        let message = message.as_str().expect("a message");
        assert!(message.starts_with(place), "{path}: {message}");
        assert!(
            pointers.iter().any(|pointer| message.contains(pointer)),
            "{path}: {message}"
        );
    }
    for (stream, strict) in [(false, json!(false)), (true, Value::Null)] {
        for (path, place, mut body) in with_schema(&schema, strict) {
            body["stream"] = stream.into();
            let answer = web.post(path, &body).await;
            assert_eq!(answer.status, 200, "{path}: {answer:?}");
            for pointer in pointers {
                let warning = format!("{place}: what stands at {pointer} is not enforced");
                assert!(answer.body.contains(&warning), "{path}: {}", answer.body);
            }
        }
    }
    for (path, _, body) in with_schema(&json!({"type": "string", "minLength": 1}), json!(false)) {
        let answer = web.post(path, &body).await.json();
        assert_eq!(answer.get("warnings"), None, "{path}");
    }
    let hopeless = json!({"type": "integer", "minimum": 3, "maximum": 2});
    for (path, _, body) in with_schema(&hopeless, json!(true)) {
        assert_eq!(web.post(path, &body).await.status, 400, "{path}");
    }
}

/// Schemas that take a library as long as they like to compile, or that it loses its way in.
#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_nothing_bounds_is_refused_or_relaxed_and_never_waited_for() {
    let scripts = vec!["t</think>7"; 20];
    let web = Web::start(Behaviour::default(), options(), scripts).await;
    let integer = |multiple: f64| json!({"type": "integer", "multipleOf": multiple});
    for (schema, pointer) in [
        (integer(99_999_999.0), "/multipleOf"),
        (integer(1e300), "/multipleOf"),
        (
            json!({"allOf": [integer(7919.0), integer(7907.0)]}),
            "/allOf/1/multipleOf",
        ),
        (
            json!({"anyOf": [{"type": "number", "multipleOf": 0.000_123_457}]}),
            "/anyOf/0/multipleOf",
        ),
        (json!({"$ref": "#"}), "its root"),
    ] {
        let (path, _, body) = with_schema(&schema, json!(true))[0].clone();
        let refused = web.post(path, &body).await;
        assert_eq!(refused.status, 400, "{schema}: {refused:?}");
        let code = refused.json()["error"]["code"].clone();
        assert_eq!(code, "unsupported_value", "{schema}");
        assert!(refused.body.contains(pointer), "{schema}: {}", refused.body);
        let (path, _, body) = with_schema(&schema, json!(false))[0].clone();
        let answer = web.post(path, &body).await;
        assert_eq!(answer.status, 200, "{schema}: {answer:?}");
        assert!(answer.body.contains("is not enforced"), "{}", answer.body);
    }
    // What a few hundred alternatives need is there.
    let optional: serde_json::Map<String, Value> = (0..510)
        .map(|i| (format!("p{i}"), json!({"type": "integer"})))
        .collect();
    for schema in [json!({"type": "integer", "multipleOf": 9999}), integer(7.0)] {
        let (path, _, body) = with_schema(&schema, json!(true))[0].clone();
        assert_eq!(web.post(path, &body).await.status, 200, "{schema}");
    }
    let schema = json!({"type": "object", "properties": optional});
    let reply = "t</think>{\"p0\": 1, \"p509\": 2}";
    let behaviour = Behaviour {
        context: 100_000,
        ..Behaviour::default()
    };
    let web = Web::start(behaviour, options(), vec![reply]).await;
    let (path, _, body) = with_schema(&schema, json!(true))[0].clone();
    let answer = web.post(path, &body).await.json();
    let content = &answer["choices"][0]["message"]["content"];
    assert_eq!(content, "{\"p0\": 1, \"p509\": 2}");
}

/// The script says what the schema does not admit, which a model cannot.
#[tokio::test(flavor = "multi_thread")]
async fn a_reply_that_can_no_longer_follow_its_schema_is_an_error_and_not_free_text() {
    for stream in [false, true] {
        let scripts = vec!["t</think>{\"a\": no}"];
        let web = Web::start(Behaviour::default(), options(), scripts).await;
        let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
        let (path, _, mut body) = with_schema(&schema, json!(true))[0].clone();
        body["stream"] = stream.into();
        let answer = web.post(path, &body).await;
        assert!(answer.body.contains("can no longer follow"), "{answer:?}");
        assert_eq!(answer.status, if stream { 200 } else { 400 });
        assert!(!answer.body.contains("[DONE]"));
        let metrics = web.get("/metrics").await.body;
        assert!(metrics.contains("ds4_failed_total 1"), "{metrics}");
        while !web.get("/metrics").await.body.contains("ds4_slots_busy 0") {
            tokio::task::yield_now().await;
        }
    }
}

/// Weights that are damaged, or a device that is.
#[tokio::test(flavor = "multi_thread")]
async fn logits_that_are_no_numbers_are_an_error_on_every_api_with_a_schema_and_without() {
    let wanted = with_schema(&json!({"type": "object"}), json!(true));
    let free =
        with_schema(&json!({"type": "object"}), json!(true)).map(|(path, place, mut body)| {
            for name in ["response_format", "text", "output_config"] {
                body.as_object_mut().expect("an object").remove(name);
            }
            (path, place, body)
        });
    for (path, _, mut body) in wanted.into_iter().chain(free) {
        for stream in [false, true] {
            for at in [0, 4] {
                let script = Script {
                    not_finite_at: Some(at),
                    ..Script::from("t</think>{}")
                };
                let web = Web::start(Behaviour::default(), options(), [script]).await;
                body["stream"] = stream.into();
                let answer = web.post(path, &body).await;
                assert_eq!(answer.status, if stream { 200 } else { 500 }, "{path}");
                assert!(answer.body.contains("finite"), "{path}: {}", answer.body);
                assert!(!answer.body.contains("[DONE]"), "{path}: {}", answer.body);
                assert!(!answer.body.contains("\"stop\""), "{path}: {}", answer.body);
                let log = web.log.lock().unwrap().join("\n");
                assert!(log.contains("failed=internal"), "{log}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_tools_content_follows_the_schema_or_a_call_stands_in_its_place() {
    let schema = json!({"type": "object", "properties": {"ok": {"type": "boolean"}},
                        "required": ["ok"], "additionalProperties": false});
    let call = "t</think>\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">\n\
                <｜DSML｜parameter name=\"x\" string=\"true\">y</｜DSML｜parameter>\n\
                </｜DSML｜invoke>\n</｜DSML｜tool_calls>";
    let reply = "t</think>{\"ok\": true}";
    let parameters = json!({"type": "object", "properties": {"x": {"type": "string"}}});
    for (path, _, mut body) in with_schema(&schema, json!(true)) {
        let web = Web::start(Behaviour::default(), options(), vec![reply, call]).await;
        body["tools"] = match path {
            "/v1/messages" => json!([{"name": "f", "input_schema": parameters}]),
            "/v1/responses" => json!([{"type": "function", "name": "f", "parameters": parameters}]),
            _ => json!([{"type": "function", "function": {"name": "f", "parameters": parameters}}]),
        };
        body["max_tokens"] = json!(500);
        let answer = web.post(path, &body).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        assert!(answer.body.contains("{\\\"ok\\\": true}"), "{answer:?}");
        {
            let seen = web.seen.lock().unwrap();
            let mut sets = seen.constraints.iter().filter_map(|c| c.allowed.as_ref());
            let first = sets.next().expect("a constraint on the content");
            let of = |text: &str| tokenizer().encode(text)[0];
            assert!(first.contains(of("{")), "{path}: the schema's beginning");
            assert!(first.contains(of("<")), "{path}: a call's beginning");
            assert!(
                !first.contains(of("h")) && !first.contains(of("\"")),
                "{path}: nothing else"
            );
        }
        let answer = web.post(path, &body).await.json();
        let (found, expected) = match path {
            "/v1/messages" => (&answer["content"][1]["input"], json!({"x": "y"})),
            "/v1/responses" => (&answer["output"][1]["arguments"], json!("{\"x\": \"y\"}")),
            _ => (
                &answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"],
                json!("{\"x\": \"y\"}"),
            ),
        };
        assert_eq!(*found, expected, "{path}: {answer}");
    }
}

/// As an agent asks that has reached its limit of steps: what it said last is to be gone on with.
#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_that_ends_with_what_the_model_said_is_gone_on_with_on_every_api() {
    let turns = json!([
        {"role": "user", "content": "count"},
        {"role": "assistant", "content": "one, two,"},
    ]);
    for (path, body) in [
        ("/v1/chat/completions", json!({"messages": turns})),
        ("/v1/responses", json!({"input": turns})),
        (
            "/v1/messages",
            json!({"messages": turns, "max_tokens": 100}),
        ),
    ] {
        for stream in [false, true] {
            let web = Web::start(Behaviour::default(), options(), vec![" three"]).await;
            let mut body = body.clone();
            body["stream"] = stream.into();
            let answer = web.post(path, &body).await;
            assert_eq!(answer.status, 200, "{path}: {answer:?}");
            if !stream {
                assert!(answer.body.contains(" three"), "{path}: {answer:?}");
            }
            let prompt = last_prompt(&web);
            assert!(prompt.ends_with("one, two,"), "{path}: {prompt}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_effort_that_the_context_has_no_room_for_is_told_on_every_api() {
    let mut short = options();
    short.prompt.max_effort_min_context = 1 << 20;
    let web = Web::start(Behaviour::default(), short, vec!["t</think>said"; 6]).await;
    let messages = json!([{"role": "user", "content": "hi"}]);
    for (path, asked, body) in [
        (
            "/v1/chat/completions",
            true,
            json!({"messages": messages, "reasoning_effort": "max"}),
        ),
        (
            "/v1/responses",
            true,
            json!({"input": "hi", "reasoning": {"effort": "max"}}),
        ),
        (
            "/v1/messages",
            true,
            json!({"messages": messages, "max_tokens": 100, "output_config": {"effort": "max"}}),
        ),
        (
            "/v1/chat/completions",
            false,
            json!({"messages": messages, "reasoning_effort": "high"}),
        ),
    ] {
        let answer = web.post(path, &body).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        let header = answer.header("x-ds4-warnings").unwrap_or_default();
        let told = answer.json()["warnings"][0].clone();
        assert_eq!(header.contains("1048576"), asked, "{path}: {header}");
        assert_eq!(told.is_string(), asked, "{path}: {told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_that_are_not_to_be_stored_are_not_and_those_that_are_say_what_they_answered() {
    let web = Web::start(Behaviour::default(), options(), vec!["a</think>one"; 5]).await;
    for stream in [false, true] {
        let body = json!({"input": "hi", "store": false, "stream": stream});
        let answer = web.post("/v1/responses", &body).await;
        let id = match stream {
            true => answer.events()[0].1["response"]["id"].clone(),
            false => answer.json()["id"].clone(),
        };
        let id = id.as_str().expect("an id");
        let lost = web.get(&format!("/v1/responses/{id}")).await;
        assert_eq!(lost.status, 404);
        assert_eq!(lost.json()["error"]["code"], "response_not_found");
    }
    let first = web
        .post("/v1/responses", &json!({"input": "hi"}))
        .await
        .json();
    let id = first["id"].as_str().expect("an id");
    let item = first["output"].as_array().unwrap().last().unwrap().clone();
    // An item reference stands for the item, and a result alone for the conversation before it.
    let again = json!({"input": [
        {"role": "user", "content": "hi"},
        {"type": "item_reference", "id": item["id"]},
        {"role": "user", "content": "and?"},
    ]});
    assert_eq!(web.post("/v1/responses", &again).await.status, 200);
    assert!(last_prompt(&web).contains("one"), "{}", last_prompt(&web));
    let unknown = json!({"input": [{"type": "item_reference", "id": "msg_x"}]});
    assert_eq!(web.post("/v1/responses", &unknown).await.status, 400);
    let next = json!({"input": "more", "previous_response_id": id});
    let next = web.post("/v1/responses", &next).await.json();
    let next_id = next["id"].as_str().expect("an id");
    let items = |query: &str| format!("/v1/responses/{next_id}/input_items{query}");
    let page = web.get(&items("?order=asc&limit=1")).await.json();
    assert_eq!(
        (&page["has_more"], page["data"].as_array().map(Vec::len)),
        (&json!(true), Some(1))
    );
    let after = page["last_id"].as_str().expect("an id");
    let rest = web
        .get(&items(&format!("?order=asc&after={after}")))
        .await
        .json();
    assert_eq!(rest["data"].as_array().map(Vec::len), Some(3), "{rest}");
    assert_eq!(web.get(&items("?limit=101")).await.status, 400);
    let cancel = |id: &str| format!("/v1/responses/{id}/cancel");
    assert_eq!(web.post(&cancel(id), &json!({})).await.status, 400);
    assert_eq!(web.post(&cancel("resp_x"), &json!({})).await.status, 404);
    let deleted = web
        .ask("DELETE", &format!("/v1/responses/{id}"), &[], "")
        .await;
    assert_eq!(deleted.json()["deleted"], true);
    assert_eq!(
        web.get(&items("")).await.status,
        200,
        "the next one has all it needs"
    );
    let gone = web
        .ask("DELETE", &format!("/v1/responses/{id}"), &[], "")
        .await;
    assert_eq!(gone.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_of_token_ids_reaches_the_model_as_it_is() {
    let web = Web::start(Behaviour::default(), options(), vec!["said"; 3]).await;
    let ids = tokenizer().encode("<think>Once");
    for prompt in [json!(ids), json!([ids])] {
        let answer = web
            .post("/v1/completions", &json!({"prompt": prompt}))
            .await
            .json();
        assert_eq!(answer["choices"][0]["text"], "said");
        assert_eq!(answer["usage"]["prompt_tokens"], ids.len());
        assert_eq!(web.seen.lock().unwrap().prompts.last().unwrap().0, ids);
    }
    let unknown = web
        .post("/v1/completions", &json!({"prompt": [4_000_000]}))
        .await;
    assert_eq!(unknown.status, 400, "{unknown:?}");
    assert_eq!(unknown.json()["error"]["param"], "prompt");
}

#[tokio::test(flavor = "multi_thread")]
async fn text_completions_may_be_chats() {
    let mut chatty = options();
    chatty.preferences.completions_prompt = CompletionsPrompt::Chat;
    let web = Web::start(Behaviour::default(), chatty, vec!["said"]).await;
    let body = json!({"prompt": "hi", "echo": true});
    let answer = web.post("/v1/completions", &body).await.json();
    assert_eq!(answer["choices"][0]["text"], "hisaid");
    let text = last_prompt(&web);
    assert!(
        text.ends_with("<｜User｜>hi<｜Assistant｜></think>"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_may_be_streamed_in_one_go() {
    let call = "t</think>\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">\n\
                <｜DSML｜parameter name=\"x\" string=\"true\">a long value</｜DSML｜parameter>\n\
                </｜DSML｜invoke>\n</｜DSML｜tool_calls>";
    let tool =
        json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}});
    let body =
        json!({"messages": [{"role": "user", "content": "hi"}], "tools": [tool], "stream": true});
    for (pieces, is_one) in [(CallPieces::Delta, false), (CallPieces::Whole, true)] {
        let mut options = options();
        options.preferences = Preferences {
            calls: pieces,
            ..Preferences::default()
        };
        let web = Web::start(Behaviour::default(), options, vec![call]).await;
        let events = web.post("/v1/chat/completions", &body).await.events();
        let arguments: Vec<&str> = events
            .iter()
            .filter_map(|(_, chunk)| {
                chunk["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"].as_str()
            })
            .filter(|text| !text.is_empty())
            .collect();
        assert_eq!(arguments.concat(), "{\"x\": \"a long value\"}");
        assert_eq!(arguments.len() == 1, is_one, "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_reply_that_is_long_in_coming_may_be_preceded_by_line_feeds() {
    let behaviour = Behaviour {
        tick: Duration::from_millis(20),
        chunk: 8,
        ..Behaviour::default()
    };
    let mut padding = options();
    padding.nonstream_keepalive = true;
    padding.ping_interval = Duration::from_millis(40);
    let failing = Script {
        fails_at: Some(0),
        ..Script::from("x")
    };
    let scripts = [Script::from("t</think>said"), failing];
    let web = Web::start(behaviour, padding, scripts).await;
    let body = json!({"messages": [{"role": "user", "content": "0123456789".repeat(20)}]});
    let answer = web.post("/v1/chat/completions", &body).await;
    assert_eq!(answer.status, 200);
    assert!(answer.body.starts_with("\n\n"), "{:?}", answer.body);
    let message = &answer.json()["choices"][0]["message"];
    assert_eq!(message["content"], "said");
    let body = json!({"messages": [{"role": "user", "content": "9876543210".repeat(20)}]});
    let failed = web.post("/v1/chat/completions", &body).await;
    assert_eq!(failed.status, 200, "that was said before");
    assert_eq!(failed.json()["error"]["type"], "server_error", "{failed:?}");
    // What fails at once has its own status.
    let bad = web
        .post("/v1/chat/completions", &json!({"messages": 3}))
        .await;
    assert_eq!(bad.status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_closes_its_sending_side_is_gone_unless_the_server_is_told_otherwise() {
    let body = json!({"messages": [{"role": "user", "content": "0123456789".repeat(20)}]});
    for is_gone in [true, false] {
        let behaviour = Behaviour {
            tick: Duration::from_millis(10),
            chunk: 8,
            ..Behaviour::default()
        };
        let mut options = options();
        options.half_close_cancels = is_gone;
        let web = Web::start(behaviour, options, ["t</think>said"]).await;
        let mut stream = web
            .open("POST", "/v1/chat/completions", &[], &body.to_string())
            .await;
        while web.seen.lock().unwrap().n_prefilled == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        stream.shutdown().await.expect("half a connection");
        if !is_gone {
            read_until(&mut stream, "said").await;
            continue;
        }
        // Its line says how it ended. What `/slots` shows may be older than the request.
        let line = web.log.line(0).await;
        assert!(line.contains("finish=cancelled"), "{line}");
    }
}
