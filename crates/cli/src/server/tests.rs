use super::*;
use crate::args::OtherNames;
use clap::Args as _;
use ds4_engine::store::Codec;
use ds4_server::api::{CallPieces, CompletionsPrompt, Media, Ping, Preferences, chat, responses};

#[test]
fn the_definition_of_the_arguments_holds_together() {
    ServerArgs::command().debug_assert();
}

#[test]
fn the_flags_of_the_published_guides_are_taken() {
    let line =
        "ds4-server --ctx 100000 --port 0 --cors --tokens 100 --disable-exact-dsml-tool-replay";
    let args = ServerArgs::try_parse_from(line.split(' ')).expect("taken");
    assert_eq!(args.ctx, Some(100_000));
    let options = server_options(&args, Vec::new()).expect("options");
    assert_eq!(options.cors, Cors::Any);
    assert_eq!((options.default_max_tokens, options.max_call_ids), (100, 0));
    let line = "ds4-server --ctx 32k -n -1 --host localhost";
    let args = ServerArgs::try_parse_from(line.split(' ')).expect("taken");
    assert_eq!(args.ctx, Some(32_768));
    assert_eq!(args.host, IpAddr::V4(Ipv4Addr::LOCALHOST));
    let options = server_options(&args, Vec::new()).expect("options");
    assert_eq!(options.default_max_tokens, DEFAULT_MAX_TOKENS);
}

#[test]
fn a_host_that_is_no_address_is_refused_by_what_would_be_one() {
    let args = ServerArgs::try_parse_from(["ds4-server", "--host", "example.org"]);
    let error = args.expect_err("no address").to_string();
    assert!(error.contains("0.0.0.0"), "{error}");
}

fn args(line: &str) -> ServerArgs {
    ServerArgs::try_parse_from(format!("ds4-server {line}").split_whitespace())
        .unwrap_or_else(|e| panic!("{line}: {e}"))
}

#[test]
fn every_choice_that_the_apis_leave_open_reaches_the_server() {
    let line = "--reasoning-field both --responses-reasoning text --tool-stream call \
                --media reject --ping-style chunk --always-usage --keep-client-headers \
                --anthropic-default-thinking off --anthropic-hide-default-thinking \
                --completions-default-max 16 --completions-mode chat";
    let options = server_options(&args(line), Vec::new()).expect("options");
    let off = Thinking {
        mode: Mode::Chat,
        effort: Effort::None,
        budget: None,
    };
    let expected = Preferences {
        chat_reasoning: chat::ReasoningDisplay::Both,
        responses_reasoning: responses::ReasoningDisplay::Text,
        messages_thinking: Some(off),
        hides_default_thinking: true,
        always_usage: true,
        keeps_client_headers: true,
        media: Media::Refuse,
        ping: Ping::Chunk,
        calls: CallPieces::Whole,
        completions_max_tokens: Some(16),
        completions_prompt: CompletionsPrompt::Chat,
    };
    assert_eq!(options.preferences, expected);
    let line = "--nonstream-keepalive --half-close-cancels off --alias quick=low";
    let options = server_options(&args(line), Vec::new()).expect("options");
    assert_eq!(options.preferences, Preferences::default());
    assert!(options.nonstream_keepalive && !options.half_close_cancels);
    let quick = options.aliases["quick"].expect("a preset");
    assert_eq!((quick.mode, quick.effort), (Mode::Thinking, Effort::Low));
}

#[test]
fn an_empty_key_is_refused_and_a_file_of_keys_may_have_notes() {
    let empty = ["ds4-server", "--api-key", ""];
    let empty = ServerArgs::try_parse_from(empty).expect("taken");
    let error = keys(&empty).expect_err("no key").to_string();
    assert!(error.contains("--api-key is empty"), "{error}");

    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "\u{feff}one\r\n# of the others\n\n two \n").expect("text");
    let given = args(&format!("--api-key-file {}", file.path().display()));
    assert_eq!(keys(&given).expect("keys"), ["one", "two"]);
    std::fs::write(file.path(), "# none\n").expect("text");
    assert!(keys(&given).is_err());
}

#[test]
fn listening_beyond_this_machine_takes_a_key_or_the_word_for_it() {
    let refused = run(args("--host 0.0.0.0 --port 0")).expect_err("no key");
    let refused = refused.to_string();
    assert!(refused.contains("--without-key"), "{refused}");
    assert!(args("--host 0.0.0.0 --without-key").without_key);
}

#[test]
fn the_flags_of_the_folder_reach_the_store() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("states");
    let with = |line: &str| args(&format!("--kv-disk-dir {} {line}", path.display()));
    let plain = with("");
    assert_eq!(plain.store.without_effect(), Vec::<&str>::new());
    let mut options = StoreOptions::default();
    plain.store.apply(&mut options);
    let default = StoreOptions::default();
    assert_eq!(
        (
            options.exclusive,
            options.codec,
            options.keep_free_bytes,
            options.write_budget_bytes_per_day
        ),
        (
            default.exclusive,
            default.codec,
            default.keep_free_bytes,
            default.write_budget_bytes_per_day
        )
    );
    let other =
        with("--kv-exclusive --kv-codec none --kv-write-budget-gb-per-day 3 --kv-keep-free-mb 0");
    other.store.apply(&mut options);
    assert!(options.exclusive);
    assert_eq!(options.codec, Codec::None);
    assert_eq!(options.write_budget_bytes_per_day, 3 << 30);
    assert_eq!(options.keep_free_bytes, 0);

    let used = |args: &ServerArgs| {
        let used = args.store.folder(args.kv_disk_dir.as_deref());
        used.expect("it can be emptied").map(Path::to_owned)
    };
    assert_eq!(used(&plain), Some(path.clone()));
    assert_eq!(used(&with("--no-kv-disk")), None);
    assert_eq!(
        used(&with("--kv-clear")),
        Some(path.clone()),
        "nothing to empty"
    );
    let quarantine = path.join("quarantine");
    std::fs::create_dir_all(&quarantine).expect("a folder");
    std::fs::write(quarantine.join("file"), "x").expect("a file");
    std::fs::write(path.join("format"), "dsv4-cache 2\n").expect("a file");
    assert_eq!(used(&plain), Some(path.clone()));
    assert!(quarantine.exists());
    assert_eq!(used(&with("--kv-clear")), Some(path.clone()));
    assert!(!quarantine.exists(), "it was emptied");

    let ds4 = "--kv-cache-cold-max-tokens 30000 --kv-cache-continued-interval-tokens 10000 \
               --kv-cache-boundary-trim-tokens 32 --kv-cache-boundary-align-tokens 2048 \
               --kv-cache-reject-different-quant";
    assert_eq!(with(ds4).store.without_effect().len(), 5);
    assert!(
        ServerArgs::try_parse_from(["ds4-server", "--kv-exclusive"]).is_err(),
        "it needs a folder"
    );
}

#[test]
fn the_documentation_lists_exactly_the_flags_that_there_are() {
    let page = include_str!("../../../../docs/cli.md");
    let (_, section) = page.split_once("\n## `ds4-server`\n").expect("a section");
    let section = section.split("\n## ").next().unwrap_or_default();
    // Flags stand in code spans; the example runs over a line of its own.
    let spans = section.split('`').skip(1).step_by(2);
    let is_name = |c: char| c.is_ascii_lowercase() || c == '-';
    let mut described: Vec<&str> = spans
        .flat_map(|span| span.split("--").skip(1))
        .map(|flag| flag.split(|c| !is_name(c)).next().unwrap_or_default())
        .collect();
    described.sort_unstable();
    // The line of one flag may speak of another.
    described.dedup();
    let command = ServerArgs::command();
    // Flags of other programs are told of in one place for all of ours.
    let others = OtherNames::augment_args(clap::Command::new("others"));
    let is_ours = |flag: &&str| !others.get_arguments().any(|a| a.get_long() == Some(flag));
    let mut flags: Vec<&str> = command
        .get_arguments()
        .filter_map(|argument| argument.get_long())
        .filter(is_ours)
        .collect();
    flags.sort_unstable();
    assert_eq!(described, flags);
}
