//! How conversations may end, and what they may hold.

use super::*;

#[test]
fn the_last_message_can_be_continued() {
    let begun = |more: Value| {
        let mut last = json!({"role": "assistant", "content": "Once", "reasoning_content": "r"});
        for (name, value) in more.as_object().unwrap() {
            last[name] = value.clone();
        }
        json!([{"role": "user", "content": "u"}, last])
    };
    for body in [
        json!({"messages": begun(json!({"prefix": true}))}),
        json!({"messages": begun(json!({}))}),
        json!({"messages": begun(json!({})), "continue_final_message": true}),
        json!({"messages": begun(json!({})), "add_generation_prompt": false}),
    ] {
        let PromptSource::Messages(found) = good(body.clone()).generation.prompt else {
            panic!("a conversation");
        };
        let last = found.last().unwrap();
        assert!(last.open_ended, "{body}");
        assert_eq!(
            (last.content.as_str(), last.reasoning.as_deref()),
            ("Once", Some("r"))
        );
    }
    let call =
        json!([{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]);
    for (body, param) in [
        (
            json!({"messages": begun(json!({"tool_calls": call}))}),
            "messages[1]",
        ),
        (
            json!({"messages": begun(json!({"tool_calls": call, "prefix": true}))}),
            "messages[1]",
        ),
        (json!({"continue_final_message": true}), "messages[0]"),
        (
            json!({"messages": [
                {"role": "user", "content": "u"},
                {"role": "assistant", "content": "a", "prefix": true},
                {"role": "user", "content": "v"},
            ]}),
            "messages[1].prefix",
        ),
    ] {
        refused(body, FailureKind::Invalid, param);
    }
}

#[test]
fn messages_that_are_none_are_refused_with_their_place() {
    for (list, param) in [
        (json!(null), "messages"),
        (json!([]), "messages"),
        (json!("Hello"), "messages"),
        (json!(["Hello"]), "messages[0]"),
        (json!([{"content": "a"}]), "messages[0].role"),
        (
            json!([{"role": "narrator", "content": "a"}]),
            "messages[0].role",
        ),
        (json!([{"role": "system", "content": "a"}]), "messages"),
        (
            json!([{"role": "user", "content": 7}]),
            "messages[0].content",
        ),
        (
            json!([{"role": "user", "content": [{"text": "a"}]}]),
            "messages[0].content[0].type",
        ),
        (
            json!([{"role": "tool", "content": "a"}]),
            "messages[0].tool_call_id",
        ),
        (
            json!([{"role": "tool", "tool_call_id": "x", "content": "a"}]),
            "messages[0].tool_call_id",
        ),
    ] {
        refused(json!({"messages": list}), FailureKind::Invalid, param);
    }
    let lone_result = good(json!({"messages": [
        {"role": "user", "content": "u"},
        {"role": "tool", "tool_call_id": "unknown", "content": "a"},
    ]}));
    assert_eq!(
        lone_result.warnings.len(),
        1,
        "a result without its call is let in"
    );
    let legacy = messages(json!([
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": null, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "a"},
    ]));
    assert_eq!(legacy[2].role, Role::Tool);
    assert_eq!(legacy[2].tool_call_id, legacy[1].tool_calls[0].id);
}

#[test]
fn reminders_and_tasks_are_extensions() {
    let found = messages(json!([
        {"role": "latest_reminder", "content": "2026-11-21"},
        {"role": "user", "content": "u", "task": "query"},
    ]));
    assert_eq!(found[0].role, Role::LatestReminder);
    assert_eq!(found[1].task, Some(Task::Query));
    let titled = messages(json!([
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a", "task": "title"},
    ]));
    assert_eq!(titled[1].task, Some(Task::Title));
    for last in [
        json!({"role": "user", "content": "u", "task": "title"}),
        json!({"role": "user", "content": "u", "task": "dance"}),
    ] {
        refused(
            json!({"messages": [last]}),
            FailureKind::Invalid,
            "messages[0].task",
        );
    }
}
