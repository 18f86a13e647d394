//! The CNI plugin: one verb per file. The runtime calls it with the verb in the environment and the network's
//! configuration on stdin; the answer, be it an error, is one JSON object on stdout.

mod add;
mod agent;
mod check;
mod del;
mod failure;
mod gc;
mod lease;
mod plugin;
mod status;

use std::io::{self, Read, Write};
use std::process::ExitCode;

use espalier_cni_types::{Error, ErrorCode, Invocation, NetworkConfig, Version, version_report};
use serde_json::Value;

use crate::plugin::Plugin;

#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

/// A configuration fits in mostly, in bytes, and is read at once then.
const USUAL_INPUT: usize = 4096;

fn main() -> ExitCode {
    start_logging();
    let mut input = Vec::with_capacity(USUAL_INPUT);
    let read = io::stdin().read_to_end(&mut input);
    let read =
        read.map_err(|error| Error::new(ErrorCode::Io, format!("cannot read stdin: {error}")));
    let result = read.and_then(|_| run(&input, &mut io::stdout().lock()));
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    tracing::error!(code = error.code.number(), "{error}");
    // Nobody is left to tell when this fails too.
    let _ = writeln!(
        io::stdout(),
        "{}",
        error.to_json(version_for_errors(&input))
    );
    ExitCode::FAILURE
}

fn run(input: &[u8], output: &mut dyn Write) -> Result<(), Error> {
    let invocation = Invocation::from_env()?;
    tracing::info!(?invocation, "called");
    if invocation == Invocation::Version {
        return plugin::print(output, &version_report(requested_version(input).as_deref()));
    }
    let config = NetworkConfig::parse(input)?;
    plugin::require_version(&config, &invocation)?;
    let plugin = Plugin::new(config)?;
    match invocation {
        Invocation::Add {
            attachment,
            netns,
            args,
        } => {
            plugin.config.refuse_unsupported()?;
            add::run(&plugin, &attachment, &netns, &args, output)
        }
        Invocation::Del { attachment, netns } => del::run(&plugin, &attachment, netns.as_deref()),
        Invocation::Check { attachment, netns } => check::run(&plugin, &attachment, &netns),
        Invocation::Gc => gc::run(&plugin),
        Invocation::Status => {
            plugin.config.refuse_unsupported()?;
            status::run(&plugin)
        }
        Invocation::Version => Ok(()),
    }
}

/// Runtimes keep what a plugin writes to stderr: nothing unless asked for. A wrong filter must not stop a pod.
fn start_logging() {
    let Ok(filter) = std::env::var("ESPALIER_LOG") else {
        return;
    };
    if let Err(error) = espalier_telemetry::init("espalier-cni", &filter) {
        eprintln!("espalier-cni: {error}");
    }
}

fn requested_version(input: &[u8]) -> Option<String> {
    let document: Value = serde_json::from_slice(input).ok()?;
    document.get("cniVersion")?.as_str().map(str::to_owned)
}

fn version_for_errors(input: &[u8]) -> Version {
    requested_version(input)
        .and_then(|text| text.parse().ok())
        .unwrap_or(Version::LATEST)
}
