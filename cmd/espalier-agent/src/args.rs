use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use espalier_ike::Rekeying;
use espalier_peers::WayLimits;
use espalier_rpc::DataplaneClient;

use crate::cni_conf::CniConf;
use crate::upgrade::Carried;

/// The per-node agent: negotiates SAs with every peer, drives the data plane, gives pods their addresses.
#[derive(Clone, Debug, Parser)]
#[command(name = "espalier-agent", version)]
pub(crate) struct Args {
    /// Name of this node's Node object; also its IKE identity.
    #[arg(long, env = "NODE_NAME")]
    pub(crate) node: String,
    /// Folder of Node and EncryptionPolicy manifests (standalone mode), watched for changes.
    #[arg(
        long,
        required_unless_present = "kubernetes",
        conflicts_with = "kubernetes"
    )]
    pub(crate) manifests: Option<PathBuf>,
    /// Nodes, policy and external peers come from the API server, by this pod's service account or KUBECONFIG. This node's
    /// certificate, too, unless --cert is given.
    #[arg(long)]
    pub(crate) kubernetes: bool,
    /// Where Espalier runs in the cluster: ConfigMap espalier-trust is there.
    #[arg(long, env = "POD_NAMESPACE", default_value = "espalier-system")]
    pub(crate) namespace: String,
    /// Serves /metrics, /healthz and /readyz at this address and port, such as 0.0.0.0:9808.
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) http: Option<SocketAddr>,
    /// Folder that gets 05-espalier.conflist as soon as this node can enforce its policy, such as /etc/cni/net.d.
    #[arg(long)]
    pub(crate) cni_conf_dir: Option<PathBuf>,
    /// Folder of the CNI plugins' binaries: portmap and bandwidth are chained when they are there.
    #[arg(long, default_value = "/opt/cni/bin")]
    pub(crate) cni_bin_dir: PathBuf,
    /// Durable state: address leases, pending releases.
    #[arg(long, default_value = "/var/lib/espalier")]
    pub(crate) state_dir: PathBuf,
    /// Sockets of this node's Espalier processes.
    #[arg(long, default_value = "/run/espalier")]
    pub(crate) run_dir: PathBuf,
    /// The data plane's binary of this release: a running data plane that is another program is replaced by it in place, without
    /// loss. It is put into <state-dir>/bin, which the data plane must see as its --upgrade-dir.
    #[arg(long)]
    pub(crate) dataplane_binary: Option<PathBuf>,
    /// This node's certificate chain (PEM). With --key and --ca; made by `espalier pki issue`.
    #[arg(long, requires = "key", requires = "ca")]
    pub(crate) cert: Option<PathBuf>,
    /// Private key of --cert (PEM, PKCS#8).
    #[arg(long, requires = "cert")]
    pub(crate) key: Option<PathBuf>,
    /// Certificates of the authorities that vouch for peers (PEM).
    #[arg(long, requires = "cert")]
    pub(crate) ca: Option<PathBuf>,
    /// Folder of <peer>.psk files; such a peer is authenticated by its PSK instead of a certificate.
    #[arg(long)]
    pub(crate) psk_dir: Option<PathBuf>,
    /// Age in seconds at which an ESP SA is replaced by one with new keys; IKE SAs are replaced at four times this age.
    #[arg(long, default_value_t = 3600, value_parser = clap::value_parser!(u32).range(10..=43_200))]
    pub(crate) rekey_seconds: u32,
    /// Seconds after which raw ESP that did not pass is tried again; for tests, which cannot wait as long as the default.
    #[arg(long, env = "ESPALIER_RAW_RETRY_SECONDS", default_value_t = 300, hide = true, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) raw_retry_seconds: u32,
    /// Log filter, such as `info` or `espalier_ike=debug`.
    #[arg(long, env = "ESPALIER_LOG", default_value = "info")]
    pub(crate) log: String,
}

impl Args {
    /// Where enrolment puts certificate, key and CA.
    pub(crate) fn pki_dir(&self) -> PathBuf {
        self.state_dir.join("pki")
    }

    /// The list that makes the runtime call the CNI plugin.
    pub(crate) fn cni_conf(&self) -> Option<CniConf> {
        Some(CniConf {
            folder: self.cni_conf_dir.clone()?,
            binaries: self.cni_bin_dir.clone(),
            run_dir: self.run_dir.clone(),
            state_dir: self.state_dir.clone(),
        })
    }

    /// The data plane's program of this release.
    pub(crate) fn carried(&self, plane: &DataplaneClient) -> Option<Carried> {
        Some(Carried {
            binary: self.dataplane_binary.clone()?,
            folder: self.state_dir.join("bin"),
            plane: plane.clone(),
        })
    }

    /// When raw ESP is tried.
    pub(crate) fn ways(&self) -> WayLimits {
        WayLimits {
            retry: Duration::from_secs(self.raw_retry_seconds.into()),
            ..WayLimits::default()
        }
    }

    /// When SAs are replaced.
    pub(crate) fn rekeying(&self) -> Rekeying {
        let child_soft = Duration::from_secs(self.rekey_seconds.into());
        Rekeying {
            child_soft,
            ike_soft: child_soft * 4,
            ..Rekeying::default()
        }
    }
}
