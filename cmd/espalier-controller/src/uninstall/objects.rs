//! What agents and controller wrote into the API server.

use anyhow::{Result, bail};
use espalier_api::MeshNode;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use serde_json::json;

use super::{Uninstall, done};
use crate::api::{FIELD_MANAGER, is_code, is_stale};
use crate::args::CaMode;
use crate::{ca, signer, taint};

const LEASE: &str = crate::LEASE;
const CRDS: [&str; 3] = [
    "encryptionpolicies.espalier.dev",
    "externalpeers.espalier.dev",
    "meshnodes.espalier.dev",
];
/// Reasons of the Node condition that agents write.
const OUR_REASONS: [&str; 2] = ["EspalierIsUp", "EspalierNotReady"];

impl Uninstall<'_> {
    pub(super) async fn remove_objects(&self) -> Result<()> {
        self.restore_nodes().await?;
        self.mesh_nodes().await?;
        self.requests().await?;
        let delete = DeleteParams::default();
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), &self.args.namespace);
        done(
            &format!("Lease {LEASE}"),
            leases.delete(LEASE, &delete).await,
        )?;
        if self.args.ca != CaMode::None {
            let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.args.namespace);
            let what = format!("ConfigMap {}", ca::TRUST);
            done(&what, maps.delete(ca::TRUST, &delete).await)?;
        }
        if self.args.ca == CaMode::Generate {
            self.own_secret().await?;
        }
        if self.args.delete_crds {
            let crds: Api<CustomResourceDefinition> = Api::all(self.client.clone());
            for name in CRDS {
                done(&format!("CRD {name}"), crds.delete(name, &delete).await)?;
            }
        } else {
            println!("  CRDs, EncryptionPolicies and ExternalPeers are kept (--delete-crds)");
        }
        Ok(())
    }

    /// Where others made it, this account may not delete it, and it stays.
    async fn own_secret(&self) -> Result<()> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.args.namespace);
        let what = format!("Secret {}", ca::SECRET);
        match secrets.delete(ca::SECRET, &DeleteParams::default()).await {
            Err(error) if is_code(&error, 403) => {
                println!("  {what}: kept, this account may not delete it");
                Ok(())
            }
            deleted => done(&what, deleted).map(drop),
        }
    }

    async fn restore_nodes(&self) -> Result<()> {
        let api: Api<Node> = Api::all(self.client.clone());
        for node in api.list(&ListParams::default()).await? {
            self.take_off_taint(&api, node.clone()).await?;
            self.take_back_condition(&api, &node).await?;
        }
        Ok(())
    }

    async fn take_off_taint(&self, api: &Api<Node>, mut node: Node) -> Result<()> {
        let name = node.name_any();
        if self.args.taint.is_empty() {
            return Ok(());
        }
        while let Some(taints) = taint::wanted(&node, &self.args.taint, true) {
            taint::write(api, &node, &taints).await?;
            match api.get_opt(&name).await? {
                Some(now) => node = now,
                None => return Ok(()),
            }
            if taint::wanted(&node, &self.args.taint, true).is_none() {
                println!("  Node {name}: taint removed");
                return Ok(());
            }
            self.wait(|| format!("taint of Node {name} was not removed: the Node keeps changing"))
                .await?;
        }
        Ok(())
    }

    /// Without it the Node is again what it was before Espalier: nobody says anything of its network.
    async fn take_back_condition(&self, api: &Api<Node>, node: &Node) -> Result<()> {
        let name = node.name_any();
        let mut conditions = node
            .status
            .iter()
            .flat_map(|s| s.conditions.iter().flatten());
        let ours = conditions.any(|condition| {
            let reason = condition.reason.as_deref().unwrap_or_default();
            condition.type_ == "NetworkUnavailable" && OUR_REASONS.contains(&reason)
        });
        if !ours {
            return Ok(());
        }
        let patch = json!({
            "status": {"conditions": [{"type": "NetworkUnavailable", "$patch": "delete"}]},
        });
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.into()),
            ..PatchParams::default()
        };
        match api
            .patch_status(&name, &params, &Patch::Strategic(&patch))
            .await
        {
            Err(error) if !is_stale(&error) => {
                bail!(espalier_kubernetes::explain("patch nodes/status", &error))
            }
            _ => {
                println!("  Node {name}: condition NetworkUnavailable removed");
                Ok(())
            }
        }
    }

    async fn mesh_nodes(&self) -> Result<()> {
        let api: Api<MeshNode> = Api::all(self.client.clone());
        let all = match api.list(&ListParams::default()).await {
            // The CRD is gone already.
            Err(error) if is_code(&error, 404) => return Ok(()),
            all => all?,
        };
        for mesh in all {
            let name = mesh.name_any();
            let deleted = api.delete(&name, &DeleteParams::default()).await;
            done(&format!("MeshNode {name}"), deleted)?;
        }
        Ok(())
    }

    async fn requests(&self) -> Result<()> {
        let api: Api<CertificateSigningRequest> = Api::all(self.client.clone());
        let ours = ListParams::default().fields(&format!("spec.signerName={}", signer::SIGNER));
        for csr in api.list(&ours).await? {
            // Fields may not be what the server selects by: looked at once more.
            if csr.spec.signer_name != signer::SIGNER {
                continue;
            }
            let name = csr.name_any();
            let deleted = api.delete(&name, &DeleteParams::default()).await;
            done(&format!("CertificateSigningRequest {name}"), deleted)?;
        }
        Ok(())
    }
}
