//! CHECK: prevResult, the agent's lease and the kernel must agree. Later plugins of the chain may have changed what ADD made:
//! prevResult is the chain's, and says so.

use std::path::Path;

use espalier_cni_types::{AddResult, Attachment, Error, ErrorCode, Interface};
use espalier_podnet::{Allowance, PodSpec};
use ipnet::IpNet;

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
    let inside = previous.interfaces.iter().find(|i| is_pods(i, &spec));
    // The node's MTU may have changed since the ADD; a pod keeps the one it got. Before 1.1.0 the result does not tell it.
    let told = inside.and_then(|interface| interface.mtu);
    spec.mtu = told.unwrap_or(spec.mtu);
    let allowed = Allowance {
        any_mtu: told.is_none(),
        pod_mac: inside.and_then(|interface| mac(interface.mac.as_deref()?)),
        pod_routes: Some(routes(&previous, &spec)),
    };
    let mut found = compare(&previous, &spec);
    let differences = espalier_podnet::check_with(&spec, &allowed);
    found.extend(differences.map_err(|e| podnet_failure("CHECK", &e))?);
    if found.is_empty() {
        Ok(())
    } else {
        Err(differs(attachment, &found))
    }
}

/// What of the lease prevResult does not say. It may say more: later plugins of the chain add to it.
fn compare(previous: &AddResult, spec: &PodSpec) -> Vec<String> {
    let mut found = Vec::new();
    if !previous.interfaces.iter().any(|i| is_pods(i, spec)) {
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

fn is_pods(interface: &Interface, spec: &PodSpec) -> bool {
    interface.sandbox.is_some() && interface.name == spec.ifname
}

/// Those of our routes that the chain left: the gateway's own, which no result lists, and what prevResult lists.
fn routes(previous: &AddResult, spec: &PodSpec) -> Vec<IpNet> {
    let gateways = spec.addresses.iter().map(|a| IpNet::from(a.gateway));
    let listed = previous.routes.iter().map(|route| route.dst);
    gateways.chain(listed).collect()
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let mut bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
    let mut mac = [0; 6];
    for byte in &mut mac {
        *byte = bytes.next()?.ok()?;
    }
    bytes.next().is_none().then_some(mac)
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
