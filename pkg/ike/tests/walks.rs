//! Work per datagram and per timer does not grow with the number of peers: what the endpoint may walk through is read from its
//! source. What it allocates is counted in `heap.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::Path as FilePath;

/// Where a table of all peers or all IKE SAs may be walked through: at a change of the whole configuration, and in the audit
/// of tests.
const WALKS: [(&str, &str); 2] = [("endpoint.rs", "set_config"), ("audit.rs", "")];

fn sources(folder: &FilePath, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            found.push((name, fs::read_to_string(path).unwrap()));
        }
    }
}

/// Tables are only ever asked for one entry: lookups in a B-tree, which cost the logarithm of the number of peers.
#[test]
fn no_code_of_the_endpoint_walks_through_all_peers_or_ike_sas() {
    let src = FilePath::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src.join("endpoint"), &mut files);
    let whole = fs::read_to_string(src.join("endpoint.rs")).unwrap();
    files.push(("endpoint.rs".into(), whole));
    assert!(files.len() > 15, "{}", files.len());
    let by_key = [
        "get(",
        "get_mut(",
        "insert(",
        "remove(",
        "contains_key(",
        "entry(",
        "len()",
        "is_empty()",
    ];
    let mut walks = Vec::new();
    for (file, text) in &files {
        let mut function = String::new();
        // One line per statement, so that a chain of calls stands together.
        let joined = text
            .replace("\n            .", ".")
            .replace("\n                .", ".")
            .replace("\n        .", ".")
            .replace("\n                    .", ".");
        for line in joined.lines() {
            if let Some((_, rest)) = line.split_once("fn ") {
                function = rest
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect();
            }
            for table in ["self.sas", "self.peers", "self.spis"] {
                for (at, _) in line.match_indices(table) {
                    let rest = &line[at + table.len()..];
                    let other_name =
                        rest.starts_with(|c: char| c.is_alphanumeric() || c == '_' || c == '(');
                    let one = rest
                        .strip_prefix('.')
                        .is_some_and(|call| by_key.iter().any(|by| call.starts_with(by)));
                    if !other_name && !one {
                        walks.push((file.clone(), function.clone(), line.trim().to_owned()));
                    }
                }
            }
        }
    }
    let allowed = |(file, function, _): &(String, String, String)| {
        WALKS
            .iter()
            .any(|(name, within)| file == name && (within.is_empty() || function == within))
    };
    walks.retain(|walk| !allowed(walk));
    assert_eq!(walks, []);
}
