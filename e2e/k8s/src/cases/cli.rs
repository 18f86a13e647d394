//! The command line from an admin's machine: it reaches the API server and nothing else of the cluster.

use std::fs::File;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::NAMESPACE;
use super::identity::{token, with_token};
use super::mesh::{self, Mode};
use crate::ground::{Ground, TEST_NAMESPACE};
use crate::harness::{said, succeeded};

/// The rights that docs/cli.md says are enough.
const RIGHTS: &str = include_str!("../../../../deploy/cli-rbac.yaml");
const ACCOUNT: &str = "admin";
const BINDING: &str = "of-cli";
/// Kind, namespace (of no matter for a ClusterRoleBinding), role.
const BINDINGS: [(&str, &str, &str); 3] = [
    ("rolebinding", NAMESPACE, "--role=espalier-cli"),
    ("rolebinding", "default", "--role=espalier-cli-events"),
    (
        "clusterrolebinding",
        "default",
        "--clusterrole=espalier-cli",
    ),
];
/// Exit statuses of the command line.
const YES: i32 = 0;
const NO: i32 = 1;
const FAILED: i32 = 2;

/// `status`, `peers`, `verify`, `support-bundle` with those rights, as a plugin of kubectl.
pub(super) fn works(ground: &mut Ground<'_>) -> Result<String> {
    let admin = Admin::new(ground)?;
    let nodes = ground.harness.nodes().len();
    without_rights(ground, &admin)?;
    grant(ground)?;
    status(ground, &admin, nodes)?;
    let pairs = peers(ground, &admin, nodes)?;
    let sealed = verify(ground, &admin, nodes)?;
    let files = bundle(ground, &admin)?;
    mesh::switch(ground, Mode::Disabled)?;
    let output = admin.run(ground, &["status"])?;
    ended(&output, NO)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    espalier_e2e::expect_words(&text, &["NOT all is encrypted", "Clear"])
        .map_err(anyhow::Error::msg)?;
    mesh::switch(ground, Mode::Required)?;
    ended(&admin.run(ground, &["status"])?, YES)?;
    revoke(ground)?;
    Ok(format!(
        "{nodes} nodes, {pairs} pairs, probes sealed by {sealed} packets, {files} files in the bundle; Disabled: exit status 1"
    ))
}

/// `verify` alone.
pub(super) fn verified(ground: &Ground<'_>) -> Result<()> {
    let admin = Admin::new(ground)?;
    grant(ground)?;
    verify(ground, &admin, ground.harness.nodes().len())?;
    revoke(ground)
}

/// The program under the name that kubectl looks for, and a kubeconfig of an account.
struct Admin {
    program: PathBuf,
    kubeconfig: String,
}

impl Admin {
    fn new(ground: &Ground<'_>) -> Result<Self> {
        let cli = ground.options.cli.as_deref();
        let cli = cli.context("expected --cli FILE: the program `espalier`")?;
        let folder = ground.folder.join("bin");
        std::fs::create_dir_all(&folder)?;
        let program = folder.join("kubectl-espalier");
        let _ = std::fs::remove_file(&program);
        symlink(cli.canonicalize()?, &program)?;
        ground.apply(&format!(
            "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {ACCOUNT}, namespace: {TEST_NAMESPACE}}}\n"
        ))?;
        let token = token(ground, TEST_NAMESPACE, ACCOUNT)?;
        Ok(Self {
            program,
            kubeconfig: with_token(ground, &token, "cli")?,
        })
    }

    fn run(&self, ground: &Ground<'_>, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .args(["--kubeconfig", &self.kubeconfig]);
        ground.harness.client(&mut command)
    }

    fn json(&self, ground: &Ground<'_>, command: &str) -> Result<Value> {
        let output = self.run(ground, &[command, "--output", "json"])?;
        ended(&output, YES)?;
        serde_json::from_slice(&output.stdout).with_context(|| format!("{command} printed no JSON"))
    }
}

fn ended(output: &Output, expected: i32) -> Result<()> {
    let code = output.status.code();
    ensure!(
        code == Some(expected),
        "expected exit status {expected}: {}",
        said(output)
    );
    Ok(())
}

/// Whoever may nothing is told what is missing, and that is no answer.
fn without_rights(ground: &Ground<'_>, admin: &Admin) -> Result<()> {
    let output = admin.run(ground, &["status"])?;
    ended(&output, FAILED)?;
    let words = ["list pods", "403", "docs/cli.md"];
    espalier_e2e::expect_words(&said(&output), &words).map_err(anyhow::Error::msg)
}

fn grant(ground: &Ground<'_>) -> Result<()> {
    ground.apply(RIGHTS)?;
    let account = format!("--serviceaccount={TEST_NAMESPACE}:{ACCOUNT}");
    for (kind, namespace, role) in BINDINGS {
        ground.kubectl(&["create", kind, BINDING, role, &account, "-n", namespace])?;
    }
    Ok(())
}

fn revoke(ground: &Ground<'_>) -> Result<()> {
    for (kind, namespace, _) in BINDINGS {
        ground.kubectl(&["delete", kind, BINDING, "-n", namespace])?;
    }
    let file = ground.file("rights.yaml", RIGHTS)?;
    ground.kubectl(&["delete", "-f", &file]).map(drop)
}

fn status(ground: &Ground<'_>, admin: &Admin, nodes: usize) -> Result<()> {
    let output = admin.run(ground, &["status"])?;
    ended(&output, YES)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{text}");
    let encrypted = format!("all is encrypted between {nodes} nodes");
    espalier_e2e::expect_words(&text, &[&encrypted, "cluster: context", NAMESPACE])
        .map_err(anyhow::Error::msg)?;
    let status = admin.json(ground, "status")?;
    ensure!(status["encrypted"] == json!(true), "{status}");
    let answered = status["nodes"].as_array().into_iter().flatten();
    let ready = answered
        .filter(|node| node["status"]["ready"] == json!(true))
        .count();
    ensure!(
        ready == nodes,
        "{ready} of {nodes} nodes are ready: {status}"
    );
    let first = ground.harness.nodes().remove(0);
    let one = admin.run(ground, &["status", "--output", "json", "--node", &first])?;
    let one: Value = serde_json::from_slice(&one.stdout)?;
    ensure!(
        one["nodes"].as_array().map(Vec::len) == Some(1),
        "--node {first}: {one}"
    );
    let none = admin.run(ground, &["status", "--node", "no-such-node"])?;
    ended(&none, NO)
}

/// Each pair once, with the same SAs at both ends; how many.
fn peers(ground: &Ground<'_>, admin: &Admin, nodes: usize) -> Result<usize> {
    let pairs = admin.json(ground, "peers")?;
    let pairs = pairs.as_array().context("expected a list of pairs")?;
    let expected = nodes * (nodes - 1) / 2;
    ensure!(
        pairs.len() == expected,
        "expected {expected} pairs, found {}",
        pairs.len()
    );
    for pair in pairs {
        let paths = [&pair["a_to_b"], &pair["b_to_a"]];
        ensure!(paths.iter().all(|path| **path == "Encrypted"), "{pair}");
        for spis in [&pair["spi_a_to_b"], &pair["spi_b_to_a"]] {
            ensure!(spis[0] == spis[1] && spis[0] != json!(0), "{pair}");
        }
    }
    Ok(expected)
}

/// Nothing is found, every probe is answered, and SAs sealed at least that many packets; how many.
fn verify(ground: &Ground<'_>, admin: &Admin, nodes: usize) -> Result<u64> {
    let whole = admin.json(ground, "verify")?;
    ensure!(whole["findings"] == json!([]), "{}", whole["findings"]);
    let mut sealed = 0;
    for node in whole["nodes"].as_array().into_iter().flatten() {
        let probes = node["status"]["probes"].as_array().context("no probes")?;
        ensure!(probes.len() == nodes - 1, "{node}");
        for probe in probes {
            let count = |field: &str| probe[field].as_u64().unwrap_or_default();
            ensure!(
                count("tried") > 0 && count("answered") == count("tried"),
                "{probe}"
            );
            ensure!(count("sealed") >= count("answered"), "{probe}");
            sealed += count("sealed");
        }
    }
    Ok(sealed)
}

/// It is complete, and no node's key and not the CA's is in it; how many files.
fn bundle(ground: &Ground<'_>, admin: &Admin) -> Result<usize> {
    let (archive, folder) = (
        ground.folder.join("bundle.tar.gz"),
        ground.folder.join("bundle"),
    );
    let path = archive.display().to_string();
    let output = admin.run(ground, &["support-bundle", "--output", &path])?;
    ended(&output, YES)?;
    std::fs::create_dir_all(&folder)?;
    let mut tar = Command::new("tar");
    tar.arg("-xzf")
        .arg(&archive)
        .arg("-C")
        .arg(&folder)
        .arg("--strip-components=1");
    succeeded(&tar.output()?, "tar")?;
    let mut files = Vec::new();
    texts(&folder, &mut files)?;
    for node in ground.harness.nodes() {
        for file in [
            "status.json",
            "metrics.txt",
            "kernel.txt",
            "policies.txt",
            "findings.txt",
        ] {
            let path = folder.join("nodes").join(&node).join(file);
            ensure!(path.exists(), "{} is missing", path.display());
        }
        check_metrics(
            ground,
            &folder.join("nodes").join(&node).join("metrics.txt"),
        )?;
    }
    let objects = [
        "nodes",
        "meshnodes",
        "pods",
        "events",
        "trust",
        "crd-meshnodes",
    ];
    for object in objects {
        let path = folder.join(format!("objects/{object}.json"));
        ensure!(path.exists(), "{} is missing", path.display());
    }
    let secrets = secrets(ground)?;
    for (path, text) in &files {
        let found = secrets
            .iter()
            .find(|(_, secret)| text.contains(secret.as_str()));
        ensure!(
            found.is_none(),
            "{} has {}",
            path.display(),
            found.map_or("", |(what, _)| what)
        );
    }
    Ok(files.len())
}

/// Prometheus' own checker, where there is one.
fn check_metrics(ground: &Ground<'_>, page: &Path) -> Result<()> {
    let Some(promtool) = &ground.options.promtool else {
        return Ok(());
    };
    let mut command = Command::new(promtool);
    command.args(["check", "metrics"]).stdin(File::open(page)?);
    succeeded(&command.output()?, "promtool check metrics").map(drop)
}

fn texts(folder: &Path, found: &mut Vec<(PathBuf, String)>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            texts(&path, found)?;
        } else {
            let text = std::fs::read(&path)?;
            found.push((path, String::from_utf8_lossy(&text).into_owned()));
        }
    }
    Ok(())
}

/// Lines of keys, as they would be in any file.
fn secrets(ground: &Ground<'_>) -> Result<Vec<(String, String)>> {
    let mut secrets = Vec::new();
    for node in ground.harness.nodes() {
        let key = ground.on_node(&node, "cat", &["/var/lib/espalier/pki/node.key"])?;
        secrets.extend(second_line(&key).map(|line| (format!("the key of {node}"), line)));
    }
    let ca = ground.get(&["secret", "espalier-ca", "-n", NAMESPACE])?;
    let key = ca["data"]["tls.key"].as_str().context("a CA without key")?;
    secrets.push(("the CA's key".to_owned(), key.to_owned()));
    let expected = ground.harness.nodes().len() + 1;
    ensure!(
        secrets.len() == expected,
        "only {} keys of {expected} could be read",
        secrets.len()
    );
    Ok(secrets)
}

fn second_line(pem: &str) -> Option<String> {
    pem.lines()
        .nth(1)
        .filter(|line| line.len() > 30)
        .map(str::to_owned)
}
