//! What a case needs of a cluster, whatever the cluster is made of.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail};
use espalier_capture::Counters;
use espalier_testnet::Netns;

/// A cluster with its nodes registered and nothing of Espalier in it.
pub(crate) trait Harness {
    /// How a person gets to its kubectl, for as long as it is up.
    fn way_in(&self) -> String;

    /// For files of the suite that programs at the API server read.
    fn folder(&self) -> PathBuf;

    /// Names of the nodes.
    fn nodes(&self) -> Vec<String>;

    /// An address that only the default gateway knows; it answers pings.
    fn outside(&self) -> Ipv4Addr;

    /// Runs a program where the API server can be reached, with `KUBECONFIG` of an admin.
    fn client(&self, command: &mut Command) -> Result<Output>;

    /// kubectl, to be given to [`Self::client`].
    fn kubectl(&self) -> Command;

    /// Runs a program on a node, in its host's namespaces.
    fn on_node(&self, node: &str, program: &str, arguments: &[&str]) -> Result<Output>;

    /// The host network of a node.
    fn network(&self, node: &str) -> Result<Netns>;

    /// Imports an image archive on every node.
    fn import(&self, archive: &Path) -> Result<()>;

    /// What crossed the underlay until now.
    fn wire(&self) -> Result<Counters>;

    /// What arrived at the default gateway until now.
    fn gateway(&self) -> Result<Counters>;

    /// Ends the API server.
    fn stop_api(&mut self) -> Result<()>;

    /// Starts it again; returns when it is ready.
    fn start_api(&mut self) -> Result<()>;

    /// Ends the kubelet of a node.
    fn stop_kubelet(&mut self, node: &str) -> Result<()>;

    /// Starts it again: a node that the API server does not know registers.
    fn start_kubelet(&mut self, node: &str) -> Result<()>;
}

/// Standard output of a program that is to succeed.
pub(crate) fn succeeded(output: &Output, what: &str) -> Result<String> {
    if !output.status.success() {
        bail!("{what}: {}", said(output));
    }
    String::from_utf8(output.stdout.clone()).with_context(|| format!("{what}: no text"))
}

/// How a program ended and what it printed.
pub(crate) fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    let texts = [text(&output.stdout), text(&output.stderr)];
    format!("{}: {}", output.status, texts.join(" ").trim())
}
