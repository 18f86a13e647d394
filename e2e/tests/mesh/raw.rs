//! Raw ESP by the userspace data plane: `udpEncapsulation: Never`. In VXLAN: not every kernel that runs these tests has IP in IP.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;

use anyhow::{Result, ensure};
use espalier_capture::{Encapsulation, Interfaces, Reader, Received, What, classify};
use espalier_e2e::{
    Bench, Cluster, Family, Flow, Flows, Mode, NEVER_SEEN, Plane, Pod, Setup, Shape, cluster_cidr,
    cluster_cidr_v6, encrypted, on_path, send_numbered, test,
};
use espalier_rpc::agent::PeerStatus;
use espalier_testnet::{Bridge, address};

/// Where forged packets go in the pod.
const FORGED_PORT: u16 = 7788;

#[test]
fn raw_esp_alone_is_on_the_wire() {
    test("raw::raw_esp_alone_is_on_the_wire", |bench| {
        alone(bench, DUAL_STACK, &RAW)
    });
}

#[test]
fn raw_esp_alone_is_on_the_wire_over_ipv6() {
    test("raw::raw_esp_alone_is_on_the_wire_over_ipv6", |bench| {
        let underlay = Family::V6;
        let shape = Shape {
            underlay,
            ..Shape::default()
        };
        alone(bench, shape, &RAW)
    });
}

/// How the userspace data plane is to carry everything.
pub(crate) struct Way {
    /// Of the policy.
    pub(crate) spec: &'static [&'static str],
    /// What a pair's status says then.
    pub(crate) encapsulation: &'static str,
}

/// Pods of both families.
pub(crate) const DUAL_STACK: Shape = Shape {
    underlay: Family::V4,
    pods: &[Family::V4, Family::V6],
};

const RAW: Way = Way {
    spec: &["udpEncapsulation: Never"],
    encapsulation: "raw",
};

/// From the first packet on; with one agent away and back; encryption off and on again; with one data plane away and back.
pub(crate) fn alone(bench: &Bench, shape: Shape, way: &Way) -> Result<()> {
    let setup = Setup {
        shape,
        spec: way.spec.iter().map(ToString::to_string).collect(),
        plane: Some(Plane::Userspace),
    };
    let carried = |peer: &PeerStatus| is_carried(peer, way);
    let mut mesh = Cluster::prepare_with(bench, 2, Mode::Required, setup)?;
    let mut frames = mesh.bridge.netns().run(|| {
        let bridge = espalier_capture::interface_index(Bridge::DEVICE)?;
        Reader::open(Interfaces::AllBut(vec![bridge]), false, 64 << 20)
    })??;
    frames.set_timeout(Duration::from_millis(50))?;
    mesh.start_all()?;
    let pods = mesh.pods(&[1, 2])?;
    mesh.works(&[1, 2], &pods)?;
    mesh.await_pairs(&[1, 2], carried)?;

    let flows = Flows::count_from_now(vec![
        Flow::start(&pods[0], &pods[1], 7001)?,
        Flow::start(&pods[1], &pods[0], 7002)?,
    ])?;
    let node = mesh.node(1)?;
    node.kill_agent()?;
    node.start_agent()?;
    mesh.works(&[1, 2], &pods)?;
    mesh.set_mode(Mode::Disabled)?;
    mesh.await_pairs(&[1, 2], |peer| on_path(peer, "Clear"))?;
    mesh.set_mode(Mode::Required)?;
    mesh.works(&[1, 2], &pods)?;
    flows.arrive()?;
    for count in flows.counts() {
        ensure!(count.lost == 0 && count.sent > 0, "{count:?}");
    }
    drop(flows);
    s5_a_foreign_source_is_not_let_in(&mut mesh, &pods[1])?;

    let before = mesh.watch.now()?;
    let old = mesh.await_peer(1, 2, encrypted)?.spi_out;
    mesh.node(2)?.kill_dataplane()?;
    for _ in 0..20 {
        send_numbered(&pods[0], pods[1].address, 5)?;
        send_numbered(&pods[1], pods[0].address, 5)?;
        send_numbered(&pods[1], NEVER_SEEN, 5)?;
    }
    mesh.node(2)?.start_dataplane()?;
    // Before that node 1 still counts on what node 2 has lost.
    mesh.await_peer(1, 2, |peer| {
        let new = peer.spi_out != old && peer.spi_out != 0;
        new.then_some(())
            .ok_or_else(|| "has its old SAs".to_owned())
    })?;
    mesh.works(&[1, 2], &pods)?;
    mesh.await_pairs(&[1, 2], carried)?;
    mesh.watch.nothing_clear_since(&before)?;

    let (raw, in_udp) = forms(&mut frames)?;
    ensure!(frames.dropped() == 0, "the capture lost frames");
    let (wanted, other) = match way.encapsulation {
        "raw" => (raw, in_udp),
        _ => (in_udp, raw),
    };
    ensure!(wanted > 100 && other == 0, "{raw} raw, {in_udp} in UDP");
    Ok(())
}

fn is_carried(peer: &PeerStatus, way: &Way) -> Result<(), String> {
    let carried = peer.encapsulation == way.encapsulation;
    carried
        .then_some(())
        .ok_or_else(|| format!("uses {:?}", peer.encapsulation))
}

/// Node 1 sends from an address that is none of its pods'; node 2 says what it did with that.
fn s5_a_foreign_source_is_not_let_in(mesh: &mut Cluster, victim: &Pod) -> Result<()> {
    let forged = Ipv4Addr::new(10, 244, 77, 7);
    let at = victim.socket(FORGED_PORT)?;
    at.set_read_timeout(Some(Duration::from_millis(200)))?;
    mesh.node_ref(1)?.netns.run(|| {
        address("lo", IpAddr::from(forged), 32)?;
        let socket = UdpSocket::bind((forged, 0))?;
        for _ in 0..20 {
            socket.send_to(b"forged", (victim.address, FORGED_PORT))?;
        }
        anyhow::Ok(())
    })??;
    mesh.await_status(2, "packets of a foreign source", |status| {
        let dropped = status.drops.get("foreign_source");
        let dropped = dropped.is_some_and(|count| *count >= 20);
        dropped
            .then_some(())
            .ok_or_else(|| format!("{:?}", status.drops))
    })?;
    ensure!(at.recv(&mut [0; 64]).is_err(), "a forged packet arrived");
    Ok(())
}

/// Packets of raw ESP and of ESP in UDP among all that were captured.
fn forms(frames: &mut Reader) -> Result<(u64, u64)> {
    let pods = [cluster_cidr(), cluster_cidr_v6()];
    let (mut raw, mut in_udp) = (0, 0);
    loop {
        match frames.receive()? {
            Received::Frame { bytes, .. } => match classify(bytes, &pods).what {
                What::Esp {
                    encapsulation: Encapsulation::Raw,
                    ..
                } => raw += 1,
                What::Esp { .. } => in_udp += 1,
                _ => {}
            },
            Received::TimedOut => return Ok((raw, in_udp)),
            Received::Probe(_) | Received::Nothing => {}
        }
    }
}
