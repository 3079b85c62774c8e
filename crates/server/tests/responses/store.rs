//! What is stored, and what goes on from it.

use super::*;

/// Answers a request with one call, and keeps the response.
fn answer_and_keep(body: &Value, store: &mut MemoryStore) -> (Parsed, Value) {
    let parsed = parse_with_store(body, &common::context(), store).expect("a good request");
    let mut writer = Writer::new(9, 0);
    writer.reasoning("Hm");
    writer.call("book", &["{}"], true);
    let script = writer.finish(Finish::ToolCalls);
    let mut response = complete(&script.outcome, &script.logprobs, &parsed.reply);
    // Scripted calls have the same id in every reply.
    let n = parsed.input.len();
    response["output"][1]["call_id"] = format!("call_{n}").into();
    store.put(StoredResponse {
        input: parsed.input.clone(),
        response: response.clone(),
    });
    (parsed, response)
}

#[test]
fn a_stored_response_is_continued_as_if_all_had_been_sent_again() {
    let mut store = MemoryStore::new(10, 1 << 20);
    let first = json!({"instructions": "Not inherited.", "input": "Hi"});
    let (_, response) = answer_and_keep(&first, &mut store);
    let output = json!({"type": "function_call_output", "call_id": "call_1", "output": "ok"});
    let mut whole = vec![json!({"type": "message", "role": "user", "content": "Hi"})];
    whole.extend(response["output"].as_array().unwrap().iter().cloned());
    whole.push(output.clone());
    let expected = parsed(&json!({"input": whole}));

    let by_id = json!({"input": [output], "previous_response_id": response["id"]});
    let by_call = json!({"input": [output]});
    let mut references = vec![whole[0].clone()];
    for item in response["output"].as_array().unwrap() {
        references.push(json!({"type": "item_reference", "id": item["id"]}));
    }
    references.push(output.clone());
    let by_reference = json!({"input": references});
    for body in [&by_id, &by_call, &by_reference] {
        let parsed = parse_with_store(body, &common::context(), &store).expect("it is stored");
        assert_eq!(messages(&parsed), messages(&expected), "{body}");
        let input = parsed.input.iter().map(|item| serde_json::from_str(item));
        let input: Vec<Value> = input.collect::<Result<_, _>>().expect("JSON");
        assert_eq!(input, whole, "{body}");
    }
    let parsed = parse_with_store(&by_id, &common::context(), &store).unwrap();
    assert_eq!(parsed.reply.echo["previous_response_id"], response["id"]);

    // The next turn has them all, and shares the items.
    let (second, response) = answer_and_keep(&by_id, &mut store);
    let third = json!({"input": "Thanks", "previous_response_id": response["id"]});
    let third = parse_with_store(&third, &common::context(), &store).expect("it is stored");
    assert_eq!(third.input.len(), 7);
    assert!(Arc::ptr_eq(&third.input[0], &second.input[0]));
}

#[test]
fn what_responses_share_counts_once_and_as_long_as_one_of_them_is_kept() {
    let first = json!({"input": "x".repeat(3000)});
    // Room for the long input once, and for six responses.
    let (_, one) = answer_and_keep(&json!({"input": "y"}), &mut MemoryStore::new(1, 1 << 20));
    let room = 3000 + 6 * (memory::of(&one) + 1500);
    let mut store = MemoryStore::new(3, room);
    let (_, mut last) = answer_and_keep(&first, &mut store);
    for _ in 0..4 {
        let next = json!({"input": "y", "previous_response_id": last["id"]});
        last = answer_and_keep(&next, &mut store).1;
    }
    assert_eq!(store.len(), 3);
    // The responses that brought the long input are gone, the input is not.
    let mut store = MemoryStore::new(2, room);
    let (_, mut last) = answer_and_keep(&first, &mut store);
    for i in 0..3 {
        let long =
            json!({"input": format!("{i}").repeat(room / 3), "previous_response_id": last["id"]});
        last = answer_and_keep(&long, &mut store).1;
    }
    let id = last["id"].as_str().expect("an id");
    assert!(
        store.response(id).is_none(),
        "with what it holds it is over the limit"
    );
    assert!(store.is_empty());
    let (_, kept) = answer_and_keep(&first, &mut store);
    assert!(
        store.response(kept["id"].as_str().unwrap()).is_some(),
        "all room is there again"
    );
}

/// What a store takes for one response and its input, in memory and not as text.
fn store_of_one() -> usize {
    let mut store = MemoryStore::new(1, 1 << 20);
    let (parsed, response) = answer_and_keep(&json!({"input": "Hi 0"}), &mut store);
    let input = parsed.input.iter().map(|item| memory::of_shared_text(item));
    let input: usize = input.sum();
    let bytes = memory::of(&response) + input;
    assert!(
        bytes > 4 * response.to_string().len(),
        "text is the least of it"
    );
    bytes + parsed.input.len() * size_of::<Arc<str>>()
}

#[test]
fn a_store_keeps_to_its_limits() {
    let keep = |max_responses, max_bytes| {
        let mut store = MemoryStore::new(max_responses, max_bytes);
        let mut ids = Vec::new();
        for i in 0..5 {
            let (_, response) = answer_and_keep(&json!({"input": format!("Hi {i}")}), &mut store);
            ids.push(response["id"].as_str().unwrap().to_owned());
        }
        (store, ids)
    };
    let (mut store, ids) = keep(2, 1 << 20);
    assert_eq!(store.len(), 2);
    assert!(store.response(&ids[2]).is_none(), "the oldest are dropped");
    let last = store.response(&ids[4]).expect("the last is kept");
    let item = last.output()[0]["id"].as_str().unwrap();
    assert_eq!(store.response_with_item(item).as_ref(), Some(&last));
    assert!(store.remove(&ids[4]));
    assert!(!store.remove(&ids[4]));
    assert!(store.response_with_item(item).is_none());
    assert_eq!(store.len(), 1);
    let now = common::context().now_unix;
    store.expire(now + MAX_AGE_S);
    assert_eq!(store.len(), 1, "it has the age at which it is still kept");
    store.expire(now + MAX_AGE_S + 1);
    assert!(store.is_empty(), "30 days are over");
    let one = store_of_one();
    let (store, _) = keep(100, one + one / 2);
    assert_eq!(store.len(), 1, "there is room for one and a half");
    let (store, _) = keep(100, 10);
    assert!(store.is_empty());
    assert_eq!(
        deleted("resp_1"),
        json!({"id": "resp_1", "object": "response", "deleted": true})
    );
}

#[test]
fn input_items_are_listed_in_pages() {
    let mut store = MemoryStore::new(10, 1 << 20);
    let items: Vec<Value> = (0..5)
        .map(|i| json!({"role": "user", "content": format!("{i}")}))
        .collect();
    let (_, response) = answer_and_keep(&json!({"input": items}), &mut store);
    let stored = store.response(response["id"].as_str().unwrap()).unwrap();
    let mut after: Option<String> = None;
    let mut seen = Vec::new();
    loop {
        let page = input_items(&stored, Some("asc"), after.as_deref(), Some(2)).unwrap();
        for item in page["data"].as_array().unwrap() {
            assert_eq!(item["type"], "message");
            seen.push(item["content"].as_str().unwrap().to_owned());
        }
        if page["has_more"] == false {
            break;
        }
        after = page["last_id"].as_str().map(str::to_owned);
    }
    assert_eq!(seen, ["0", "1", "2", "3", "4"]);
    let latest = input_items(&stored, None, None, Some(1)).unwrap();
    assert_eq!(latest["data"][0]["content"], "4");
    assert_eq!(latest["first_id"], latest["last_id"]);
    for (order, after, limit) in [
        (Some("random"), None, None),
        (None, Some("nobody"), None),
        (None, None, Some(0)),
        (None, None, Some(101)),
    ] {
        let failure = input_items(&stored, order, after, limit).expect_err("a bad page");
        assert_eq!(failure.kind, FailureKind::Invalid);
    }
}
