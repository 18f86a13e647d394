//! Native routing with the userspace data plane: `overlay: None`, ESP in tunnel mode.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use anyhow::{Result, ensure};
use espalier_e2e::{
    Cluster, INJECTED_PORT, Mode, Plane, Pod, Setup, Shape, on_path, test, underlay, until,
};
use espalier_testnet::{Bridge, Netns, address, route};

use crate::invariants::kernel_lacks_nf_tables;
use crate::raw::{DUAL_STACK, Way, alone};

const IN_UDP: Way = Way {
    spec: &["overlay: None"],
    encapsulation: "UDP",
};
const RAW: Way = Way {
    spec: &["overlay: None", "udpEncapsulation: Never"],
    encapsulation: "raw",
};

#[test]
fn tunnels_in_udp_carry_everything() {
    test("native::tunnels_in_udp_carry_everything", |bench| {
        alone(bench, Shape::default(), &IN_UDP)
    });
}

#[test]
fn raw_tunnels_carry_everything() {
    test("native::raw_tunnels_carry_everything", |bench| {
        alone(bench, DUAL_STACK, &RAW)
    });
}

/// A packet that a pod of node 2 would send bare: to node 1's pod, and to node 1's own address among its pods. What comes there cannot be
/// refused without nf_tables, which is said.
#[test]
fn s2_bare_packets_of_pods_come_in_only_where_clear_does() {
    let name = "native::s2_bare_packets_of_pods_come_in_only_where_clear_does";
    test(name, |bench| {
        let setup = Setup {
            spec: vec!["overlay: None".to_owned()],
            plane: Some(Plane::Userspace),
            ..Setup::default()
        };
        let mut mesh = Cluster::prepare_with(bench, 2, Mode::Disabled, setup)?;
        mesh.start_all()?;
        let pods = mesh.pods(&[1, 2])?;
        mesh.await_pairs(&[1, 2], |peer| on_path(peer, "Clear"))?;
        let host = Ipv4Addr::new(10, 244, 1, 1);
        let bind = || UdpSocket::bind((host, INJECTED_PORT));
        let victims = [
            pods[0].socket(INJECTED_PORT)?,
            mesh.node_ref(1)?.netns.run(bind)??,
        ];
        for victim in &victims {
            victim.set_read_timeout(Some(Duration::from_millis(50)))?;
        }
        let attacker = Attacker::on(&mesh.bridge, &pods[1])?;
        let inject = || attacker.send(&[pods[0].address, host]);
        let arrived = |victim: &UdpSocket| victim.recv(&mut [0; 256]).is_ok();

        // The injection is a good one: where clear is allowed, it arrives.
        until("the injected packets in Disabled", || {
            inject()?;
            let all = victims.iter().all(arrived);
            Ok(all
                .then_some(())
                .ok_or_else(|| "nothing arrives".to_owned()))
        })?;
        mesh.set_mode(Mode::Required)?;
        mesh.works(&[1, 2], &pods)?;
        for victim in &victims {
            while arrived(victim) {}
        }
        let lacking = kernel_lacks_nf_tables()?;
        mesh.await_status(1, "a note where there is no guard", |status| {
            let note = |note: &String| note.contains("overlay None: this kernel has no nf_tables");
            let said = status.notes.iter().any(note);
            let differs = || format!("said: {said}, so it is: {lacking}");
            (said == lacking).then_some(()).ok_or_else(differs)
        })?;
        (0..50).try_for_each(|_| inject())?;
        // What was let in would be before these in the node's queues.
        mesh.works(&[1, 2], &pods)?;
        ensure!(!arrived(&victims[0]), "a bare packet came to the pod");
        ensure!(arrived(&victims[1]) == lacking, "at the node: not as said");
        Ok(())
    });
}

/// A host that has a pod's address, and knows the way to node 1's.
struct Attacker {
    _netns: Netns,
    socket: UdpSocket,
}

impl Attacker {
    fn on(bridge: &Bridge, pod: &Pod) -> Result<Self> {
        let netns = Netns::new("attacker")?;
        bridge.connect(&netns, "eth0", "attacker")?;
        let socket = netns.run(|| {
            address("eth0", Ipv4Addr::new(10, 99, 0, 66).into(), 24)?;
            address("lo", pod.address.into(), 32)?;
            let pods = Ipv4Addr::new(10, 244, 1, 0).into();
            route(pods, 24, underlay(1).into(), "eth0")?;
            anyhow::Ok(UdpSocket::bind((pod.address, 0))?)
        })??;
        Ok(Self {
            _netns: netns,
            socket,
        })
    }

    fn send(&self, to: &[Ipv4Addr]) -> Result<()> {
        for address in to {
            self.socket.send_to(b"bare", (*address, INJECTED_PORT))?;
        }
        Ok(())
    }
}
