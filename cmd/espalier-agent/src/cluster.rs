//! On Kubernetes: where objects come from, how the certificate comes, and what is told of this node.

use std::time::Duration;

use anyhow::Result;
use espalier_kubernetes::{Client, Enrolment, KubeSource, Report};
use tokio::sync::{mpsc, watch};

use crate::args::Args;
use crate::mesh::{Query, Summary};
use crate::news;
use crate::pages::ask;

/// How often the mesh is asked what to tell.
const LOOK: Duration = Duration::from_secs(1);

/// See [`Enrolment::spread`].
const RENEWAL_SPREAD: Duration = Duration::from_secs(10);

/// The connection to a cluster.
pub(crate) struct Cluster {
    client: Client,
    pub(crate) source: KubeSource,
    /// What stands in the way of a certificate; `None`: certificates come from elsewhere.
    pub(crate) enrolment: Option<watch::Receiver<Vec<String>>>,
}

impl Cluster {
    pub(crate) async fn join(args: &Args) -> Result<Self> {
        let client = espalier_kubernetes::connect().await?;
        let source = KubeSource::start(&client);
        let enrolment = Enrolment {
            client: client.clone(),
            node: args.node.clone(),
            namespace: args.namespace.clone(),
            folder: args.pki_dir(),
            spread: RENEWAL_SPREAD,
            snapshots: source.snapshots(),
        };
        Ok(Self {
            source,
            enrolment: args.cert.is_none().then(|| enrolment.start()),
            client,
        })
    }

    /// Tells the API server about this node, as the mesh has it. Nothing here waits for the API server.
    pub(crate) fn tell(self, node: String, queries: mpsc::Sender<Query>) {
        let (reports, newest) = watch::channel(Report::default());
        espalier_kubernetes::tell(&self.client, &node, &newest);
        tokio::spawn(async move {
            let mut uid = None;
            while let Some(mut summary) = ask(&queries, Query::Summary).await {
                uid = summary.node_uid.take().or(uid);
                if uid.is_none() {
                    uid = espalier_kubernetes::node_uid(&self.client, &node).await;
                }
                summary.node_uid.clone_from(&uid);
                let report = report(summary);
                news::tell(&reports, report);
                tokio::time::sleep(LOOK).await;
            }
        });
    }
}

fn report(summary: Summary) -> Report {
    Report {
        node_uid: summary.node_uid,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        dataplane: summary.dataplane,
        mode: summary.mode,
        generation: summary.generation,
        mtu: summary.mtu,
        pairs: summary.pairs,
        enforced: summary.enforced,
        certificate: summary.certificate,
        not_ready: summary.not_ready,
        problems: summary.problems,
    }
}
