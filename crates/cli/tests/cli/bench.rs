//! `ds4 bench`.

use ds4_conformance::golden::project_root;

use crate::program::Ds4;

#[test]
fn every_context_is_a_line_of_csv_that_counts_its_own_increment() {
    let ds4 = Ds4::new();
    let model = project_root().join("testdata/forward/no-sliding/model.gguf");
    let model = model.to_str().expect("a readable path");
    // More decoded tokens than the rings can be cut back by, and contexts out of order.
    let args = [
        "bench",
        "-m",
        model,
        "--contexts",
        "160,32,200",
        "-n",
        "80",
        "--chunk",
        "50",
    ];
    let ran = ds4.run(args);
    let mut lines = ran.answer().lines();
    assert_eq!(
        lines.next(),
        Some("context,prefill_tokens,prefill_ms,prefill_tps,decode_tokens,decode_ms,decode_tps")
    );
    let rows: Vec<Vec<f64>> = lines
        .map(|line| {
            let numbers = line.split(',').map(|n| n.parse().expect("a number"));
            numbers.collect()
        })
        .collect();
    let counted: Vec<[f64; 3]> = rows.iter().map(|r| [r[0], r[1], r[4]]).collect();
    assert_eq!(
        counted,
        [
            [32.0, 32.0, 80.0],
            [160.0, 128.0, 80.0],
            [200.0, 40.0, 80.0]
        ]
    );
    for row in &rows {
        for (n, ms, rate) in [(row[1], row[2], row[3]), (row[4], row[5], row[6])] {
            assert!(ms > 0.0, "{row:?}");
            let error = (n / (ms / 1e3) / rate - 1.0).abs();
            assert!(error < 0.01, "{n} in {ms} ms is not {rate} a second");
        }
    }
    assert!(
        ran.stderr.contains("of weights"),
        "the bytes a token reads: {}",
        ran.stderr
    );
}

#[test]
fn as_json_the_same_is_one_document_with_the_model() {
    let ds4 = Ds4::new();
    let model = project_root().join("testdata/forward/no-sliding/model.gguf");
    let model = model.to_str().expect("a readable path");
    let ran = ds4.run([
        "bench",
        "-m",
        model,
        "--contexts",
        "8,16",
        "-n",
        "2",
        "--json",
    ]);
    let report: serde_json::Value = serde_json::from_str(ran.answer()).expect("JSON");
    assert_eq!(report["file"], model);
    assert!(report["weight_bytes_per_token"].as_u64().expect("a number") > 0);
    let rows = report["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 2);
    assert_eq!(
        (&rows[1]["context"], &rows[1]["prefill_tokens"]),
        (&16.into(), &8.into())
    );
    assert!(rows[0]["decode_tps"].as_f64().expect("a number") > 0.0);
    // Later contexts read more rows beside the same weights.
    let number = |value: &serde_json::Value| value.as_f64().expect("a number");
    let of_weights = number(&report["weight_bytes_per_token"]);
    let bytes: Vec<f64> = rows.iter().map(|r| number(&r["bytes_per_token"])).collect();
    assert!(of_weights < bytes[0] && bytes[0] < bytes[1], "{bytes:?}");
    assert!(number(&report["first_token_ms"]) > number(&report["load_ms"]));
    assert!(
        ran.stderr.contains("to the first token of a prompt of") && ran.stderr.contains("GB/s"),
        "{}",
        ran.stderr
    );
}

#[test]
fn random_weights_and_files_are_not_mixed() {
    let ds4 = Ds4::new();
    for (args, expected) in [
        (&["--layers", "3"][..], "add --weights random"),
        (&["--weights", "random", "-m", "x.gguf"], "leave out -m"),
        (
            &["--weights", "random", "--layers", "44"],
            "the model has 43",
        ),
    ] {
        ds4.run(["bench"].iter().chain(args)).refused(&[expected]);
    }
}
