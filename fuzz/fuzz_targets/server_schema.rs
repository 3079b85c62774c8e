//! Compiling schemas, for content and for the arguments of a tool: a reader, whose first tokens are
//! known, or an error; within the time of a fuzzer's case, and without a panic.
#![no_main]

use std::sync::OnceLock;

use ds4_server::generation::{Endpoint, Generation, OutputSchema, PromptSource, Tool};
use ds4_server::schema::Schemas;
use ds4_text::Tokenizer;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

fn schemas() -> &'static Schemas {
    static SCHEMAS: OnceLock<Schemas> = OnceLock::new();
    SCHEMAS.get_or_init(|| {
        let document = include_str!("../../testdata/text/small_tokenizer.json");
        let tokenizer = Tokenizer::from_tokenizer_json(document).expect("a vocabulary");
        Schemas::new(&tokenizer).expect("a vocabulary")
    })
}

fuzz_target!(|text: &str| {
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
});
