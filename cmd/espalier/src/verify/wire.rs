//! What crosses the underlay interface.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use espalier_capture::{Capture, Config, Counters, Interfaces, interface_index};
use nix::ifaddrs::getifaddrs;

use super::{Finding, cidrs, required};
use crate::model::Node;

/// The interface that holds the node's address.
pub(super) fn interface_with(underlay: &str) -> Result<String> {
    let wanted: IpAddr = underlay.parse().with_context(|| {
        format!("the agent does not know its underlay address ({underlay:?}); give --interface")
    })?;
    let holds = |address: &nix::ifaddrs::InterfaceAddress| {
        let address = address.address.as_ref();
        let v4 = address
            .and_then(|address| address.as_sockaddr_in())
            .map(|found| IpAddr::V4(found.ip()));
        let v6 = address
            .and_then(|address| address.as_sockaddr_in6())
            .map(|found| IpAddr::V6(found.ip()));
        v4.or(v6) == Some(wanted)
    };
    let found = getifaddrs().context("listing addresses")?.find(holds);
    let found = found
        .with_context(|| format!("no interface here has the address {wanted}; give --interface"))?;
    Ok(found.interface_name)
}

/// Captures for a while and judges.
pub(super) fn check(
    status: &Node,
    interface: &str,
    time: Duration,
    say: impl Fn(&str),
) -> Result<Vec<Finding>> {
    let capture = Capture::start(Config {
        interfaces: Interfaces::Only(vec![interface_index(interface)?]),
        with_outgoing: true,
        pods: cidrs(&status.cluster_cidrs)?,
        marker: Vec::new(),
    })?;
    say(&format!(
        "wire: capturing on {interface} for {} s",
        time.as_secs()
    ));
    std::thread::sleep(time);
    let seen = capture.snapshot()?;
    say(&format!(
        "wire: {} packets looked at: {} ESP, {} IKE, {} between pods in clear, {} of a pod with the outside in clear",
        seen.frames,
        seen.esp,
        seen.ike,
        seen.clear_between_pods,
        seen.clear_pod - seen.clear_between_pods
    ));
    Ok(judge(&seen, required(status)))
}

fn judge(seen: &Counters, required: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    if required && seen.clear_between_pods > 0 {
        findings.push(Finding::new(
            format!(
                "{} packets between pods crossed the wire in clear: {}",
                seen.clear_between_pods,
                samples(seen)
            ),
            "see the findings on peers and kernel state; block the pair until they are settled",
        ));
    }
    if seen.dropped > 0 {
        findings.push(Finding::new(
            format!("no proof: the capture lost {} packets", seen.dropped),
            "run it again when the node is less busy, or with less time (--seconds)",
        ));
    }
    if seen.undecoded > 0 {
        findings.push(Finding::new(
            format!("no proof: {} packets could not be decoded", seen.undecoded),
            "look at them with tcpdump",
        ));
    }
    if seen.esp == 0 && seen.clear_between_pods == 0 {
        findings.push(Finding::new(
            format!(
                "no proof: {} packets seen, none of them of pods",
                seen.frames
            ),
            "let pods on different nodes talk meanwhile, or look longer (--seconds)",
        ));
    }
    findings
}

fn samples(seen: &Counters) -> String {
    let pods = seen
        .samples
        .iter()
        .filter_map(|sample| sample.pod.filter(|pod| pod.between_pods));
    let texts: Vec<_> = pods
        .map(|pod| format!("{} → {} ({:?})", pod.src, pod.dst, pod.carrier))
        .collect();
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(esp: u64, clear: u64, dropped: u64) -> Counters {
        Counters {
            frames: esp + clear,
            esp,
            clear_between_pods: clear,
            dropped,
            ..Counters::default()
        }
    }

    #[test]
    fn a_quiet_wire_proves_nothing() {
        let findings = judge(&seen(0, 0, 0), true);
        assert_eq!(findings.len(), 1);
        assert!(findings[0].what.starts_with("no proof"), "{findings:?}");
        assert!(judge(&seen(10, 0, 0), true).is_empty());
    }

    #[test]
    fn clear_packets_count_under_required_only() {
        assert!(
            judge(&seen(10, 1, 0), true)[0]
                .what
                .starts_with("1 packets between pods")
        );
        assert!(judge(&seen(0, 1, 0), false).is_empty());
    }

    #[test]
    fn a_capture_with_loss_proves_nothing() {
        assert!(
            judge(&seen(10, 0, 1), true)[0]
                .what
                .contains("lost 1 packets")
        );
    }
}
