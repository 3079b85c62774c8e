//! Typed access to metadata.

use ds4_formats::gguf::{Error, Metadata, Value, optional};

fn one(value: impl Into<Value>) -> Metadata {
    let mut metadata = Metadata::new();
    metadata.insert("k", value);
    metadata
}

#[test]
fn an_integer_is_accepted_in_every_width_that_holds_it() {
    let ones: [Value; 8] = [
        1u8.into(),
        1i8.into(),
        1u16.into(),
        1i16.into(),
        1u32.into(),
        1i32.into(),
        1u64.into(),
        1i64.into(),
    ];
    for value in ones {
        let metadata = one(value.clone());
        assert_eq!(metadata.u32("k").unwrap(), 1, "{value:?}");
        assert_eq!(metadata.u64("k").unwrap(), 1, "{value:?}");
        assert_eq!(metadata.f32("k").unwrap(), 1.0, "{value:?}");
    }
    let arrays: [Value; 8] = [
        vec![7u8].into(),
        vec![7i8].into(),
        vec![7u16].into(),
        vec![7i16].into(),
        vec![7u32].into(),
        vec![7i32].into(),
        vec![7u64].into(),
        vec![7i64].into(),
    ];
    for value in arrays {
        let metadata = one(value.clone());
        assert_eq!(metadata.u32s("k").unwrap(), [7], "{value:?}");
        assert_eq!(metadata.i32s("k").unwrap(), [7], "{value:?}");
        assert_eq!(metadata.f32s("k").unwrap(), [7.0], "{value:?}");
    }
    assert_eq!(one(2.5f64).f32("k").unwrap(), 2.5);
    assert_eq!(one(vec![2.5f64]).f32s("k").unwrap(), [2.5]);
}

#[test]
fn a_wrong_value_is_shown_with_what_was_expected() {
    let error = |result: Result<(), Error>| result.unwrap_err().to_string();
    let cases = [
        (
            error(one(-1i32).u32("k").map(drop)),
            "metadata key \"k\": found i32 -1, expected an integer from 0 to 4294967295",
        ),
        (
            error(one(1u64 << 32).u32("k").map(drop)),
            "metadata key \"k\": found u64 4294967296, expected an integer from 0 to 4294967295",
        ),
        (
            error(one("x").f32("k").map(drop)),
            "metadata key \"k\": found string \"x\", expected a number",
        ),
        (
            error(one(1u8).bool("k").map(drop)),
            "metadata key \"k\": found u8 1, expected a boolean",
        ),
        (
            error(one(vec![1u32, 2, 3, 4, 5, 6, 7]).str("k").map(drop)),
            "metadata key \"k\": found array of 7 u32 [1, 2, 3, 4, 5, 6, ...], expected a string",
        ),
        (
            error(one(vec![-1i32]).u32s("k").map(drop)),
            "metadata key \"k\": found array of 1 i32 [-1], \
             expected an array of integers from 0 to 4294967295",
        ),
        (
            error(one("é".repeat(50)).strs("k").map(drop)),
            &format!(
                "metadata key \"k\": found string \"{}\"... (100 bytes), \
                 expected an array of strings",
                "é".repeat(40)
            ),
        ),
        (
            error(one(1u8).u32("other").map(drop)),
            "metadata key \"other\" is missing, expected an integer from 0 to 4294967295; \
             is this the right kind of file?",
        ),
    ];
    for (found, expected) in cases {
        assert_eq!(found, expected);
    }
}

#[test]
fn only_a_missing_key_is_optional() {
    assert_eq!(optional(one(1u8).u32("other")).unwrap(), None);
    assert_eq!(optional(one(1u8).u32("k")).unwrap(), Some(1));
    assert!(optional(one("x").u32("k")).is_err());
}

#[test]
fn inserting_a_known_key_replaces_its_value_in_place() {
    let mut metadata = one(1u8);
    metadata.insert("later", 2u8);
    metadata.insert("k", 3u8);
    let entries: Vec<_> = metadata.iter().collect();
    assert_eq!(entries, [("k", &Value::U8(3)), ("later", &Value::U8(2))]);
}
