//! What a release is made of: a bill of materials (CycloneDX 1.5) and the licences of every
//! library in it.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

/// The package whose programs are released, and the features they are built with.
const PACKAGE: &str = "ds4-cli";
const FEATURES: &str = "full";
/// Libraries that are in the page: name, version, licence.
const VENDORED: [(&str, &str, &str); 2] = [
    ("marked", "18.2.1", "MIT AND BSD-3-Clause"),
    ("prism", "1.30.0", "MIT"),
];
/// Where they lie, each with its licence.
const VENDOR: &str = "crates/server/src/http/page/vendor";
/// Beginnings of the names of files that hold a licence or a notice.
const LICENCE_FILES: [&str; 5] = ["license", "licence", "copying", "notice", "unlicense"];

/// Writes `sbom.cdx.json` and `LICENSES-THIRD-PARTY.txt` into a folder.
///
/// # Errors
/// Cargo fails, a library says no licence, or the files cannot be written.
pub(crate) fn run(mut args: impl Iterator<Item = String>) -> Result<(), Box<dyn Error>> {
    let folder = args.next().ok_or("expected a folder")?;
    let mut target = None;
    while let Some(flag) = args.next() {
        match flag.as_str() {
            "--target" => target = Some(args.next().ok_or("--target needs a platform")?),
            _ => return Err(format!("unexpected {flag}").into()),
        }
    }
    let used = used(target.as_deref())?;
    let mut packages = packages(&used)?;
    packages.extend(vendored()?);
    let folder = Path::new(&folder);
    let sbom = serde_json::to_string_pretty(&sbom(&packages)?)? + "\n";
    fs::write(folder.join("sbom.cdx.json"), sbom)?;
    fs::write(
        folder.join("LICENSES-THIRD-PARTY.txt"),
        licences(&packages)?,
    )?;
    println!("{} libraries in {}", packages.len(), folder.display());
    Ok(())
}

fn cargo(args: &[&str]) -> Result<String, Box<dyn Error>> {
    let output = Command::new(env!("CARGO"))
        .args(args)
        .current_dir(crate::root())
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Names and versions of what is linked into the programs.
fn used(target: Option<&str>) -> Result<BTreeSet<(String, String)>, Box<dyn Error>> {
    let mut args = vec![
        "tree",
        "--locked",
        "-p",
        PACKAGE,
        "--features",
        FEATURES,
        "-e",
        "normal",
        "--prefix",
        "none",
        "-f",
        "{p}",
    ];
    if let Some(target) = target {
        args.extend(["--target", target]);
    }
    let mut used = BTreeSet::new();
    for line in cargo(&args)?.lines() {
        let mut words = line.split(' ');
        if let (Some(name), Some(version)) = (words.next(), words.next()) {
            used.insert((name.to_owned(), version.trim_start_matches('v').to_owned()));
        }
    }
    Ok(used)
}

/// A library of others.
struct Package {
    name: String,
    version: String,
    /// Where it comes from, as package URLs name it.
    registry: &'static str,
    /// SPDX expression.
    licence: String,
    repository: Option<String>,
    /// Names and texts of the files that hold its licences and notices.
    texts: BTreeMap<String, String>,
    /// SHA-256 of its archive, hexadecimal.
    checksum: Option<String>,
}

fn packages(used: &BTreeSet<(String, String)>) -> Result<Vec<Package>, Box<dyn Error>> {
    let metadata: Value = serde_json::from_str(&cargo(&[
        "metadata",
        "--locked",
        "--format-version",
        "1",
        "--all-features",
    ])?)?;
    let checksums = checksums(&fs::read_to_string(crate::root().join("Cargo.lock"))?);
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let mut packages = Vec::new();
    for package in metadata["packages"].as_array().ok_or("no packages")? {
        let name = text(&package["name"]).ok_or("a package without a name")?;
        let version = text(&package["version"]).ok_or("a package without a version")?;
        let key = (name, version);
        // Our own have no source.
        if !used.contains(&key) || package["source"].is_null() {
            continue;
        }
        let manifest = package["manifest_path"].as_str().ok_or("no manifest")?;
        let home = Path::new(manifest).parent().ok_or("no folder")?;
        let licence = text(&package["license"])
            .ok_or_else(|| format!("{} {} says no licence", key.0, key.1))?;
        packages.push(Package {
            licence,
            registry: "cargo",
            repository: text(&package["repository"]),
            texts: texts(home)?,
            checksum: checksums.get(&key).cloned(),
            name: key.0,
            version: key.1,
        });
    }
    Ok(packages)
}

/// The libraries in the page.
fn vendored() -> Result<Vec<Package>, Box<dyn Error>> {
    let folder = crate::root().join(VENDOR);
    let of = |(name, version, licence): (&str, &str, &str)| {
        let file = format!("{name}.LICENSE");
        let text = fs::read_to_string(folder.join(&file))?;
        Ok(Package {
            name: name.to_owned(),
            version: version.to_owned(),
            licence: licence.to_owned(),
            registry: "npm",
            repository: None,
            texts: BTreeMap::from([(file, text)]),
            checksum: None,
        })
    };
    VENDORED.into_iter().map(of).collect()
}

/// Files of a package that hold its licences.
fn texts(home: &Path) -> Result<BTreeMap<String, String>, Box<dyn Error>> {
    let mut texts = BTreeMap::new();
    for entry in fs::read_dir(home)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let lower = name.to_lowercase();
        let is_licence = LICENCE_FILES.iter().any(|begin| lower.starts_with(begin));
        if is_licence && entry.file_type()?.is_file() {
            let bytes = fs::read(entry.path())?;
            texts.insert(name, String::from_utf8_lossy(&bytes).into_owned());
        }
    }
    Ok(texts)
}

/// Checksums of a lock file by name and version.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let mut checksums = BTreeMap::new();
    for package in lock.split("[[package]]").skip(1) {
        let field = |name: &str| {
            let line = package.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.trim_start_matches(" = ").trim_matches('"').to_owned())
        };
        if let (Some(name), Some(version), Some(checksum)) =
            (field("name"), field("version"), field("checksum"))
        {
            checksums.insert((name, version), checksum);
        }
    }
    checksums
}

fn sbom(packages: &[Package]) -> Result<Value, Box<dyn Error>> {
    let components: Vec<Value> = packages
        .iter()
        .map(|package| {
            let (registry, version) = (package.registry, &package.version);
            let purl = format!("pkg:{registry}/{}@{version}", package.name);
            let mut component = json!({
                "type": "library",
                "bom-ref": purl,
                "name": package.name,
                "version": package.version,
                "purl": purl,
                "licenses": [{"expression": package.licence.replace('/', " OR ")}],
            });
            if let Some(checksum) = &package.checksum {
                component["hashes"] = json!([{"alg": "SHA-256", "content": checksum}]);
            }
            if let Some(repository) = &package.repository {
                component["externalReferences"] = json!([{"type": "vcs", "url": repository}]);
            }
            component
        })
        .collect();
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {
            "type": "application",
            "name": "ds4",
            "version": env!("CARGO_PKG_VERSION"),
            "licenses": [{"expression": "MIT OR Apache-2.0"}],
        }},
        "components": components,
    }))
}

/// Every text once, with the libraries that it belongs to.
fn licences(packages: &[Package]) -> Result<String, Box<dyn Error>> {
    let mut out = String::from("Libraries in the programs, and their licences.\n\n");
    let mut holders: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for package in packages {
        let name = format!("{} {}", package.name, package.version);
        writeln!(out, "{name}: {}", package.licence)?;
        for text in package.texts.values() {
            holders.entry(text).or_default().push(name.clone());
        }
    }
    for (text, names) in holders {
        write!(
            out,
            "\n{}\n{}\n\n{}\n",
            "-".repeat(78),
            names.join(", "),
            text.trim_end()
        )?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_found_by_name_and_version() {
        let lock = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nsource = \"x\"\n\
                    checksum = \"12ab\"\n\n[[package]]\nname = \"own\"\nversion = \"0.1.0\"\n";
        let key = ("a".to_owned(), "1.0.0".to_owned());
        assert_eq!(checksums(lock), BTreeMap::from([(key, "12ab".to_owned())]));
    }

    #[test]
    fn every_library_has_a_licence_a_checksum_and_a_text_that_is_written_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().display().to_string();
        run([path].into_iter()).expect("written");
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).expect("a file");
        let sbom: Value = serde_json::from_str(&read("sbom.cdx.json")).expect("JSON");
        let components = sbom["components"].as_array().expect("components");
        assert!(components.iter().any(|c| c["name"] == "clap"));
        for component in components {
            let licence = component["licenses"][0]["expression"].as_str();
            assert!(licence.is_some_and(|l| !l.is_empty()), "{component}");
            let is_vendored = component["purl"]
                .as_str()
                .is_some_and(|p| p.contains(":npm/"));
            assert!(
                is_vendored || component["hashes"][0]["content"].is_string(),
                "{component}"
            );
        }
        let licences = read("LICENSES-THIRD-PARTY.txt");
        let mit = "Permission is hereby granted, free of charge";
        assert!(licences.contains(mit));
        assert!(licences.contains("Lea Verou"), "what is in the page");
        let vendored = fs::read_to_string(crate::root().join(VENDOR).join("README.md"));
        let vendored = vendored.expect("a document");
        for (name, version, _) in VENDORED {
            let row = format!("{name} {version}").to_lowercase();
            assert!(
                vendored.to_lowercase().contains(&row),
                "{row} is not what lies there"
            );
        }
        // Tools of the tests are not in the programs.
        assert!(!licences.contains("\nproptest "), "only what is linked");
    }
}
