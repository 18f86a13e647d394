//! The agent's reply, parsed.

use std::path::Path;

use espalier_cni_types::{Attachment, Error};
use espalier_podnet::{PodAddress, PodSpec};
use espalier_rpc::agent::AllocateReply;
use ipnet::IpNet;

use crate::failure::AGENT;
use crate::plugin::Plugin;

/// What the pod's interface is to be like.
pub(crate) fn pod_spec(
    plugin: &Plugin,
    attachment: &Attachment,
    netns: &Path,
    reply: &AllocateReply,
) -> Result<PodSpec, Error> {
    Ok(PodSpec {
        network: plugin.config.name.clone(),
        container_id: attachment.container_id.clone(),
        ifname: attachment.ifname.clone(),
        netns: netns.to_owned(),
        addresses: reply
            .addresses
            .iter()
            .map(pod_address)
            .collect::<Result<_, _>>()?,
        mtu: reply.mtu,
    })
}

fn pod_address(leased: &espalier_rpc::agent::PodAddress) -> Result<PodAddress, Error> {
    let wrong = |what: &str, text: &str| {
        let text = format!(
            "the agent's answer has {what} {text:?}: are agent and plugin of the same release?"
        );
        Error::new(AGENT, text)
    };
    let net: IpNet = leased
        .address
        .parse()
        .map_err(|_| wrong("the address", &leased.address))?;
    let gateway = leased
        .gateway
        .parse()
        .map_err(|_| wrong("the gateway", &leased.gateway))?;
    Ok(PodAddress {
        address: net.addr(),
        gateway,
    })
}
