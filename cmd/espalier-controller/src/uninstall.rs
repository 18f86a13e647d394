//! `espalier-controller uninstall`: takes Espalier off a cluster, in an order in which nothing is put back that was taken away.
//!
//! 1. The controller's Deployment, which would put taints and the trust bundle back, then agents, which would write MeshNodes, then
//!    data planes: each deleted in the foreground, so that an object is gone only after its pods are.
//! 2. The DaemonSet `espalier-cleanup` (the chart's) runs `espalier cleanup-node` on every host; its pods are ready when clean.
//! 3. What was written into the API server. CRDs, and with them all policies, only when asked for.
//!
//! Every step may be repeated, and what is gone already is not missed.

mod objects;

use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use kube::api::{Api, DeleteParams};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};

use crate::api::is_code;
use crate::args::CaMode;

/// The chart's.
const CLEANUP: &str = "espalier-cleanup";
const POLL: Duration = Duration::from_secs(2);

/// What to take off.
#[derive(Debug, clap::Args)]
pub(crate) struct UninstallArgs {
    /// Namespace of the release.
    #[arg(long, env = "POD_NAMESPACE", default_value = "espalier-system")]
    namespace: String,
    /// The taint that the controller kept; empty: none.
    #[arg(long, default_value = "node.espalier.dev/not-ready")]
    taint: String,
    /// With generate, the Secret with the CA goes, too.
    #[arg(long, value_enum, default_value_t = CaMode::Generate)]
    ca: CaMode,
    /// Also deletes the CRDs and with them every EncryptionPolicy and ExternalPeer.
    #[arg(long)]
    delete_crds: bool,
    /// Seconds for all of it.
    #[arg(long, default_value_t = 280)]
    timeout: u64,
}

/// Runs it; tells on standard output what it does.
pub(crate) async fn run(args: &UninstallArgs) -> Result<()> {
    let client = espalier_kubernetes::connect().await?;
    Uninstall {
        client,
        args,
        deadline: Instant::now() + Duration::from_secs(args.timeout),
        poll: POLL,
    }
    .run()
    .await
}

struct Uninstall<'a> {
    client: Client,
    args: &'a UninstallArgs,
    deadline: Instant,
    poll: Duration,
}

impl Uninstall<'_> {
    async fn run(&self) -> Result<()> {
        println!("1/3 stopping controller, agents and data planes");
        self.stop::<Deployment>("Deployment", "espalier-controller")
            .await?;
        self.stop::<DaemonSet>("DaemonSet", "espalier-agent")
            .await?;
        self.stop::<DaemonSet>("DaemonSet", "espalier-dataplane")
            .await?;
        println!("2/3 cleaning the hosts");
        self.clean_hosts().await?;
        println!("3/3 removing what was written into the API server");
        self.remove_objects().await?;
        println!("done");
        Ok(())
    }

    /// Deletes a workload and waits until its pods are gone, too.
    async fn stop<K>(&self, kind: &str, name: &str) -> Result<()>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
        K::DynamicType: Default,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), &self.args.namespace);
        let what = format!("{kind} {name}");
        if !done(&what, api.delete(name, &DeleteParams::foreground()).await)? {
            return Ok(());
        }
        let mut told = false;
        while api
            .get_opt(name)
            .await
            .with_context(|| format!("looking for {what}"))?
            .is_some()
        {
            if !told {
                println!("  {what}: waiting until its pods are gone");
                told = true;
            }
            self.wait(|| format!("pods of {what} are not gone; are their nodes alive?"))
                .await?;
        }
        println!("  {what}: gone");
        Ok(())
    }

    async fn clean_hosts(&self) -> Result<()> {
        let api: Api<DaemonSet> = Api::namespaced(self.client.clone(), &self.args.namespace);
        let mut last = String::new();
        loop {
            let found = api
                .get_opt(CLEANUP)
                .await
                .with_context(|| format!("looking for DaemonSet {CLEANUP}"))?;
            let Some(set) = found else {
                println!(
                    "  DaemonSet {CLEANUP} is not there: hosts are left as they are; run `espalier cleanup-node` on each"
                );
                return Ok(());
            };
            let (clean, all) = match progress(&set) {
                Some((clean, all)) if clean >= all => {
                    println!("  {clean} of {all} hosts are clean");
                    return Ok(());
                }
                Some(counts) => counts,
                None => (0, 0),
            };
            let line = format!("{clean} of {all} hosts are clean");
            if line != last {
                println!("  {line}");
                last.clone_from(&line);
            }
            let logs = format!(
                "{line}; see why with `kubectl -n {} logs -l app.kubernetes.io/component=cleanup -c cleanup`",
                self.args.namespace
            );
            self.wait(|| logs).await?;
        }
    }

    /// Sleeps for a moment; fails with what is not done when the time is over.
    async fn wait(&self, what: impl FnOnce() -> String) -> Result<()> {
        if Instant::now() + self.poll > self.deadline {
            bail!(
                "not done within {} seconds: {}. What is done stays done: run it again",
                self.args.timeout,
                what()
            );
        }
        sleep(self.poll).await;
        Ok(())
    }
}

/// Nodes whose pod is ready, and all that should have one. `None`: its controller has not looked at it yet.
fn progress(set: &DaemonSet) -> Option<(i32, i32)> {
    let status = set.status.as_ref()?;
    let seen = status.observed_generation.unwrap_or_default();
    let current = seen >= set.metadata.generation.unwrap_or_default() && seen > 0;
    current.then_some((status.number_ready, status.desired_number_scheduled))
}

/// True when something was deleted, false when it was not there.
fn done<T>(what: &str, deleted: kube::Result<T>) -> Result<bool> {
    match deleted {
        Ok(_) => {
            println!("  {what}: deleted");
            Ok(true)
        }
        Err(error) if is_code(&error, 404) => {
            println!("  {what}: not there");
            Ok(false)
        }
        Err(error) => bail!(espalier_kubernetes::explain(
            &format!("delete {what}"),
            &error
        )),
    }
}

#[cfg(test)]
mod tests;
