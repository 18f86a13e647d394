use std::path::PathBuf;

use clap::Parser;

/// The per-node agent: negotiates SAs with every peer, drives the data plane, gives pods their addresses.
#[derive(Clone, Debug, Parser)]
#[command(name = "espalier-agent", version)]
pub(crate) struct Args {
    /// Name of this node's Node object; also its IKE identity.
    #[arg(long, env = "NODE_NAME")]
    pub(crate) node: String,
    /// Folder of Node and EncryptionPolicy manifests (standalone mode), watched for changes.
    #[arg(long)]
    pub(crate) manifests: PathBuf,
    /// Durable state: address leases, pending releases.
    #[arg(long, default_value = "/var/lib/espalier")]
    pub(crate) state_dir: PathBuf,
    /// Sockets of this node's Espalier processes.
    #[arg(long, default_value = "/run/espalier")]
    pub(crate) run_dir: PathBuf,
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
    /// Log filter, such as `info` or `espalier_ike=debug`.
    #[arg(long, env = "ESPALIER_LOG", default_value = "info")]
    pub(crate) log: String,
}
