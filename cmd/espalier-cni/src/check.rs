//! CHECK: prevResult, the agent's lease and the kernel must agree.

use std::path::Path;

use espalier_cni_types::{AddResult, Attachment, Error, ErrorCode};
use espalier_podnet::PodSpec;

use crate::failure::{DIFFERS, podnet_failure};
use crate::lease::pod_spec;
use crate::plugin::Plugin;

pub(crate) fn run(plugin: &Plugin, attachment: &Attachment, netns: &Path) -> Result<(), Error> {
    let previous = plugin.config.prev_result()?.ok_or_else(missing)?;
    let reply =
        plugin
            .agent
            .lookup(attachment)
            .map_err(|failure| match failure.is_not_found() {
                true => differs(
                    attachment,
                    &[format!(
                        "the agent has no lease for it: {}",
                        failure_text(failure)
                    )],
                ),
                false => failure.into_error("CHECK"),
            })?;
    let mut spec = pod_spec(plugin, attachment, netns, &reply)?;
    // The node's MTU may have changed since the ADD; a pod keeps the one it got.
    spec.mtu = pod_mtu(&previous, &spec).unwrap_or(spec.mtu);
    let mut found = compare(&previous, &spec);
    found.extend(espalier_podnet::check(&spec).map_err(|e| podnet_failure("CHECK", &e))?);
    if found.is_empty() {
        Ok(())
    } else {
        Err(differs(attachment, &found))
    }
}

/// What of the lease prevResult does not say. It may say more: later plugins of the chain add to it.
fn compare(previous: &AddResult, spec: &PodSpec) -> Vec<String> {
    let inside = |i: &&espalier_cni_types::Interface| i.sandbox.is_some() && i.name == spec.ifname;
    let mut found = Vec::new();
    if !previous.interfaces.iter().any(|i| inside(&i)) {
        found.push(format!("prevResult: interface {} is missing", spec.ifname));
    }
    if !previous
        .interfaces
        .iter()
        .any(|i| i.sandbox.is_none() && i.name == spec.host_name())
    {
        found.push(format!(
            "prevResult: interface {} is missing",
            spec.host_name()
        ));
    }
    let said = |a: &&espalier_podnet::PodAddress| {
        previous
            .ips
            .iter()
            .any(|ip| ip.address == a.host_net() && ip.gateway == Some(a.gateway))
    };
    let missing = spec.addresses.iter().filter(|a| !said(a));
    found.extend(missing.map(|a| {
        format!(
            "prevResult: address {} via {} is missing",
            a.host_net(),
            a.gateway
        )
    }));
    found
}

fn pod_mtu(previous: &AddResult, spec: &PodSpec) -> Option<u32> {
    previous
        .interfaces
        .iter()
        .find(|i| i.sandbox.is_some() && i.name == spec.ifname)?
        .mtu
}

fn missing() -> Error {
    let text = "CHECK: network configuration: prevResult is missing: expected the result of ADD";
    Error::new(ErrorCode::InvalidConfig, text)
}

fn differs(attachment: &Attachment, found: &[String]) -> Error {
    let Attachment {
        container_id,
        ifname,
    } = attachment;
    let text =
        format!("CHECK: interface {ifname} of container {container_id} is not as ADD left it");
    Error::new(DIFFERS, text).with_details(found.join("; "))
}

fn failure_text(failure: crate::agent::Failure) -> String {
    failure.into_error("CHECK").message
}
