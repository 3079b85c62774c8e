//! `ds4 kv`, on a copy of the golden store: one model, one state of 21 tokens, one block.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use ds4_conformance::golden::project_root;
use serde_json::Value;

use crate::program::{Ds4, Ran};

const MODEL: &str = "compat-bbdc347d949432e1";
const BLOCK: &str = "blocks/11/111f472f85611c273f8fdd57e761ab1e.blk";

/// A store in the program's home.
struct Folder {
    ds4: Ds4,
    path: PathBuf,
}

impl Folder {
    fn new() -> Folder {
        let ds4 = Ds4::new();
        let path = ds4.home().join("kv");
        copy(&project_root().join("testdata/store/kv"), &path);
        Folder { ds4, path }
    }

    fn run(&self, args: &[&str]) -> Ran {
        self.ds4
            .run([&["kv"], args, &["--kv-disk-dir", "kv"]].concat())
    }

    fn block(&self) -> PathBuf {
        self.path.join(MODEL).join(BLOCK)
    }

    /// Changes one bit in the last byte of the block.
    fn damage(&self) {
        let mut bytes = fs::read(self.block()).expect("a block");
        *bytes.last_mut().expect("bytes") ^= 1;
        fs::write(self.block(), bytes).expect("a writable file");
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a folder");
    // A store that others can read is refused.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(to, fs::Permissions::from_mode(0o700)).expect("our folder");
    }
    for entry in fs::read_dir(from).expect("the golden store") {
        let path = entry.expect("an entry").path();
        let to = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &to);
        } else {
            fs::copy(&path, &to).expect("a copy");
        }
    }
}

#[test]
fn a_listing_shows_models_states_sizes_and_ages() {
    let folder = Folder::new();
    let ran = folder.run(&["list"]);
    let lines: Vec<&str> = ran.answer().lines().collect();
    assert_eq!(lines[0], "kv");
    assert!(
        lines[1].starts_with("  1 state of 1 model, 0.0 MiB"),
        "{lines:#?}"
    );
    assert_eq!(lines[3], format!("{MODEL}: 1 state, 1 block of 0.0 MiB"));
    let row: Vec<&str> = lines[5].split_whitespace().collect();
    assert_eq!(row[..6], ["21", "1", "0.0", "MiB", "turn", "end"]);
    assert_eq!((row[7], row.len()), ("d", 9), "{row:?}");
    let json: Value = serde_json::from_str(folder.run(&["list", "--json"]).answer()).expect("JSON");
    let model = &json["models"][0];
    assert_eq!(
        (&model["model"], &model["n_blocks"]),
        (&MODEL.into(), &1.into())
    );
    let state = &model["states"][0];
    assert_eq!(state["n_tokens"], 21);
    assert_eq!(state["created_unix"], 1_750_000_000);
    assert_eq!(row[8], state["state"]);
    let file = format!("{MODEL}/points/{}.pt", row[8]);
    let n_bytes = folder.path.join(file).metadata().expect("a point").len();
    assert_eq!(state["n_bytes"], n_bytes);
}

#[test]
fn verification_names_what_is_damaged_and_says_what_to_do() {
    let folder = Folder::new();
    assert!(folder.run(&["verify"]).answer().contains("2 files of"));
    folder.damage();
    let ran = folder.run(&["verify"]);
    ran.refused(&[
        "kv: 1 file damaged",
        "1 state without a block removed",
        "ds4 kv gc",
    ]);
    let named = Path::new("kv").join(MODEL).join(BLOCK);
    let named = format!("  damaged: {}: ", named.display());
    assert!(ran.stdout.contains(&named), "{}", ran.stdout);
    assert!(!folder.block().exists());
    let again = folder.run(&["verify", "--json"]);
    let json: Value = serde_json::from_str(again.answer()).expect("JSON");
    assert_eq!(
        (&json["n_good"], &json["damaged"]),
        (&0.into(), &Value::Array(Vec::new()))
    );
    let is_kept = |folder: &Folder| {
        fs::read_dir(folder.path.join("quarantine"))
            .expect("it")
            .count()
    };
    assert_eq!(is_kept(&folder), 1);
    assert!(folder.run(&["gc"]).answer().contains("freed"));
    assert_eq!(is_kept(&folder), 0);
}

#[test]
fn collection_keeps_what_fits_and_deletes_what_does_not() {
    let folder = Folder::new();
    assert!(
        folder
            .run(&["gc"])
            .answer()
            .starts_with("kv: 0.0 MiB freed")
    );
    assert!(
        folder
            .run(&["list"])
            .answer()
            .contains("1 state of 1 model")
    );
    folder.run(&["gc", "--kv-disk-space-mb", "0"]).answer();
    assert!(
        folder
            .run(&["list"])
            .answer()
            .contains("0 states of 1 model")
    );
    let ran = folder.run(&["gc", "--kv-disk-space-mb", "99999999999999"]);
    assert_eq!(ran.status, Some(2), "{ran:?}");
}

#[test]
fn clearing_wants_a_yes() {
    let folder = Folder::new();
    folder
        .run(&["clear"])
        .refused(&["nothing was deleted", "--yes"]);
    assert!(folder.block().exists());
    fs::write(folder.path.join("mine.txt"), "not the store's").expect("a writable folder");
    assert!(
        folder
            .run(&["clear", "--yes"])
            .answer()
            .ends_with("freed\n")
    );
    assert!(!folder.block().exists());
    assert!(folder.path.join("mine.txt").exists());
    folder.run(&["list"]).refused(&["no KV store is here"]);
}

#[test]
fn all_but_clearing_works_beside_a_server() {
    let folder = Folder::new();
    // What a running server holds.
    let lock = File::create(folder.path.join("lock")).expect("a writable folder");
    lock.lock_shared().expect("a lock");
    for command in ["list", "verify", "gc"] {
        folder.run(&[command]).answer();
    }
    folder
        .run(&["clear", "--yes"])
        .refused(&["kv is in use by another process"]);
    assert!(folder.block().exists());
    drop(lock);
    folder.run(&["clear", "--yes"]).answer();
}

#[test]
fn a_folder_that_is_no_store_is_refused() {
    let ds4 = Ds4::new();
    for command in ["list", "verify", "gc", "clear"] {
        ds4.run(["kv", command, "--kv-disk-dir", "."])
            .refused(&["no KV store is here"]);
        ds4.run(["kv", command, "--kv-disk-dir", "nowhere"])
            .refused(&["nowhere"]);
    }
}
