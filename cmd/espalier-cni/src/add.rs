//! ADD: addresses from the agent and, meanwhile, the interface; then the result. A failure anywhere takes back everything before.

use std::io::Write;
use std::path::Path;

use espalier_cni_types::{AddResult, Args, Attachment, Dns, Error, Interface, Ip, Route};
use espalier_podnet::{Begun, Error as PodnetError, Identity, PodInterface, PodSpec};
use espalier_rpc::agent::AllocateReply;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::agent::Failure;
use crate::failure::podnet_failure;
use crate::lease::pod_spec;
use crate::plugin::{Plugin, print};

pub(crate) fn run(
    plugin: &Plugin,
    attachment: &Attachment,
    netns: &Path,
    args: &Args,
    output: &mut dyn Write,
) -> Result<(), Error> {
    let (previous, dns) = (
        plugin.config.prev_result()?.unwrap_or_default(),
        plugin.config.dns()?,
    );
    refuse_second(attachment)?;
    let (reply, begun) = addresses_and_interface(plugin, attachment, netns, args)?;
    let done = begun.and_then(|begun| {
        let spec = pod_spec(plugin, attachment, netns, &reply).map_err(Undo::Lease)?;
        wire(plugin, begun, &spec, previous, dns, output)
    });
    done.map_err(|undo| undo.run(plugin, attachment))
}

/// Asks for addresses, and makes the interface until they come. Without addresses nothing is left.
fn addresses_and_interface(
    plugin: &Plugin,
    attachment: &Attachment,
    netns: &Path,
    args: &Args,
) -> Result<(AllocateReply, Result<Begun, Undo>), Error> {
    // A release still queued from an earlier life of this interface would take the new addresses away: it is taken back first,
    // and done now where no addresses are given out.
    let was_queued = plugin.cancel_release(attachment)?;
    let asked = (plugin.agent).ask_for_addresses(&plugin.config.name, attachment, netns, args);
    let begin = || espalier_podnet::begin(identity(plugin, attachment), netns);
    // Not for an agent that is not there, or refuses.
    let early = (!asked.is_answered()).then(begin);
    match plugin.agent.addresses(asked) {
        Ok(reply) => {
            let begun = early.unwrap_or_else(begin);
            Ok((reply, begun.map_err(|error| Undo::of_setup(&error))))
        }
        Err(failure) => {
            drop(early);
            Err(no_addresses(plugin, attachment, failure, was_queued))
        }
    }
}

fn identity(plugin: &Plugin, attachment: &Attachment) -> Identity {
    Identity {
        network: plugin.config.name.clone(),
        container_id: attachment.container_id.clone(),
        ifname: attachment.ifname.clone(),
    }
}

/// The container has the interface already: its addresses must not be released when this ADD fails.
fn refuse_second(attachment: &Attachment) -> Result<(), Error> {
    let Attachment {
        container_id,
        ifname,
    } = attachment;
    if espalier_podnet::exists(container_id, ifname).map_err(|e| podnet_failure("ADD", &e))? {
        let name = espalier_podnet::host_name(container_id, ifname);
        return Err(podnet_failure("ADD", &PodnetError::HostNameTaken { name }));
    }
    Ok(())
}

fn no_addresses(
    plugin: &Plugin,
    attachment: &Attachment,
    failure: Failure,
    was_queued: bool,
) -> Error {
    let release = was_queued || failure.may_have_happened();
    let error = failure.into_error("ADD");
    if release {
        Undo::Lease(error).run(plugin, attachment)
    } else {
        error
    }
}

fn wire(
    plugin: &Plugin,
    begun: Begun,
    spec: &PodSpec,
    previous: AddResult,
    dns: Dns,
    output: &mut dyn Write,
) -> Result<(), Undo> {
    let pending = begun
        .finish(&spec.addresses, spec.mtu)
        .map_err(|error| Undo::of_setup(&error))?;
    let result = result(spec, pending.interface(), dns).after(previous);
    // `pending` goes, and with it the interface, before the lease does.
    print(output, &result.to_json(plugin.config.version)).map_err(Undo::Lease)?;
    let interface = pending.commit();
    tracing::info!(host = interface.host_name, addresses = ?spec.addresses, "added");
    Ok(())
}

/// What a failure leaves to take back.
enum Undo {
    Lease(Error),
    /// The addresses belong to an interface that another ADD made meanwhile.
    Nothing(Error),
}

impl Undo {
    fn of_setup(error: &PodnetError) -> Self {
        let failure = podnet_failure("ADD", error);
        match error {
            PodnetError::HostNameTaken { .. } => Self::Nothing(failure),
            _ => Self::Lease(failure),
        }
    }

    /// The error for the runtime: the cause, and what could not be taken back either.
    fn run(self, plugin: &Plugin, attachment: &Attachment) -> Error {
        let error = match self {
            Self::Nothing(error) => return error,
            Self::Lease(error) => error,
        };
        match plugin.release(attachment) {
            Ok(()) => error,
            Err(release) => {
                let details = format!(
                    "{}; its addresses could not be released: {release}",
                    error.details
                );
                Error::new(error.code, error.message).with_details(details.trim_start_matches("; "))
            }
        }
    }
}

fn result(spec: &PodSpec, made: &PodInterface, dns: Dns) -> AddResult {
    let interface = |name: &str, mac, sandbox| Interface {
        name: name.to_owned(),
        mac: Some(mac_text(mac)),
        mtu: Some(spec.mtu),
        sandbox,
        ..Interface::default()
    };
    let sandbox = spec.netns.to_string_lossy().into_owned();
    let interfaces = vec![
        interface(&made.host_name, made.host_mac, None),
        interface(&spec.ifname, made.pod_mac, Some(sandbox)),
    ];
    let ip = |a: &espalier_podnet::PodAddress| Ip {
        address: a.host_net(),
        gateway: Some(a.gateway),
        interface: Some(1),
    };
    let route = |a: &espalier_podnet::PodAddress| {
        Route::new(everywhere(a.gateway.is_ipv4()), Some(a.gateway))
    };
    let (ips, routes) = (
        spec.addresses.iter().map(ip).collect(),
        spec.addresses.iter().map(route).collect(),
    );
    AddResult {
        interfaces,
        ips,
        routes,
        dns,
    }
}

fn everywhere(v4: bool) -> IpNet {
    if v4 {
        Ipv4Net::default().into()
    } else {
        Ipv6Net::default().into()
    }
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
