//! Runs every target over its committed corpus and over mutants of it, on stable Rust and without libFuzzer.
//!
//! Mutants are the same in every run: what fails once fails again. `tests/corpus` makes the corpus.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use espalier_fuzz::mutate::{Rng, mutant};
use espalier_fuzz::{TARGETS, Target};

fn here() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Names and contents, in order of names.
fn corpus(target: &Target) -> Vec<(String, Vec<u8>)> {
    let folder = here().join("corpus").join(target.name);
    let read = |path: PathBuf| (file_name(&path), fs::read(path).unwrap());
    let mut files: Vec<_> = entries(&folder).into_iter().map(read).collect();
    files.sort();
    files
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

/// Runs one input. A failure names it and shows it, to be put into the corpus.
fn run(target: &Target, origin: &str, input: &[u8]) -> Option<String> {
    let outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    outcome.is_err().then(|| {
        let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{}: {origin}: {hex}", target.name)
    })
}

/// Runs `target` over its files, and its mutants in equal parts over them.
fn replay(target: &Target) -> Vec<String> {
    let files = corpus(target);
    let per_file = u64::from(target.mutants).div_ceil(files.len().max(1) as u64);
    let mut failures = Vec::new();
    for (name, input) in &files {
        failures.extend(run(target, name, input));
        let mut rng = Rng::new(&format!("{}/{name}", target.name), 0);
        for number in 0..per_file {
            let other = &files[rng.below(files.len())].1;
            let changed = mutant(&mut rng, input, other);
            failures.extend(run(target, &format!("mutant {number} of {name}"), &changed));
            if failures.len() > 5 {
                return failures;
            }
        }
    }
    failures
}

#[test]
fn no_target_fails_on_its_corpus_or_mutants_of_it() {
    let (odd, even): (Vec<_>, Vec<_>) = TARGETS.iter().enumerate().partition(|(at, _)| at % 2 == 1);
    let failures: Vec<String> = std::thread::scope(|scope| {
        let half = |targets: Vec<(usize, &'static Target)>| {
            scope.spawn(move || -> Vec<String> {
                targets
                    .iter()
                    .flat_map(|(_, target)| replay(target))
                    .collect()
            })
        };
        let halves = [half(odd), half(even)];
        halves
            .into_iter()
            .flat_map(|half| half.join().unwrap())
            .collect()
    });
    let shown = failures.join("\n");
    assert!(
        failures.is_empty(),
        "failing inputs (target: origin: hex):\n{shown}"
    );
}

#[test]
fn every_target_has_a_corpus_and_every_corpus_a_target() {
    for target in TARGETS {
        let folder = here().join("corpus").join(target.name);
        let remedy = "add seeds to tests/corpus, see README.md";
        assert!(
            !corpus(target).is_empty(),
            "{}: no file; {remedy}",
            folder.display()
        );
    }
    let targets: BTreeSet<_> = TARGETS
        .iter()
        .map(|target| target.name.to_owned())
        .collect();
    let folders = entries(&here().join("corpus"));
    let corpora: BTreeSet<_> = folders.iter().map(|path| file_name(path)).collect();
    assert_eq!(corpora, targets);
}

#[test]
fn every_target_has_a_libfuzzer_binary() {
    let manifest = fs::read_to_string(here().join("Cargo.toml")).unwrap();
    for Target { name, .. } in TARGETS {
        let source = fs::read_to_string(here().join(format!("fuzz_targets/{name}.rs")));
        let source = source.unwrap_or_else(|error| panic!("fuzz_targets/{name}.rs: {error}"));
        assert!(
            source.contains(&format!("espalier_fuzz::{name}(data)")),
            "{name}"
        );
        assert!(
            manifest.contains(&format!("name = \"{name}\"\n")),
            "{name}: no [[bin]]"
        );
    }
}
