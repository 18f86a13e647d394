//! `espalier support-bundle`: what helps to find a fault, in one file that can be given away. Secrets are not read, states with their
//! keys are not listed, and what looks like a key all the same is taken out of every file.

mod archive;
mod helm;
mod node;
mod objects;
mod scrub;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use k8s_openapi::jiff::Timestamp;

use crate::cluster::{self, AgentPod, Cluster};
use crate::place::{Place, PlaceArgs};
pub(crate) use node::{NodeReportArgs, report};
use scrub::scrub;

/// Probes are not sent, but a node's kernel may have many routes.
const REPORTING: Duration = Duration::from_secs(20);

/// Options of `espalier support-bundle`.
#[derive(Args, Clone, Debug)]
pub(crate) struct BundleArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// The file to write, which must not be there; default: espalier-support-TIME.tar.gz in this folder.
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// Lines of each container's log, the newest.
    #[arg(long, default_value_t = 5000)]
    log_lines: u32,
    /// Also the values that Helm was given, without what looks like a secret. They are in a Secret, which has to be read for that.
    #[arg(long)]
    helm_values: bool,
}

/// Success when the file was written with everything in it; 1: it was written, and something could not be had, which errors.txt names.
pub(crate) fn run(args: &BundleArgs) -> Result<ExitCode> {
    let time = Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    let name = format!("espalier-support-{time}");
    let files = match args.place.choose()? {
        Place::Here(_) => here(&args.place),
        Place::Cluster => cluster::block_on(of_cluster(args))?,
    };
    let path = args.output.clone();
    let path = path.unwrap_or_else(|| PathBuf::from(format!("{name}.tar.gz")));
    let errors = files.errors.len();
    archive::write(&path, &name, files)?;
    println!("{}", path.display());
    if errors > 0 {
        eprintln!("{errors} things could not be had: errors.txt in it names them");
    }
    Ok(ExitCode::from(u8::from(errors > 0)))
}

/// What goes into the archive, by path.
#[derive(Debug, Default)]
struct Files {
    texts: BTreeMap<String, String>,
    errors: Vec<String>,
}

impl Files {
    /// Takes a file, without what looks like a key.
    fn put(&mut self, path: &str, text: &str) {
        self.texts.insert(path.to_owned(), scrub(text));
    }

    /// Takes a file, or why it is not there.
    fn take(&mut self, path: &str, text: Result<String>) {
        match text {
            Ok(text) => self.put(path, &text),
            Err(error) => self.failed(path, &error),
        }
    }

    fn failed(&mut self, what: &str, error: &anyhow::Error) {
        self.errors.push(scrub(&format!("{what}: {error:#}")));
    }

    /// Of a node.
    fn take_node(&mut self, name: &str, report: node::Report) {
        for (file, text) in report.files {
            self.put(&format!("nodes/{name}/{file}"), &text);
        }
        let errors = report.errors.into_iter();
        self.errors
            .extend(errors.map(|error| scrub(&format!("nodes/{name}: {error}"))));
    }
}

fn here(place: &PlaceArgs) -> Files {
    let mut files = Files::default();
    let report = node::look(&place.agent.path(), None);
    files.put("about.txt", &about("this host"));
    let name = report.node.clone();
    files.take_node(&name, report);
    files
}

async fn of_cluster(args: &BundleArgs) -> Result<Files> {
    let cluster = Cluster::connect(&args.place.cluster).await?;
    // Before anything else: without it there is not much to tell.
    let agents = cluster.agents().await;
    Ok(collect(&cluster, agents, args).await)
}

async fn collect(cluster: &Cluster, agents: Result<Vec<AgentPod>>, args: &BundleArgs) -> Files {
    let mut files = Files::default();
    files.put("about.txt", &about(&cluster.describe()));
    objects::collect(cluster, &mut files).await;
    objects::logs(cluster, args.log_lines, &mut files).await;
    if args.helm_values {
        files.take("objects/helm-values.json", helm::values(cluster).await);
    }
    match agents {
        Ok(_) => nodes(cluster, &mut files).await,
        Err(error) => files.failed("nodes", &error),
    }
    files
}

async fn nodes(cluster: &Cluster, files: &mut Files) {
    let command = |agent: &AgentPod| {
        let mut command = agent.command(&["node-report"]);
        command.extend(agent.http.iter().map(|http| format!("--http={http}")));
        command
    };
    let patience = cluster.patience + REPORTING;
    let reports = cluster.ask(command, patience, |output| {
        let text = output.succeeded()?;
        serde_json::from_slice::<node::Report>(&text).context("its report cannot be read")
    });
    match reports.await {
        Err(error) => files.failed("nodes", &error),
        Ok(answers) => {
            for answer in answers {
                match answer.heard {
                    Ok(report) => files.take_node(&answer.node, report),
                    Err(why) => files
                        .errors
                        .push(scrub(&format!("nodes/{}: {why}", answer.node))),
                }
            }
        }
    }
}

fn about(what: &str) -> String {
    format!(
        "espalier {} support-bundle of {}\n{what}\n",
        env!("CARGO_PKG_VERSION"),
        Timestamp::now()
    )
}
