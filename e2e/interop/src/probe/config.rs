//! What the probe is told: one JSON file, of one peer.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use espalier_ike::identity::{Credentials, TrustAnchors};
use espalier_ike::{
    ChildConfig, ChildSuite, Config, Identity, Integrity, PeerAuth, PeerConfig, Ppk,
    TrafficSelector,
};
use espalier_secret::SecretBytes;
use serde::{Deserialize, Serialize};

/// Inclusive range of addresses, any protocol and port.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Range(pub(crate) IpAddr, pub(crate) IpAddr);

impl Range {
    fn selector(&self) -> TrafficSelector {
        TrafficSelector {
            protocol: 0,
            start_port: 0,
            end_port: u16::MAX,
            start: self.0,
            end: self.1,
        }
    }
}

/// PEM files.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Files {
    pub(crate) ca: PathBuf,
    pub(crate) chain: PathBuf,
    pub(crate) key: PathBuf,
}

/// One case's settings. The file holds a PSK that lives as long as the case.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ProbeConfig {
    pub(crate) identity: String,
    pub(crate) peer: String,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    /// In hexadecimal digits; without it, certificates.
    pub(crate) psk: Option<String>,
    pub(crate) files: Option<Files>,
    pub(crate) transport: bool,
    /// AH instead of ESP.
    pub(crate) ah: bool,
    /// Say that there is a NAT where there is none.
    pub(crate) force_encap: bool,
    pub(crate) local_ts: Range,
    pub(crate) remote_ts: Range,
    /// Further selectors on each side that the other side knows nothing of: they make IKE_AUTH larger.
    pub(crate) more_ts: u8,
    /// As many sendings of IKE_AUTH get lost on our side.
    pub(crate) lose: u32,
    /// Name and hexadecimal digits of a post-quantum preshared key without which there is to be no IKE SA.
    pub(crate) ppk: Option<(String, String)>,
    /// Every IKE message goes here, one JSON line each.
    pub(crate) record: PathBuf,
}

impl ProbeConfig {
    pub(crate) fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("parsing {}", file.display()))
    }

    pub(crate) fn node(&self) -> Result<Config> {
        let mut config = Config::new(Identity(self.identity.as_str().into()));
        if let Some(files) = &self.files {
            config.credentials = Some(Credentials::from_files(&files.chain, &files.key)?);
            config.trust = TrustAnchors::from_file(&files.ca)?;
        }
        Ok(config)
    }

    pub(crate) fn peer(&self) -> Result<PeerConfig> {
        let auth = match &self.psk {
            Some(psk) => PeerAuth::Psk(SecretBytes::new(hex::decode(psk).context("PSK")?)),
            None => PeerAuth::Certificate,
        };
        let mut child = ChildConfig::new(
            self.selectors(&self.local_ts),
            self.selectors(&self.remote_ts),
        );
        child.transport = self.transport;
        if self.ah {
            child.suites = vec![ChildSuite::Ah(Integrity::HmacSha256)];
        }
        let id = Identity(self.peer.as_str().into());
        let mut peer = PeerConfig::new(id, self.local, self.remote, auth, child);
        peer.force_udp_encapsulation = self.force_encap;
        if let Some((id, key)) = &self.ppk {
            peer.ppk = Some(Ppk {
                id: id.clone(),
                key: SecretBytes::new(hex::decode(key).context("PPK")?),
                required: true,
            });
        }
        Ok(peer)
    }

    fn selectors(&self, first: &Range) -> Vec<TrafficSelector> {
        let more = (0..self.more_ts).map(|number| {
            let address = IpAddr::from([192, 0, 2, number]);
            Range(address, address)
        });
        let all = [first.clone()].into_iter().chain(more);
        all.map(|range| range.selector()).collect()
    }
}
