//! A site with a strongSwan gateway, which knows nothing of Espalier:
//!
//! ```text
//!   wire ── eth0 10.99.0.7 [ charon ] eth1 192.168.77.1 ── eth0 192.168.77.10 [ host ]
//! ```

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use espalier_e2e::{Cluster, Pod, until};
use espalier_testnet::{Netns, Process, VethEnd, address, route, sysctl, veth};

use crate::ground::Ground;

/// Its name in the manifests, and that of the PSK's file.
pub(crate) const NAME: &str = "berlin";
/// On the wire.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 7);
/// Behind it.
pub(crate) const NETWORK: &str = "192.168.77.0/24";
const INSIDE: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);
const HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 10);
/// Its IKE identity: above those of the nodes, which therefore rekey before it would.
const IDENTITY: &str = "vpn.berlin.example";
const MTU: u32 = 1500;
/// Each costs a library at every start.
const PLUGINS: &str = "random nonce pem pkcs1 pkcs8 x509 constraints pubkey openssl curve25519 aes gcm hmac sha1 sha2 kdf drbg \
                       kernel-netlink socket-default vici";

/// How it is authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Auth {
    Psk,
    Certificate,
}

/// The site.
pub(crate) struct Site {
    /// A host in its network, with the means that pods have.
    pub(crate) host: Pod,
    gateway: Netns,
    root: PathBuf,
    /// /mnt of charon.
    folder: PathBuf,
    log: PathBuf,
    charon: Option<Process>,
}

impl Site {
    /// Connects it to the wire, makes a key, and configures both ends. Nothing of IKE runs there yet.
    pub(crate) fn new(ground: &Ground<'_>, mesh: &mut Cluster, auth: Auth) -> Result<Self> {
        let root = ground.plan.strongswan.clone();
        let root = root.context("no strongSwan: give --strongswan, as scripts/kernel.sh does")?;
        let folder = ground.bench.root.join("site");
        fs::create_dir_all(folder.join("swanctl"))?;
        let gateway = Netns::new("site")?;
        mesh.bridge.connect(&gateway, "eth0", "site")?;
        let site = Self {
            host: behind(&gateway)?,
            gateway,
            root,
            log: ground.bench.logs().join("charon.log"),
            folder,
            charon: None,
        };
        site.gateway.run(routed)??;
        let secret = site.credentials(ground, mesh, auth)?;
        fs::write(site.folder.join("strongswan.conf"), settings())?;
        let connection = connection(auth, mesh, &secret);
        fs::write(site.folder.join("swanctl/swanctl.conf"), connection)?;
        for node in &mesh.nodes {
            node.write_manifest("berlin.yaml", &manifest(auth))?;
        }
        Ok(site)
    }

    /// Certificates at the gateway, or the PSK at all ends, which is returned.
    fn credentials(&self, ground: &Ground<'_>, mesh: &mut Cluster, auth: Auth) -> Result<String> {
        let pki = &ground.bench.pki;
        if auth == Auth::Certificate {
            pki.issue(IDENTITY, "site", &[])?;
            let target = |place: &str| self.folder.join("swanctl").join(place);
            copy(&pki.file("ca.crt"), &target("x509ca/ca.crt"))?;
            let of = |kind: &str| pki.file(&format!("{IDENTITY}.{kind}"));
            copy(&of("crt"), &target("x509/gateway.crt"))?;
            copy(&of("key"), &target("private/gateway.key"))?;
            return Ok(String::new());
        }
        let keys = ground.bench.root.join("psk");
        fs::create_dir_all(&keys)?;
        let file = keys.join(format!("{NAME}.psk"));
        pki.psk(&file)?;
        for node in &mut mesh.nodes {
            node.auth.psk_dir = Some(keys.clone());
        }
        Ok(fs::read_to_string(file)?.trim().to_owned())
    }

    /// Starts charon, which answers.
    pub(crate) fn start(&mut self) -> Result<()> {
        let script = format!(
            "mount -t tmpfs run {root}/run && mount --bind {folder} {root}/mnt && mount -t proc proc {root}/proc && \
             mount --bind /dev {root}/dev && exec chroot {root} /usr/lib/ipsec/charon",
            root = self.root.display(),
            folder = self.folder.display(),
        );
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = Command::new("unshare");
        command
            .args(["-m", "bash", "-c", &script])
            .env("STRONGSWAN_CONF", "/mnt/strongswan.conf")
            .stdout(log.try_clone()?)
            .stderr(log);
        self.charon = Some(self.gateway.spawn(&mut command)?);
        until("charon to answer", || {
            let said = self.swanctl("--stats");
            Ok(said.map(drop).map_err(|error| format!("{error:#}")))
        })?;
        let said = self.swanctl("--load-all")?;
        if !said.contains("successfully loaded 1 connections") {
            bail!("swanctl --load-all: {said}");
        }
        Ok(())
    }

    /// Ends charon without a word to anybody, and everything that it made in its kernel.
    pub(crate) fn kill(&mut self) -> Result<()> {
        if let Some(mut charon) = self.charon.take() {
            charon.kill()?;
        }
        for table in ["state", "policy"] {
            let mut command = Command::new("ip");
            self.gateway
                .output(command.args(["xfrm", table, "flush"]))?;
        }
        Ok(())
    }

    /// Begins a rekey of its CHILD_SAs.
    pub(crate) fn rekey(&self) -> Result<()> {
        self.swanctl("--rekey --child net").map(drop)
    }

    fn swanctl(&self, words: &str) -> Result<String> {
        let charon = self.charon.as_ref().context("charon does not run")?;
        let mut command = Command::new("nsenter");
        command.args(["-t", &charon.id().to_string(), "-m", "chroot"]);
        command.arg(&self.root).arg("swanctl");
        command
            .args(words.split_whitespace())
            .args(["--uri", "unix:///run/charon.vici"])
            .env("SWANCTL_DIR", "/mnt/swanctl")
            .env("STRONGSWAN_CONF", "/mnt/strongswan.conf");
        self.gateway.output(&mut command)
    }
}

/// The host, with all others by way of the gateway.
fn behind(gateway: &Netns) -> Result<Pod> {
    let netns = Netns::new("host")?;
    let end = |netns, name| VethEnd { netns, name };
    veth(end(gateway, "eth1"), end(&netns, "eth0"), MTU)?;
    gateway.run(|| address("eth1", INSIDE.into(), 24))??;
    netns.run(|| {
        address("eth0", HOST.into(), 24)?;
        route(Ipv4Addr::UNSPECIFIED.into(), 0, INSIDE.into(), "eth0")
    })??;
    Ok(Pod {
        name: "host".to_owned(),
        netns,
        address: HOST,
        addresses: vec![HOST.into()],
    })
}

/// An address on the wire, and clear ways to the pods of the first two nodes, which nothing may use.
fn routed() -> Result<()> {
    address("eth0", GATEWAY.into(), 24)?;
    for index in [1, 2] {
        let (pods, node): (IpAddr, IpAddr) = (
            espalier_e2e::pod_cidr(index).network().into(),
            espalier_e2e::underlay(index).into(),
        );
        route(pods, 24, node, "eth0")?;
    }
    sysctl("ipv4/ip_forward", "1")
}

fn manifest(auth: Auth) -> String {
    let auth = match auth {
        Auth::Psk => "PSK",
        Auth::Certificate => "Certificate",
    };
    format!(
        "apiVersion: espalier.dev/v1alpha1\nkind: ExternalPeer\nmetadata:\n  name: {NAME}\nspec:\n  gateway: {GATEWAY}\n  \
         identity: {IDENTITY}\n  auth: {auth}\n  remoteCIDRs: [{NETWORK}]\n"
    )
}

fn settings() -> String {
    format!(
        "swanctl {{\n  load = random pem pkcs1 pkcs8 x509 openssl\n}}\ncharon {{\n  load = {PLUGINS}\n  install_routes = no\n  \
         filelog {{\n    stdout {{\n      flush_line = yes\n      default = 1\n    }}\n  }}\n  \
         plugins {{\n    vici {{\n      socket = unix:///run/charon.vici\n    }}\n  }}\n}}\n"
    )
}

/// One connection for all nodes; each gets a tunnel for its own pods, narrowed from the range of all of them.
fn connection(auth: Auth, mesh: &Cluster, secret: &str) -> String {
    let (method, certs) = match auth {
        Auth::Psk => ("psk", ""),
        Auth::Certificate => ("pubkey", "      certs = gateway.crt\n"),
    };
    let mut text = format!(
        "connections {{\n  nodes {{\n    version = 2\n    local_addrs = {GATEWAY}\n    remote_addrs = %any\n    \
         proposals = aes256gcm16-prfsha256-x25519\n    unique = replace\n    \
         local {{\n      auth = {method}\n      id = {IDENTITY}\n{certs}    }}\n    \
         remote {{\n      auth = {method}\n      id = %any\n    }}\n    \
         children {{\n      net {{\n        local_ts = {NETWORK}\n        remote_ts = 10.244.0.0/16\n        \
         mode = tunnel\n        esp_proposals = aes256gcm16-x25519-esn-noesn\n        rekey_time = 0\n      }}\n    }}\n  }}\n}}\n"
    );
    if auth == Auth::Psk {
        let nodes = mesh.nodes.iter();
        let ids: Vec<String> = nodes
            .map(|node| format!("    id-{} = {}\n", node.index, node.name))
            .collect();
        text.push_str(&format!(
            "secrets {{\n  ike-nodes {{\n    id-gw = {IDENTITY}\n{}    secret = 0x{secret}\n  }}\n}}\n",
            ids.concat()
        ));
    }
    text
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::copy(from, to).with_context(|| format!("copying {}", from.display()))?;
    Ok(())
}
