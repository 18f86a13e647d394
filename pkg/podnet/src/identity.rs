use sha2::{Digest, Sha256};

use crate::Error;

/// Beginning of the alias of both ends of a pod's veth.
const ALIAS: &str = "espalier/";
/// Beginning of the name of the host's end.
const PREFIX: &str = "esp";
/// Hexadecimal digits after the prefix: 14 bytes of at most 15.
const DIGITS: usize = 11;
/// The longest alias that the kernel keeps (`IFALIASZ` less its end).
const LONGEST_ALIAS: usize = 255;

/// Whose interface this is; stands in the alias of both ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// Name of the CNI network.
    pub network: String,
    /// The container.
    pub container_id: String,
    /// The interface's name inside the container.
    pub ifname: String,
}

impl Identity {
    /// `espalier/NETWORK/CONTAINER/IFNAME`; none of these may contain a slash.
    pub(crate) fn alias(&self) -> String {
        format!(
            "{ALIAS}{}/{}/{}",
            self.network, self.container_id, self.ifname
        )
    }

    /// Name of the host's end.
    pub(crate) fn host_name(&self) -> String {
        host_name(&self.container_id, &self.ifname)
    }

    /// Everything that can be told before the kernel is touched.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let names = [
            ("network", &self.network),
            ("container ID", &self.container_id),
            ("ifname", &self.ifname),
        ];
        for (field, name) in names {
            if name.is_empty() || name.contains('/') {
                let found = format!("{name:?}");
                return Err(Error::invalid(field, "a name without slashes", found));
            }
        }
        let length = self.alias().len();
        if length > LONGEST_ALIAS {
            return Err(Error::invalid(
                "the alias of network, container and interface",
                "at most 255 bytes",
                format!("{length} bytes together"),
            ));
        }
        Ok(())
    }

    /// Reads an alias; `None` when it is not ours.
    pub(crate) fn parse(alias: &str) -> Option<Self> {
        let [network, container_id, ifname] =
            alias.strip_prefix(ALIAS)?.split('/').collect::<Vec<_>>()[..]
        else {
            return None;
        };
        let (network, container_id, ifname) = (network.into(), container_id.into(), ifname.into());
        Some(Self {
            network,
            container_id,
            ifname,
        })
    }

    pub(crate) fn is_of(&self, container_id: &str, ifname: &str) -> bool {
        self.container_id == container_id && self.ifname == ifname
    }
}

/// Name of the host's end: `esp` and 11 hexadecimal digits.
#[must_use]
pub fn host_name(container_id: &str, ifname: &str) -> String {
    let digits: String = digest(container_id, ifname)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{PREFIX}{}", &digits[..DIGITS])
}

/// Could this be the name of a host's end of ours?
pub(crate) fn is_host_name(name: &str) -> bool {
    let hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    name.strip_prefix(PREFIX)
        .is_some_and(|rest| rest.len() == DIGITS && rest.chars().all(hex))
}

/// MACs of the host's and of the pod's end. Given, not left to the kernel: udev changes those that the kernel chose.
pub(crate) fn macs(container_id: &str, ifname: &str) -> ([u8; 6], [u8; 6]) {
    let digest = digest(container_id, ifname);
    (local_unicast(&digest, 8), local_unicast(&digest, 16))
}

/// Six bytes from `offset`, made locally administered and unicast (IEEE 802 §8.2).
fn local_unicast(digest: &[u8; 32], offset: usize) -> [u8; 6] {
    let mut mac = [0; 6];
    mac.copy_from_slice(&digest[offset..offset + 6]);
    mac[0] = (mac[0] & 0xfc) | 0x02;
    mac
}

fn digest(container_id: &str, ifname: &str) -> [u8; 32] {
    Sha256::digest(format!("{container_id}/{ifname}").as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_name_never_changes_between_releases() {
        assert_eq!(host_name("c0ffee", "eth0"), "esp6ad2516ced2");
        assert_ne!(host_name("c0ffee", "eth0"), host_name("c0ffee", "eth1"));
    }

    #[test]
    fn only_our_names_are_taken_for_ours() {
        for foreign in [
            "esp0",
            "espalier.vx",
            "esp0123456789",
            "esp0123456789ab",
            "espABCDEF01234",
            "eth0",
        ] {
            assert!(!is_host_name(foreign), "{foreign}");
        }
    }

    proptest! {
        #[test]
        fn names_fit_the_kernel_and_macs_are_local_unicast(id in "[a-z0-9]{1,64}", ifname in "[a-z0-9]{1,15}") {
            let name = host_name(&id, &ifname);
            prop_assert!(name.len() <= 15 && is_host_name(&name));
            let (host, pod) = macs(&id, &ifname);
            prop_assert_ne!(host, pod);
            prop_assert_eq!((host[0] & 3, pod[0] & 3), (2, 2));
        }

        #[test]
        fn aliases_round_trip(network in "[a-z][a-z.-]{0,9}", id in "[a-z0-9]{1,64}", ifname in "[a-z0-9]{1,15}") {
            let identity = Identity { network, container_id: id, ifname };
            prop_assert_eq!(Identity::parse(&identity.alias()), Some(identity));
        }
    }
}
