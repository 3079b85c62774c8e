//! Requests and schemas as nobody should send them: they are read, or refused, and never a panic.
//! Also the fuzz targets `server_request` and `server_schema`.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::OnceLock;

use ds4_server::api::{
    Allowance, Document, Preferences, RequestContext, chat, checked, completions, messages,
    responses, utility,
};
use ds4_server::generation::{
    Endpoint, Failure, Generation, OutputSchema, PromptSource, Thinking, Tool,
};
use ds4_server::schema::Schemas;
use ds4_text::{Effort, Mode, Tokenizer};
use serde_json::{Value, json};

fn context() -> RequestContext {
    RequestContext {
        default_thinking: Thinking {
            mode: Mode::Thinking,
            effort: Effort::High,
            budget: None,
        },
        model_id: "model".to_owned(),
        aliases: BTreeMap::new(),
        strict_models: false,
        strict_tools: false,
        preferences: Preferences::default(),
        system_fingerprint: None,
        default_max_tokens: 1000,
        n_context: 4096,
        now_unix: 1_790_000_000,
        request_id: "req_1".to_owned(),
        new_id: || "0".repeat(32),
        headers: BTreeMap::new(),
    }
}

/// Counts what reading takes.
#[derive(Default)]
struct Counted(Cell<usize>);

impl Allowance for Counted {
    fn take(&self, n_bytes: usize) -> Result<(), Failure> {
        self.0.set(self.0.get() + n_bytes);
        Ok(())
    }
}

/// Most that reading takes for every byte of a text, besides a little for the request itself. A
/// message of 24 bytes takes about 300, and some values are kept twice.
const MAX_FACTOR: usize = 320;

/// Reads a body as every endpoint would.
pub(crate) fn request(text: &str) {
    // What a reader of trees takes is taken, and nothing else.
    let tree = ds4_text::json::parse(text);
    let checked = match checked(text) {
        Ok(checked) => checked,
        Err(why) => {
            // A tree has of equal names the last, which hides the number of another.
            let finite = tree.as_ref().is_ok_and(is_finite) && !why.contains("range of f64");
            assert!(!finite, "refused: {text:?}");
            return;
        }
    };
    assert!(tree.is_ok_and(|tree| is_finite(&tree)), "taken: {text:?}");
    let context = context();
    let counted = Counted::default();
    let body = || Document::within(&checked, &counted);
    let readers: [&dyn Fn(); 7] = [
        &|| drop(chat::parse(body(), &context)),
        &|| drop(completions::parse(body(), &context)),
        &|| drop(messages::parse(body(), &context)),
        &|| {
            let store = responses::NoStore;
            drop(responses::parse_with_store(body(), &context, &store));
        },
        &|| drop(utility::parse_tokenize(body(), &context)),
        &|| drop(utility::parse_detokenize(body(), 1000)),
        &|| drop(utility::parse_control(body())),
    ];
    for read in readers {
        counted.0.set(0);
        read();
        let limit = MAX_FACTOR * text.len() + 4096;
        assert!(
            counted.0.get() <= limit,
            "{} bytes for {text:?}",
            counted.0.get()
        );
    }
}

fn is_finite(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.as_f64().is_some_and(f64::is_finite),
        Value::Array(items) => items.iter().all(is_finite),
        Value::Object(members) => members.values().all(is_finite),
        _ => true,
    }
}

fn schemas() -> &'static Schemas {
    static SCHEMAS: OnceLock<Schemas> = OnceLock::new();
    SCHEMAS.get_or_init(|| {
        let document = include_str!("../../../../testdata/text/small_tokenizer.json");
        let tokenizer = Tokenizer::from_tokenizer_json(document).expect("a vocabulary");
        Schemas::new(&tokenizer).expect("a vocabulary")
    })
}

/// Compiles a schema, for content and for the arguments of a tool: a reader whose first tokens are
/// known, or an error.
pub(crate) fn schema(text: &str) {
    let Ok(schema @ Value::Object(_)) = ds4_text::json::parse(text) else {
        return;
    };
    for strict in [true, false] {
        let wanted = OutputSchema {
            schema: schema.clone(),
            strict,
            place: "schema".to_owned(),
        };
        if let Ok((mut reader, _)) = schemas().compile(&wanted) {
            let _ = reader.allowed(false);
        }
        let mut generation = Generation::new(Endpoint::Chat, PromptSource::Text(String::new()));
        generation.tools = vec![Tool {
            name: "f".to_owned(),
            function: json!({"name": "f", "parameters": schema, "strict": strict}),
            input: None,
            deferred: false,
            origin: Value::Null,
        }];
        if let Ok((Some(mut reader), _)) = schemas().calls(&generation) {
            assert!(reader.admitted().is_ok_and(|set| set.is_some()));
        }
    }
}
