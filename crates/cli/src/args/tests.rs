use super::*;
use clap::CommandFactory as _;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    let words = std::iter::once("ds4").chain(line.split_whitespace());
    Cli::try_parse_from(spelled_for_clap(words.map(OsString::from)))
}

#[test]
fn the_definition_of_the_arguments_holds_together() {
    Cli::command().debug_assert();
}

#[test]
fn the_flags_of_the_published_guides_say_what_they_said() {
    let ask = |line: &str| {
        let cli = parse(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        assert!(cli.command.is_none(), "{line}");
        cli.ask
    };
    assert_eq!(ask("-p Hello").prompt.as_deref(), Some("Hello"));
    assert_eq!(ask("-p -1").prompt.as_deref(), Some("-1"));
    assert_eq!(ask("--prompt-file f").prompt_file, Some("f".into()));
    assert_eq!(ask("-p x -m f.gguf").engine.model, Some("f.gguf".into()));
    assert_eq!(ask("-p x -n 7").tokens, Some(7));
    assert_eq!(ask("-p x --tokens 7").tokens, Some(7));
    assert_eq!(ask("-p x --ctx 100000").ctx, Some(100_000));
    assert_eq!(ask("-p x -c 64").ctx, Some(64));
    assert_eq!(ask("-p x -c 32k").ctx, Some(32_768));
    assert_eq!(ask("-p x -c 1M").ctx, Some(1 << 20));
    assert_eq!(ask("-p x -c 100_000").ctx, Some(100_000));
    assert_eq!(ask("-p x -n -1").tokens, Some(NO_LIMIT));
    assert_eq!(
        ask("-ngl 99 x").engine.others.n_gpu_layers.as_deref(),
        Some("99")
    );
    assert_eq!(ask("x --mtp f").engine.others.mtp, Some("f".into()));
    assert_eq!(ask("question").question.as_deref(), Some("question"));
    assert_eq!(ask("-p x --temp 0").temp, 0.0);
    assert_eq!(ask("-p x -sys Be").system.as_deref(), Some("Be"));
    assert_eq!(ask("-p x --system Be").system.as_deref(), Some("Be"));
    assert_eq!(ask("-p x -t 4").engine.threads, Some(4));
    assert_eq!(ask("-p x --seed 9").seed, Some(9));
    assert_eq!(ask("-p x --simd avx2").engine.simd, Some(SimdArg::Avx2));
    assert_eq!(
        ask("-p x --backend reference").engine.backend,
        BackendArg::Reference
    );
    assert_eq!(
        ask("-p x --prompt-revision 0731").prompt_revision,
        RevisionArg::R0731
    );
    let thinking = |line: &str| {
        let ask = ask(line);
        (ask.think, ask.nothink, ask.think_max)
    };
    assert_eq!(thinking("-p x"), (false, false, false));
    assert_eq!(thinking("-p x --think"), (true, false, false));
    assert_eq!(thinking("-p x --nothink"), (false, true, false));
    assert_eq!(thinking("-p x --think-max"), (false, false, true));
    assert_eq!(ask("-p x --dump-logprobs f").logprobs_top_k, 20);
    assert_eq!(
        ask("-p x --dump-logprobs f --logprobs-top-k 3").logprobs_top_k,
        3
    );
    let none = ask("");
    assert_eq!(
        (none.temp, none.top_k, none.top_p, none.min_p),
        (1.0, 0, 1.0, 0.05)
    );
}

#[test]
fn subcommands_have_flags_of_their_own() {
    let command = |line: &str| {
        let cli = parse(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        cli.command
            .unwrap_or_else(|| panic!("{line}: no subcommand"))
    };
    match command("logits -m f --tokens 1,2,3 --chunk 5,1 --no-cache-rounding --out o") {
        Command::Logits(args) => {
            assert_eq!(args.tokens, [1, 2, 3]);
            assert_eq!(args.chunk, [5, 1]);
            assert!(args.no_cache_rounding);
        }
        other => panic!("{other:?}"),
    }
    match command("bench --contexts 8,16 -n 2") {
        Command::Bench(args) => {
            assert_eq!(
                (args.contexts, args.tokens, args.chunk),
                (vec![8, 16], 2, None)
            );
        }
        other => panic!("{other:?}"),
    }
    match command("inspect f --json --tensors --bandwidth 273") {
        Command::Inspect(args) => {
            assert!(args.json && args.tensors);
            assert_eq!(args.bandwidth, Some(273.0));
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(
        command("text tokenize --tokenizer f"),
        Command::Text(TextArgs { door: TextDoor::Tokenize(args) }) if args.tokenizer.is_some()
    ));
}

#[test]
fn the_old_spelling_of_the_system_flag_is_only_a_flag_before_the_end_of_flags() {
    let spelled = spelled_for_clap(["-sys", "a", "--", "-sys"].map(OsString::from));
    assert_eq!(spelled, ["--system", "a", "--", "-sys"].map(OsString::from));
}

/// The long flags of a command and of those below it, hidden ones too.
fn flags(command: &clap::Command) -> Vec<String> {
    let mut flags: Vec<String> = command.get_subcommands().flat_map(self::flags).collect();
    for arg in command.get_arguments() {
        let others = arg.get_all_aliases().unwrap_or_default();
        let names = arg.get_long().into_iter().chain(others);
        flags.extend(names.map(|name| format!("--{name}")));
    }
    flags
}

/// What looks like a flag in a text.
fn flags_in(text: &str) -> impl Iterator<Item = &str> {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    text.split(move |c| !is_part(c))
        .filter(|word| word.starts_with("--") && word.len() > 3 && word.as_bytes()[2] != b'-')
        .map(|word| word.trim_end_matches('-'))
}

#[test]
fn every_flag_of_the_documents_is_one() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let read = |name: &str| std::fs::read_to_string(format!("{root}/{name}")).expect("a document");
    let mut known = flags(&Cli::command());
    // What Cargo is told to build, too.
    known.extend(["--help", "--version", "--features"].map(str::to_owned));
    #[cfg(feature = "server")]
    {
        known.extend(flags(&crate::server::command()));
        for document in [
            "README.md",
            "docs/cli.md",
            "docs/api.md",
            "docs/kv-store.md",
        ] {
            let text = read(document);
            // Lines of other programs have flags of their own.
            let ours = text.lines().filter(|line| {
                let others = [
                    "cargo ",
                    "docker ",
                    "packaging/",
                    "npm ",
                    "claude ",
                    "codex ",
                ];
                // Arrows are no flags.
                !line.contains("-->") && !others.iter().any(|other| line.contains(other))
            });
            for flag in ours.flat_map(flags_in) {
                assert!(
                    known.iter().any(|k| k == flag),
                    "{document}: {flag} is no flag"
                );
            }
        }
    }
    assert!(known.len() > 50);
}
