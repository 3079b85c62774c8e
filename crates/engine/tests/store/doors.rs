//! What stands in the place of the store's files and folders and is something else.
#![cfg(unix)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use ds4_engine::SimdPath;
use ds4_engine::store::{CompatInputs, CompatKey, Store, WeightsFingerprint};

use crate::lookup::{lengths, save};
use crate::synthetic::{key_of, open, small_geometry, small_layout, small_options, tokens};

fn pipe(path: &Path) {
    let made = Command::new("mkfifo").arg(path).status();
    assert!(made.expect("mkfifo").success());
}

/// Why a folder is not opened.
fn refusal(dir: &Path) -> String {
    let layout = small_layout();
    let key = key_of(&small_geometry(), &layout, 1);
    let opened = Store::open(dir, small_options(), key, layout);
    opened.expect_err("it is not opened").to_string()
}

#[test]
fn links_and_pipes_in_the_place_of_files_and_folders_are_neither_followed_nor_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let prompt = tokens(1, 40);
    save(&open(dir.path(), small_options()), &prompt);
    let layout = small_layout();
    let compat = dir
        .path()
        .join(key_of(&small_geometry(), &layout, 1).folder());
    let elsewhere = dir.path().join("elsewhere");
    for moved in [compat.clone(), compat.join("points"), compat.join("blocks")] {
        fs::rename(&moved, &elsewhere).unwrap();
        symlink(&elsewhere, &moved).unwrap();
        let refusal = refusal(dir.path());
        assert!(refusal.contains("expected a folder"), "{refusal}");
        fs::remove_file(&moved).unwrap();
        fs::rename(&elsewhere, &moved).unwrap();
    }
    for name in ["format", "lock"] {
        let file = dir.path().join(name);
        fs::rename(&file, &elsewhere).unwrap();
        for stand_in in [pipe as fn(&Path), |file| {
            symlink("elsewhere", file).unwrap()
        }] {
            stand_in(&file);
            let refusal = refusal(dir.path());
            assert!(refusal.contains("expected a file"), "{name}: {refusal}");
            fs::remove_file(&file).unwrap();
        }
        fs::rename(&elsewhere, &file).unwrap();
    }
    // Beside good files they are nothing.
    let strange = "0123456789abcdef0123456789abcdef";
    pipe(&compat.join("points").join(format!("{strange}.pt")));
    fs::create_dir_all(compat.join("blocks/01")).unwrap();
    pipe(&compat.join("blocks/01").join(format!("{strange}.blk")));
    pipe(&compat.join("journal"));
    let store = open(dir.path(), small_options());
    assert_eq!(lengths(&store.find(&tokens(1, 41), None)), [40]);
    assert_eq!(store.take_notices(), []);
}

#[test]
fn states_of_other_kernels_are_those_of_another_model() {
    let (geometry, layout) = (small_geometry(), small_layout());
    let key = |numerics_class: &str| {
        let inputs = CompatInputs {
            geometry: &geometry,
            weights: WeightsFingerprint([1; 32]),
            tokenizer: [0; 32],
            numerics_class,
        };
        CompatKey::new(&inputs, &layout)
    };
    let classes = SimdPath::ALL.map(|path| key(&format!("cpu {path}")));
    for (i, class) in classes.iter().enumerate() {
        assert!(!classes[..i].contains(class), "two of {:?}", SimdPath::ALL);
    }
    let dir = tempfile::tempdir().unwrap();
    let open = |key| Store::open(dir.path(), small_options(), key, layout.clone()).expect("opens");
    save(&open(classes[0]), &tokens(1, 40));
    assert_eq!(
        lengths(&open(classes[1]).find(&tokens(1, 41), None)),
        [0; 0]
    );
    assert_eq!(lengths(&open(classes[0]).find(&tokens(1, 41), None)), [40]);
}
