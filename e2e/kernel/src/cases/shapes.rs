//! IP versions and sizes.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use espalier_e2e::{Family, Mode, Pod, Setup, Shape, on_path};

use crate::ground::{Ground, Populated};
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
