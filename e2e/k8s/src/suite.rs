//! Runs the cases one after another on one cluster and writes the report.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::cases::{self, Case, Needs};
use crate::ground::Ground;
use crate::harness::Harness;
use crate::programs::ProxyMode;
use crate::report::{self, Measured, Outcome, Row};

/// What the cluster is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum On {
    /// Network namespaces of this machine; no Docker.
    Namespaces,
    /// kind, which needs Docker.
    Kind,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// What the cluster is made of.
    #[arg(long, value_enum, default_value = "namespaces")]
    pub(crate) on: On,
    /// Only the cases of this name, and what they need before; `*` stands for any letters. May be given again.
    #[arg(long = "case")]
    cases: Vec<String>,
    /// Leaves the cluster up after the cases, until it is interrupted.
    #[arg(long)]
    keep: bool,
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=9))]
    pub(crate) nodes: u8,
    /// Folder of the report and of the logs.
    #[arg(long, default_value = "target/e2e")]
    out: PathBuf,
    /// Node image of kind, as scripts/kind-image.sh makes it; without it kind takes the one that it was released with.
    #[arg(long)]
    pub(crate) kind_image: Option<String>,
    /// Folder of Kubernetes, as scripts/kubernetes.sh prints it.
    #[arg(long)]
    pub(crate) kubernetes: Option<PathBuf>,
    /// What kube-proxy writes Services' rules with.
    #[arg(long, value_enum, default_value_t = ProxyMode::Iptables)]
    pub(crate) proxy_mode: ProxyMode,
    /// Helm.
    #[arg(long)]
    pub(crate) helm: Option<PathBuf>,
    /// Espalier's image, as scripts/image.sh writes it.
    #[arg(long)]
    pub(crate) image: Option<PathBuf>,
    /// The command line of the admin's machine, the program `espalier`.
    #[arg(long)]
    pub(crate) cli: Option<PathBuf>,
    /// Prometheus' checker of metrics; without it that is not checked.
    #[arg(long)]
    pub(crate) promtool: Option<PathBuf>,
    /// Espalier's chart.
    #[arg(long, default_value = "charts/espalier")]
    pub(crate) chart: PathBuf,
    /// Further values of the chart, as `helm install --set` takes them.
    #[arg(long)]
    pub(crate) set: Vec<String>,
}

impl Options {
    /// Folder of the logs.
    pub(crate) fn logs(&self) -> PathBuf {
        self.out.join("logs")
    }
}

/// Says what is missing before anything is made.
pub(crate) fn check(options: &Options) -> Result<()> {
    let chosen = chosen(options)?;
    if options.on == On::Namespaces {
        let folder = options.kubernetes.as_deref();
        let folder =
            folder.context("expected --kubernetes FOLDER: scripts/kubernetes.sh prints it")?;
        there(&folder.join("kubelet"), "scripts/kubernetes.sh builds it")?;
    }
    if chosen.iter().any(|case| case.needs != Needs::Cluster) {
        there(&options.chart, "name the chart with --chart")?;
        let image = options.image.as_deref();
        let image = image.context("expected --image FILE: scripts/image.sh writes it")?;
        there(image, "scripts/image.sh writes it")?;
    }
    // Of runs before this one.
    let _ = fs::remove_dir_all(options.logs());
    fs::create_dir_all(options.logs()).context("making the folder of the logs")
}

fn there(path: &Path, remedy: &str) -> Result<()> {
    ensure!(path.exists(), "expected {}: {remedy}", path.display());
    Ok(())
}

/// Runs them; the exit status says whether all passed.
pub(crate) fn run(options: &Options, harness: &mut dyn Harness) -> Result<ExitCode> {
    let folder = harness.folder();
    fs::create_dir_all(&folder)?;
    let mut ground = Ground {
        harness,
        options,
        folder,
        measured: Measured::default(),
    };
    let mut rows = Vec::new();
    for case in chosen(options)? {
        let row = one(&mut ground, case);
        println!(
            "{}",
            report::table(std::slice::from_ref(&row))
                .lines()
                .last()
                .unwrap_or_default()
        );
        if !row.detail.is_empty() {
            println!("    {}", row.detail.replace('\n', "\n    "));
        }
        rows.push(row);
        write(options, &rows)?;
    }
    if options.keep {
        wait(&ground);
    }
    println!("\n{}{}", report::table(&rows), report::summary(&rows));
    let passed = rows.iter().all(|row| row.result == Outcome::Pass);
    Ok(ExitCode::from(u8::from(!passed)))
}

fn one(ground: &mut Ground<'_>, case: &Case) -> Row {
    println!("== {}: {}", case.name, case.shows);
    ground.measured = Measured::default();
    let begun = Instant::now();
    let done = catch_unwind(AssertUnwindSafe(|| (case.run)(ground)));
    let seconds = begun.elapsed().as_secs_f64();
    let (result, detail) = match done {
        Ok(Ok(detail)) => (Outcome::Pass, detail),
        Ok(Err(error)) => (Outcome::Fail, format!("{error:#}")),
        Err(_) => (Outcome::Fail, "the case panicked, see above".to_owned()),
    };
    if result == Outcome::Fail {
        keep_logs(ground, case.name);
    }
    Row {
        case: case.name.to_owned(),
        result,
        seconds: (seconds * 10.0).round() / 10.0,
        measured: ground.measured.clone(),
        detail,
    }
}

/// What the cluster knows when a case has failed.
fn keep_logs(ground: &Ground<'_>, case: &str) {
    let folder = ground.options.logs().join(case);
    let _ = fs::create_dir_all(&folder);
    let questions: [(&str, &[&str]); 4] = [
        (
            "objects.txt",
            &["get", "nodes,pods,csr,leases,events", "-A", "-o", "wide"],
        ),
        ("nodes.yaml", &["get", "nodes", "-o", "yaml"]),
        (
            "espalier.yaml",
            &[
                "get",
                "encryptionpolicies,meshnodes,externalpeers",
                "-A",
                "-o",
                "yaml",
            ],
        ),
        ("pods.yaml", &["get", "pods", "-A", "-o", "yaml"]),
    ];
    for (file, arguments) in questions {
        if let Ok(output) = ground.try_kubectl(arguments) {
            let _ = fs::write(folder.join(file), [output.stdout, output.stderr].concat());
        }
    }
    for pod in ground
        .list(&["pods", "-n", cases::NAMESPACE])
        .unwrap_or_default()
    {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        for (previous, suffix) in [("--previous=false", ""), ("--previous", "-previous")] {
            let arguments = [
                "logs",
                "-n",
                cases::NAMESPACE,
                name,
                "--all-containers",
                previous,
            ];
            if let Ok(output) = ground.try_kubectl(&arguments)
                && output.status.success()
            {
                let _ = fs::write(folder.join(format!("{name}{suffix}.log")), output.stdout);
            }
        }
    }
}

fn wait(ground: &Ground<'_>) {
    println!(
        "the cluster ({}) stays up until this is interrupted; into it: {}",
        ground.harness.nodes().join(", "),
        ground.harness.way_in()
    );
    loop {
        std::thread::park();
    }
}

fn write(options: &Options, rows: &[Row]) -> Result<()> {
    let text = serde_json::to_string_pretty(rows)?;
    fs::write(options.out.join("report.json"), text).context("writing the report")
}

/// In their order, with those that prepare what the chosen ones need.
fn chosen(options: &Options) -> Result<Vec<&'static Case>> {
    let wanted = |case: &Case| {
        options
            .cases
            .iter()
            .any(|pattern| matches(pattern, case.name))
    };
    for pattern in &options.cases {
        if !cases::ALL.iter().any(|case| matches(pattern, case.name)) {
            bail!("no case {pattern:?}; there are:\n{}", cases::list());
        }
    }
    let all = options.cases.is_empty();
    let chosen: Vec<&Case> = cases::ALL
        .iter()
        .filter(|case| all || wanted(case))
        .collect();
    let needs = chosen.iter().map(|case| case.needs).max();
    let first = |case: &&Case| case.prepares.is_some_and(|what| needs >= Some(what));
    let whole = cases::ALL
        .iter()
        .filter(|case| first(case) || chosen.iter().any(|chosen| chosen.name == case.name));
    Ok(whole.collect())
}

/// `*` stands for any letters.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((before, after)) => name.strip_prefix(before).is_some_and(|rest| {
            (0..=rest.len()).any(|at| rest.is_char_boundary(at) && matches(after, &rest[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_choose_cases() {
        for (pattern, name, expected) in [
            ("toggle", "toggle", true),
            ("t*e", "toggle", true),
            ("*", "toggle", true),
            ("t*x", "toggle", false),
            ("toggl", "toggle", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
