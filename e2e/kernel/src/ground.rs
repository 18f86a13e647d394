//! What every case stands on: a mesh with the expected data plane, and its measurements.

use std::net::IpAddr;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use espalier_e2e::{Bench, Cluster, Mode, Node, Plane, Pod, Setup, State, encrypted, states};
use espalier_rpc::agent::PeerStatus;

use crate::guest::Plan;
use crate::matrix::Expected;
use crate::report::Measured;

/// Given to each case.
pub(crate) struct Ground<'a> {
    pub(crate) bench: &'a Bench,
    pub(crate) plan: &'a Plan,
    pub(crate) measured: &'a mut Measured,
}

/// A mesh with a pod on each node.
pub(crate) struct Populated {
    pub(crate) mesh: Cluster,
    pub(crate) pods: Vec<Pod>,
}

impl Ground<'_> {
    /// Encrypts by the kernel, so its states and packets can be looked at.
    pub(crate) fn in_kernel(&self) -> bool {
        self.plan.expected == Expected::Kernel
    }

    /// Hosts and manifests; `spec` are further lines of the policy.
    pub(crate) fn prepare(&self, count: u8, mode: Mode, spec: &[&str]) -> Result<Cluster> {
        let setup = Setup {
            spec: spec.iter().copied().map(str::to_owned).collect(),
            ..Setup::default()
        };
        self.prepare_with(count, mode, setup)
    }

    pub(crate) fn prepare_with(&self, count: u8, mode: Mode, mut setup: Setup) -> Result<Cluster> {
        if self.plan.expected == Expected::Userspace {
            setup.plane = setup.plane.or(Some(Plane::Userspace));
        }
        Cluster::prepare_with(self.bench, count, mode, setup)
    }

    /// Starts everything, makes the pods and looks whether the data planes are those that are expected.
    pub(crate) fn populate(&self, mut mesh: Cluster) -> Result<Populated> {
        mesh.start_all()?;
        let indexes = indexes(&mesh);
        let pods = mesh.pods(&indexes)?;
        for index in indexes {
            self.has_expected_plane(&mut mesh, index)?;
        }
        Ok(Populated { mesh, pods })
    }

    /// A mesh in `Required` that works.
    pub(crate) fn required(&self, count: u8, spec: &[&str]) -> Result<Populated> {
        let mesh = self.prepare(count, Mode::Required, spec)?;
        let mut populated = self.populate(mesh)?;
        populated.works()?;
        Ok(populated)
    }

    fn has_expected_plane(&self, mesh: &mut Cluster, index: u8) -> Result<()> {
        let told = mesh.node_ref(index)?.plane;
        let kind = match (told, self.plan.expected) {
            (Some(Plane::Userspace), _) => Plane::Userspace,
            (Some(Plane::Kernel), _) | (_, Expected::Kernel) => Plane::Kernel,
            _ => return Ok(()),
        };
        let wanted = kind.word();
        let what = format!("the data plane to be {wanted}");
        let status = mesh.await_status(index, &what, |status| {
            let known = status.dataplane != "unreachable";
            known
                .then_some(())
                .ok_or_else(|| status.problems.join("; "))
        })?;
        ensure!(
            status.dataplane == wanted,
            "node-{index}: expected the data plane {wanted}, found {}",
            status.dataplane
        );
        Ok(())
    }
}

impl Populated {
    /// All pairs encrypt and pass packets, nothing in clear.
    pub(crate) fn works(&mut self) -> Result<()> {
        let indexes = indexes(&self.mesh);
        self.mesh.works(&indexes, &self.pods)
    }

    /// Waits until all pairs encrypt.
    pub(crate) fn all_encrypt(&mut self) -> Result<()> {
        self.all(encrypted)
    }

    pub(crate) fn all(
        &mut self,
        missing: impl Fn(&PeerStatus) -> Result<(), String>,
    ) -> Result<()> {
        let indexes = indexes(&self.mesh);
        self.mesh.await_pairs(&indexes, missing)
    }

    /// Our states on a node, those of both directions.
    pub(crate) fn states(&self, index: u8) -> Result<Vec<State>> {
        states(&self.mesh.node_ref(index)?.netns)
    }

    /// Those that a node sends with.
    pub(crate) fn outbound(&self, index: u8) -> Result<Vec<State>> {
        let own = self.mesh.setup.shape.underlay(index);
        let all = self.states(index)?;
        Ok(all.into_iter().filter(|state| state.src == own).collect())
    }

    /// Echo requests from one pod to an address, all answered; `more` are further flags of ping.
    pub(crate) fn ping(&self, from: usize, to: IpAddr, more: &[&str]) -> Result<()> {
        Self::ping_from(self.pods.get(from).context("no such pod")?, to, more)
    }

    /// The same from a pod that need not be of the mesh.
    pub(crate) fn ping_from(pod: &Pod, to: IpAddr, more: &[&str]) -> Result<()> {
        let mut command = Command::new("ping");
        command
            .args(["-n", "-c", "3", "-i", "0.2", "-W", "5"])
            .args(more)
            .arg(to.to_string());
        pod.netns.output(&mut command).map(drop)
    }
}

/// Of all nodes there are.
pub(crate) fn indexes(mesh: &Cluster) -> Vec<u8> {
    mesh.nodes.iter().map(|node| node.index).collect()
}

/// Runs `ip` with these words in a node's namespace.
pub(crate) fn ip(node: &Node, words: &str) -> Result<String> {
    node.netns
        .output(Command::new("ip").args(words.split_whitespace()))
}
