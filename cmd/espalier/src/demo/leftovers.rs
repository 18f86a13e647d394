//! What is still there and should not be.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::net::if_::if_nameindex;

use super::node::Node;

/// After DEL of all its pods: host veths, routes, neighbours, leases and files that still name a pod.
pub(super) fn of_pods(node: &mut Node) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for device in node
        .netns
        .run(devices)??
        .into_iter()
        .filter(|name| is_host_veth(name))
    {
        left.push(format!("{}: device {device}", node.name));
    }
    for pod in &node.pods {
        let names = pod.netns.run(devices)??;
        let extra = names.iter().filter(|name| *name != "lo");
        left.extend(extra.map(|name| format!("{}: device {name}", pod.name)));
        let kernel = node.netns.run(|| mentions(pod.address))?;
        left.extend(
            kernel
                .into_iter()
                .map(|what| format!("{}: {what}", pod.name)),
        );
        // Not the address: it rests for a while before another pod gets it.
        let files = files_with(&node.state_dir(), &pod.container_id);
        left.extend(
            files
                .iter()
                // They tell of a moment that was, and of what came since; the count of leases below is what there is.
                .filter(|path| !path.ends_with("leases") && !path.ends_with("leases.journal"))
                .map(|path| format!("{}: {} names it", pod.name, path.display())),
        );
    }
    let leases = node.status()?.map_or(0, |status| status.leases);
    left.extend((0..leases).map(|_| format!("{}: a lease", node.name)));
    Ok(left)
}

/// After the end of its processes: the data plane's device, and sockets.
pub(super) fn of_processes(node: &Node) -> Result<Vec<String>> {
    let names = node.netns.run(devices)??;
    let tun = names.into_iter().filter(|name| name == "espalier.tun");
    let mut left: Vec<_> = tun
        .map(|name| format!("{}: device {name}", node.name))
        .collect();
    let entries = fs::read_dir(node.run_dir()).context("reading the run folder")?;
    let files = entries.flatten().map(|entry| entry.path());
    // A lock file stays: removing one races with the next process that takes it.
    let unexpected = files.filter(|path| path.extension().is_none_or(|kind| kind != "lock"));
    left.extend(unexpected.map(|path| format!("{}: file {}", node.name, path.display())));
    Ok(left)
}

/// At the very end: processes and namespaces of the sandbox other than this process and the wire.
pub(super) fn of_the_sandbox() -> Result<Vec<String>> {
    let mut left = Vec::new();
    let own = std::process::id().to_string();
    for entry in fs::read_dir("/proc").context("reading /proc")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.bytes().all(|byte| byte.is_ascii_digit()) && name != own {
            let command = fs::read_to_string(format!("/proc/{name}/comm")).unwrap_or_default();
            left.push(format!("process {name} {}", command.trim()));
        }
    }
    for entry in fs::read_dir("/run/netns").context("reading /run/netns")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != "wire" {
            left.push(format!("network namespace {name}"));
        }
    }
    Ok(left)
}

/// Names of the devices of the calling thread's namespace.
fn devices() -> Result<Vec<String>> {
    let list = if_nameindex().context("listing network devices")?;
    Ok(list
        .iter()
        .map(|device| device.name().to_string_lossy().into_owned())
        .collect())
}

/// `esp` and 11 hex digits.
fn is_host_veth(name: &str) -> bool {
    let digits = name.strip_prefix("esp").unwrap_or_default();
    digits.len() == 11 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Routes and neighbours of the calling thread's namespace that name the address.
fn mentions(address: std::net::Ipv4Addr) -> Vec<String> {
    let read = |file: &str| {
        fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default()
    };
    // /proc prints the address as the machine's own 32-bit number.
    let hex = format!("{:08X}", u32::from_ne_bytes(address.octets()));
    let routes = read("route");
    let routes = routes
        .lines()
        .filter(|line| line.split_whitespace().nth(1) == Some(&hex));
    let neighbours = read("arp");
    let text = address.to_string();
    let neighbours = neighbours
        .lines()
        .filter(|line| line.split_whitespace().next() == Some(&text));
    let route = routes.map(|_| format!("route to {address}"));
    let neighbour = neighbours.map(|_| format!("neighbour {address}"));
    route.chain(neighbour).collect()
}

/// Files in `dir` whose name or content holds the text as a whole word.
fn files_with(dir: &Path, text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()) {
        if path.is_dir() {
            found.extend(files_with(&path, text));
            continue;
        }
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let content = fs::read(&path).unwrap_or_default();
        if has_word(&name, text) || has_word(&String::from_utf8_lossy(&content), text) {
            found.push(path);
        }
    }
    found
}

/// 10.244.1.2 is not in 10.244.1.21.
fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let after = text
            .get(at + word.len()..)
            .and_then(|rest| rest.chars().next());
        let before = text.get(..at).and_then(|rest| rest.chars().next_back());
        let joins = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        !joins(after) && !joins(before)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_whole() {
        assert!(has_word(r#"{"10.244.1.2":1}"#, "10.244.1.2"));
        assert!(has_word("10.244.1.21 10.244.1.2", "10.244.1.2"));
        assert!(!has_word("10.244.1.21", "10.244.1.2"));
        assert!(!has_word("110.244.1.2", "10.244.1.2"));
    }

    #[test]
    fn host_veths_are_recognised() {
        assert!(is_host_veth("esp0123456789a"));
        assert!(!is_host_veth("espalier.tun"));
        assert!(!is_host_veth("esp0"));
    }
}
