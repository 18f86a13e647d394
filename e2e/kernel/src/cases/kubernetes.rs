//! Nodes, policy and identities from a real API server, encryption by the kernel.

use std::time::Duration;

use anyhow::Result;
use espalier_e2e::{Mode, Node, on_path, until};

use crate::control::Control;
use crate::ground::{Ground, Populated};
use crate::load::{Load, nothing_clear};

const TOGGLES: usize = 3;

/// A mesh whose certificates the controller has signed, and its control plane.
fn mesh(ground: &Ground<'_>, mode: Mode) -> Result<(Populated, Control)> {
    let mut mesh = ground.prepare(2, mode, &[])?;
    let control = Control::start(ground, &mut mesh, mode)?;
    Ok((ground.populate(mesh)?, control))
}

/// The admin toggles the policy under load.
pub(crate) fn toggles(ground: &mut Ground<'_>) -> Result<String> {
    let (mut on, control) = mesh(ground, Mode::Disabled)?;
    on.all(|peer| on_path(peer, "Clear"))?;
    let load = Load::start(&on)?;
    let mut clear = 0;
    for _ in 0..TOGGLES {
        control.set_mode(Mode::Permissive)?;
        on.all(|peer| on_path(peer, "Encrypted"))?;
        control.set_mode(Mode::Required)?;
        on.all_encrypt()?;
        let before = on.mesh.watch.now()?;
        load.arrives()?;
        clear += on.mesh.watch.now()?.since(&before).clear;
        control.set_mode(Mode::Disabled)?;
        on.all(|peer| on_path(peer, "Clear"))?;
        load.arrives()?;
    }
    load.toggled_without_loss(&on.mesh, clear, ground.measured)?;
    Ok(format!(
        "{TOGGLES} times Disabled → Permissive → Required → Disabled"
    ))
}

/// Agents are killed and come back while there is no API server, which then comes back too: traffic does not notice.
pub(crate) fn api_server_away(ground: &mut Ground<'_>) -> Result<String> {
    let (mut on, mut control) = mesh(ground, Mode::Required)?;
    on.works()?;
    encrypted_says_the_policy(ground, &control)?;
    let load = Load::start(&on)?;
    control.stop_api()?;
    load.run(Duration::from_secs(5));
    on.mesh.nodes.iter_mut().try_for_each(Node::kill_agent)?;
    on.mesh.nodes.iter_mut().try_for_each(Node::start_agent)?;
    load.run(Duration::from_secs(10));
    load.arrives()?;
    control.start_api()?;
    on.all_encrypt()?;
    load.arrives()?;
    load.ends_without_loss(&on.mesh, ground.measured)?;
    nothing_clear(ground.measured)?;
    on.works()?;
    encrypted_says_the_policy(ground, &control)?;
    Ok("away for 15 s, both agents killed meanwhile".into())
}

/// What an admin looks at.
fn encrypted_says_the_policy(ground: &Ground<'_>, control: &Control) -> Result<()> {
    let path = "{.status.conditions[?(@.type==\"Encrypted\")].status}";
    until("condition Encrypted of the policy", || {
        let said = control.get(&["encryptionpolicy", "default"], path)?;
        Ok((said == "True").then_some(()).ok_or(said))
    })?;
    let kind = if ground.in_kernel() {
        "kernel"
    } else {
        "userspace"
    };
    until("both MeshNodes to say what encrypts", || {
        let said = control.get(&["meshnodes"], "{.items[*].status.dataplane}")?;
        Ok((said == format!("{kind} {kind}")).then_some(()).ok_or(said))
    })
}
