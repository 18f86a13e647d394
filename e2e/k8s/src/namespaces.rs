//! A cluster in network namespaces of one machine.
//!
//! ```text
//!   control 10.99.0.2          node-1 10.99.0.11      node-2 …           gateway 10.99.0.1, 203.0.113.1
//!   etcd, API server,          containerd, kubelet,                       default route of every node,
//!   managers                   kube-proxy                                 capture: what follows it
//!        └───────────────────────── br0 in namespace "wire": capture ───────────┘
//! ```

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result};
use espalier_capture::{Capture, Config, Counters, Interfaces, interface_index};
use espalier_e2e::{
    GATEWAY, MARKER, Watch, cluster_cidr, complete, name, one_datagram_a_frame, underlay,
};
use espalier_testnet::{Bridge, Netns, address, route, sysctl};
use nix::mount::{MsFlags, mount};

use crate::control::{self, Control};
use crate::harness::Harness;
use crate::images;
use crate::machine::{Machine, Plan};
use crate::programs::{Programs, ProxyMode};

const MTU: u32 = 1500;
const PREFIX: u8 = 24;
/// Beyond the gateway: of TEST-NET-3 (RFC 5737).
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// Everything that the cluster writes is here, in memory, and only its own processes see it.
const ROOT: &str = "/mnt";

/// How big, and of what.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) nodes: u8,
    pub(crate) programs: Programs,
    pub(crate) proxy_mode: ProxyMode,
    pub(crate) logs: PathBuf,
    /// Control group of the nodes' groups.
    pub(crate) cgroup: String,
}

/// The cluster; it ends with the sandbox.
pub(crate) struct Namespaces {
    control: Control,
    machines: Vec<Machine>,
    watch: Watch,
    at_gateway: Capture,
    _gateway: Netns,
    _bridge: Bridge,
}

impl Namespaces {
    /// Makes it, inside a sandbox; returns when all nodes were told to join.
    pub(crate) fn start(shape: &Shape) -> Result<Self> {
        memory(Path::new(ROOT))?;
        let bridge = Bridge::new("wire", MTU)?;
        let gateway = Netns::new("gateway")?;
        bridge.connect(&gateway, "eth0", "gateway")?;
        gateway.run(gateway_network)??;
        let at_gateway = gateway.run(|| capture("eth0"))??;
        let netns = host(&bridge, "control", control::ADDRESS)?;
        let mut control = Control::new(netns, &shape.programs, Path::new(ROOT), &shape.logs)?;
        control.start()?;
        let archives = images::write(Path::new(ROOT))?;
        let mut machines = Vec::new();
        for index in 1..=shape.nodes {
            machines.push(machine(&bridge, &control, shape, index)?);
        }
        for machine in &mut machines {
            for archive in &archives {
                machine.import(archive)?;
            }
            machine.join()?;
        }
        Ok(Self {
            watch: Watch::start(&bridge)?,
            control,
            machines,
            at_gateway,
            _gateway: gateway,
            _bridge: bridge,
        })
    }

    fn machine(&self, node: &str) -> Result<&Machine> {
        let found = self.machines.iter().find(|machine| machine.name == node);
        found.with_context(|| format!("no node {node}"))
    }

    fn machine_mut(&mut self, node: &str) -> Result<&mut Machine> {
        let mut machines = self.machines.iter_mut();
        let found = machines.find(|machine| machine.name == node);
        found.with_context(|| format!("no node {node}"))
    }
}

impl Harness for Namespaces {
    fn way_in(&self) -> String {
        "scripts/e2e.sh enter control kubectl".to_owned()
    }

    fn folder(&self) -> PathBuf {
        Path::new(ROOT).join("suite")
    }

    fn nodes(&self) -> Vec<String> {
        self.machines.iter().map(|m| m.name.clone()).collect()
    }

    fn outside(&self) -> Ipv4Addr {
        OUTSIDE
    }

    fn client(&self, command: &mut Command) -> Result<Output> {
        let config = self.control.pki().file("admin.kubeconfig");
        command.env("KUBECONFIG", config);
        let program = command.get_program().to_string_lossy().into_owned();
        let output = self.control.netns().run(|| command.output())?;
        output.with_context(|| format!("starting {program}"))
    }

    fn kubectl(&self) -> Command {
        self.control.kubectl(&[])
    }

    fn on_node(&self, node: &str, program: &str, arguments: &[&str]) -> Result<Output> {
        self.machine(node)?.run(program, arguments)
    }

    fn network(&self, node: &str) -> Result<Netns> {
        let netns = &self.machine(node)?.netns;
        Netns::held_elsewhere(node, netns.path())
    }

    fn import(&self, archive: &Path) -> Result<()> {
        // Where all nodes can read it.
        let copy = Path::new(ROOT).join("image.tar");
        fs::copy(archive, &copy).with_context(|| format!("copying {}", archive.display()))?;
        let mut machines = self.machines.iter();
        machines.try_for_each(|machine| machine.import(&copy))
    }

    fn wire(&self) -> Result<Counters> {
        self.watch.now()
    }

    fn gateway(&self) -> Result<Counters> {
        complete(&self.at_gateway)
    }

    fn stop_api(&mut self) -> Result<()> {
        self.control.stop_api()
    }

    fn start_api(&mut self) -> Result<()> {
        self.control.start_api()
    }

    fn stop_kubelet(&mut self, node: &str) -> Result<()> {
        self.machine_mut(node)?.leave()
    }

    fn start_kubelet(&mut self, node: &str) -> Result<()> {
        self.machine_mut(node)?.join()
    }
}

/// A capture of what arrives at this interface of the calling thread's namespace.
pub(crate) fn capture(interface: &str) -> Result<Capture> {
    let index = interface_index(interface)?;
    let capture = Capture::start(Config {
        interfaces: Interfaces::Only(vec![index]),
        with_outgoing: false,
        pods: vec![cluster_cidr()],
        marker: MARKER.to_vec(),
    });
    capture.with_context(|| format!("capturing on {interface}"))
}

fn machine(bridge: &Bridge, control: &Control, shape: &Shape, index: u8) -> Result<Machine> {
    let (name, address) = (name(index), underlay(index));
    Machine::start(Plan {
        netns: host(bridge, &name, address)?,
        root: Path::new(ROOT).join(&name),
        logs: shape.logs.clone(),
        programs: shape.programs.clone(),
        proxy_mode: shape.proxy_mode,
        cgroup: format!("{}/{name}", shape.cgroup),
        pki: control.pki(),
        name,
        address,
    })
}

/// A host on the wire whose default route is the gateway.
fn host(bridge: &Bridge, name: &str, own: Ipv4Addr) -> Result<Netns> {
    let netns = Netns::new(name)?;
    bridge.connect(&netns, "eth0", name)?;
    one_datagram_a_frame(&netns)?;
    netns.run(|| -> Result<()> {
        address("eth0", own.into(), PREFIX)?;
        let anywhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        route(anywhere, 0, GATEWAY.into(), "eth0")?;
        sysctl("ipv4/ip_forward", "1")
    })??;
    Ok(netns)
}

fn gateway_network() -> Result<()> {
    address("eth0", GATEWAY.into(), PREFIX)?;
    address("lo", OUTSIDE.into(), 32)
}

/// A file system in memory: overlays can be on it wherever this runs.
fn memory(at: &Path) -> Result<()> {
    let none = MsFlags::empty();
    mount(Some("e2e"), at, Some("tmpfs"), none, Some("mode=0755")).context("mounting a tmpfs")
}
