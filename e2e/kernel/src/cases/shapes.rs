//! IP versions and sizes.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use espalier_e2e::{Cluster, Family, GATEWAY, Mode, Pod, Setup, Shape, on_path};
use espalier_testnet::sysctl;

use crate::ground::{Ground, Populated, ip};
use crate::load::{Load, nothing_clear};

const LOAD: Duration = Duration::from_secs(2);
/// IPv4 header and ICMP echo header.
const PING_HEADERS: u32 = 28;

pub(crate) fn ipv6_underlay(ground: &mut Ground<'_>) -> Result<String> {
    let shape = Shape {
        underlay: Family::V6,
        ..Shape::default()
    };
    loaded(ground, shape)
}

pub(crate) fn dual_stack(ground: &mut Ground<'_>) -> Result<String> {
    let shape = Shape {
        pods: &[Family::V4, Family::V6],
        ..Shape::default()
    };
    loaded(ground, shape)
}

fn loaded(ground: &mut Ground<'_>, shape: Shape) -> Result<String> {
    let setup = Setup {
        shape,
        ..Setup::default()
    };
    let mesh = ground.prepare_with(2, Mode::Required, setup)?;
    let mut on = ground.populate(mesh)?;
    on.works()?;
    let load = Load::start(&on)?;
    for family in shape.pods {
        for (from, to) in [(0, 1), (1, 0)] {
            on.ping(from, on.pods[to].address_on(*family)?, &[])?;
        }
    }
    load.run(LOAD);
    load.ends_without_loss(&on.mesh, ground.measured)?;
    nothing_clear(ground.measured)?;
    on.works()?;
    Ok(format!("pods {:?} over {:?}", shape.pods, shape.underlay))
}

pub(crate) fn mtu_vxlan(ground: &mut Ground<'_>) -> Result<String> {
    mtu(ground, "overlay: VXLAN")
}

pub(crate) fn mtu_ipip(ground: &mut Ground<'_>) -> Result<String> {
    mtu(ground, "overlay: IPIP")
}

pub(crate) fn mtu_native(ground: &mut Ground<'_>) -> Result<String> {
    mtu(ground, "overlay: None")
}

/// The pods' MTU is the same in clear, raw and in UDP, and a packet of that size passes in all three.
fn mtu(ground: &mut Ground<'_>, overlay: &str) -> Result<String> {
    let mesh = ground.prepare(2, Mode::Disabled, &[overlay])?;
    let mut on = ground.populate(mesh)?;
    on.all(|peer| on_path(peer, "Clear"))?;
    let mtu = mtu_of(&on.pods[0])?;
    full_size(&on, mtu).context("Disabled")?;
    on.mesh.set_mode(Mode::Required)?;
    on.works()?;
    full_size(&on, mtu).context("Required")?;
    on.mesh.setup.spec.push("udpEncapsulation: Always".into());
    on.mesh.set_mode(Mode::Required)?;
    on.works()?;
    full_size(&on, mtu).context("Required in UDP")?;
    Ok(format!("MTU {mtu}"))
}

fn full_size(on: &Populated, mtu: u32) -> Result<()> {
    for pod in &on.pods {
        let now = mtu_of(pod)?;
        ensure!(now == mtu, "the MTU was {mtu}, now {} has {now}", pod.name);
    }
    let size = (mtu - PING_HEADERS).to_string();
    for (from, to) in [(0, 1), (1, 0)] {
        let to = on.pods[to].address.into();
        on.ping(from, to, &["-M", "do", "-s", &size])?;
    }
    Ok(())
}

fn mtu_of(pod: &Pod) -> Result<u32> {
    let mut command = Command::new("ip");
    let said = pod
        .netns
        .output(command.args(["-o", "link", "show", "dev", "eth0"]))?;
    let mut words = said.split_whitespace().skip_while(|word| *word != "mtu");
    let mtu = words.nth(1).context("no MTU")?;
    Ok(mtu.parse()?)
}

/// What a router on the way lets pass, less than the hosts' own MTU.
const NARROW: u32 = 1300;
const TCP_PORT: u16 = 7100;
const TRANSFER: usize = 1 << 20;
const TRANSFER_LIMIT: Duration = Duration::from_secs(30);

pub(crate) fn path_mtu_vxlan(ground: &mut Ground<'_>) -> Result<String> {
    path_mtu(ground, "overlay: VXLAN", true)
}

/// Linux's `ipip` sets DF on what it sends, so a pod must go by what ICMP tells it, as TCP does; who sends echo replies does not.
pub(crate) fn path_mtu_ipip(ground: &mut Ground<'_>) -> Result<String> {
    path_mtu(ground, "overlay: IPIP", false)
}

pub(crate) fn path_mtu_native(ground: &mut Ground<'_>) -> Result<String> {
    path_mtu(ground, "overlay: None", true)
}

/// From one moment on the hosts reach each other through a router with a smaller MTU, which says so by ICMP: pods' packets of
/// any size still pass, and nothing of them in clear. `cuts`: those that may be fragmented are.
fn path_mtu(ground: &mut Ground<'_>, overlay: &str, cuts: bool) -> Result<String> {
    let on = ground.required(2, &[overlay])?;
    let before = on.mesh.watch.now()?;
    put_router_between(&on.mesh)?;
    let size = (mtu_of(&on.pods[0])? - PING_HEADERS).to_string();
    for (from, to) in [(0, 1), (1, 0)] {
        if cuts {
            let address = on.pods[to].address.into();
            on.ping(from, address, &["-M", "dont", "-s", &size])?;
        }
        transfer(&on.pods[from], &on.pods[to])?;
    }
    ground.measured.clear_packets = Some(on.mesh.watch.now()?.since(&before).clear);
    nothing_clear(ground.measured)?;
    Ok(format!("{TRANSFER} bytes of TCP each way"))
}

fn put_router_between(mesh: &Cluster) -> Result<()> {
    mesh.gateway.run(|| {
        sysctl("ipv4/ip_forward", "1")?;
        sysctl("ipv4/conf/all/send_redirects", "0")?;
        sysctl("ipv4/conf/eth0/send_redirects", "0")
    })??;
    for (node, peer) in [(1, 2), (2, 1)] {
        let peer = mesh.setup.shape.underlay(peer);
        let narrow = format!("route add {peer} dev eth0 mtu {NARROW}");
        let mut command = Command::new("ip");
        mesh.gateway.output(command.args(narrow.split(' ')))?;
        ip(
            mesh.node_ref(node)?,
            &format!("route add {peer} via {GATEWAY} dev eth0"),
        )?;
    }
    Ok(())
}

/// Bytes by TCP, all of which must arrive.
fn transfer(from: &Pod, to: &Pod) -> Result<()> {
    let at = SocketAddr::new(to.address.into(), TCP_PORT);
    let listener = to.netns.run(|| TcpListener::bind(at))??;
    let receive = std::thread::spawn(move || -> Result<usize> {
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(TRANSFER_LIMIT))?;
        let mut all = Vec::new();
        Ok(stream.read_to_end(&mut all)?)
    });
    let mut stream = from
        .netns
        .run(|| TcpStream::connect_timeout(&at, TRANSFER_LIMIT))??;
    stream.set_write_timeout(Some(TRANSFER_LIMIT))?;
    stream.write_all(&vec![0x5a; TRANSFER])?;
    drop(stream);
    let received = receive
        .join()
        .map_err(|_| anyhow::anyhow!("the receiver panicked"))??;
    ensure!(
        received == TRANSFER,
        "{received} of {TRANSFER} bytes arrived"
    );
    Ok(())
}
