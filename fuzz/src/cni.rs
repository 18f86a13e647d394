//! What a container runtime hands to the CNI plugin.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use espalier_cni_types::{AddResult, Args, Invocation, NetworkConfig, Version};
use serde_json::Value;

/// stdin: a network configuration with everything that can be asked of it.
pub fn cni_config(data: &[u8]) {
    let Ok(config) = NetworkConfig::parse(data) else {
        return;
    };
    assert!(config.name.starts_with(|c: char| c.is_ascii_alphanumeric()));
    if let Ok(Some(result)) = config.prev_result() {
        round_trip(&result);
    }
    let _ = (config.dns(), config.valid_attachments());
    for key in ["socket", "stateDir", "name"] {
        let _ = config.string(key);
    }
}

/// A result as JSON.
pub fn cni_result(data: &[u8]) {
    let Ok(value) = serde_json::from_slice::<Value>(data) else {
        return;
    };
    if let Ok(result) = AddResult::from_json(&value) {
        round_trip(&result);
        let twice = result.clone().after(result.clone());
        assert_eq!(twice.interfaces.len(), 2 * result.interfaces.len());
        round_trip(&twice);
    }
}

/// The environment: `CNI_` variables without the prefix, `NAME=value`, one a line.
pub fn cni_env(data: &[u8]) {
    let variables: Vec<(&[u8], &[u8])> =
        data.split(|byte| *byte == b'\n').filter_map(pair).collect();
    let get = |name: &str| {
        let name = name.strip_prefix("CNI_")?.as_bytes();
        let found = variables.iter().find(|(key, _)| *key == name)?;
        Some(OsString::from_vec(found.1.to_vec()))
    };
    match Invocation::parse(get) {
        Ok(Invocation::Add {
            attachment, netns, ..
        }) => {
            assert!(!netns.as_os_str().is_empty());
            assert!((1..=15).contains(&attachment.ifname.len()));
            assert!(!attachment.ifname.contains('/') && !attachment.container_id.contains('/'));
        }
        Ok(_) => (),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(args) = Args::parse(text)
    {
        let _ = (args.pod_name(), args.pod_namespace(), args.pod_uid());
    }
}

fn pair(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = line.iter().position(|byte| *byte == b'=')?;
    Some((&line[..at], &line[at + 1..]))
}

/// In the newest version nothing is lost; in the others what is written can at least be read.
fn round_trip(result: &AddResult) {
    for version in Version::ALL {
        let again = AddResult::from_json(&result.to_json(version));
        let again = again.expect("what was written can be read");
        if version == Version::LATEST {
            assert_eq!(again, *result);
        }
    }
}
