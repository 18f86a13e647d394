//! The pages that say which test shows what name tests that exist, and `docs/ike.md` leaves no clause of RFC 7296 out.

#![allow(clippy::unwrap_used, clippy::expect_used)]
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Names of all functions of the work tree.
fn functions() -> BTreeSet<String> {
    let mut files = Vec::new();
    for folder in ["pkg", "cmd", "e2e", "fuzz"] {
        rust_files(&top().join(folder), &mut files);
    }
    let mut names = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(file).unwrap();
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let after = text.split("fn ").skip(1);
        names.extend(after.map(|rest| rest.chars().take_while(|c| is_name(*c)).collect()));
    }
    // Cases over real kernels are named in one list.
    let cases = fs::read_to_string(top().join("e2e/kernel/src/cases/mod.rs")).unwrap();
    let quoted = cases.split('"').skip(1).step_by(2);
    names.extend(quoted.map(str::to_owned));
    names
}

/// What stands in backticks and looks like a test: a sentence in snake case. Metrics have a prefix.
fn tests_named(page: &str) -> Vec<String> {
    let quoted = page.split('`').skip(1).step_by(2);
    let is_sentence = |word: &&str| {
        let snake = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let is_metric = word.starts_with("espalier_");
        word.chars().all(snake) && word.matches('_').count() >= 3 && !is_metric
    };
    quoted.filter(is_sentence).map(str::to_owned).collect()
}

#[test]
fn pages_name_tests_that_exist() {
    let known = functions();
    let mut named = 0;
    for page in fs::read_dir(top().join("docs")).unwrap() {
        let path = page.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        for test in tests_named(&text) {
            assert!(
                known.contains(&test),
                "{}: no test `{test}`",
                path.display()
            );
            named += 1;
        }
    }
    assert!(
        named > 60,
        "only {named} tests named: the marks have changed?"
    );
}

/// RFC 7296's sections that say what an implementation does.
fn clauses() -> Vec<String> {
    let numbered = |prefix: &str, last: u32| -> Vec<String> {
        (1..=last).map(|n| format!("{prefix}.{n}")).collect()
    };
    let parts = [
        ("1", 5),
        ("1.3", 3),
        ("1.4", 1),
        ("2", 25),
        ("2.6", 1),
        ("2.8", 3),
        ("2.9", 2),
        ("2.21", 4),
        ("2.23", 1),
        ("2.25", 2),
        ("3", 16),
        ("3.3", 6),
        ("3.10", 1),
        ("3.13", 1),
        ("3.15", 4),
    ];
    let lists = parts.iter().map(|(prefix, last)| numbered(prefix, *last));
    lists.flatten().collect()
}

#[test]
fn every_clause_of_rfc_7296_has_a_line() {
    let page = fs::read_to_string(top().join("docs/ike.md")).unwrap();
    let lines: Vec<&str> = page.lines().collect();
    for clause in clauses() {
        let start = format!("| {clause} ");
        let found = lines.iter().any(|line| line.starts_with(&start));
        assert!(found, "docs/ike.md has no line for §{clause}");
    }
}
