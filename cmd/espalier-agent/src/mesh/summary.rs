//! What is told of this node again and again, so it costs little: no question to the data plane.

use espalier_api::{CertificateStatus, PairCounts, SuiteName};
use espalier_dataplane_core::Dataplane;
use espalier_peers::Sends;

use super::peer::PeerState;
use super::{Kernel, Mesh};

/// See [`espalier_kubernetes::Report`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) node_uid: Option<String>,
    pub(crate) dataplane: String,
    pub(crate) mode: String,
    pub(crate) generation: i64,
    pub(crate) mtu: u32,
    pub(crate) pairs: PairCounts,
    pub(crate) enforced: i32,
    pub(crate) certificate: Option<CertificateStatus>,
    pub(crate) not_ready: Vec<String>,
    pub(crate) problems: Vec<String>,
}

impl<D: Dataplane, K: Kernel> Mesh<D, K> {
    pub(super) fn summary(&self) -> Summary {
        let not_ready = self.not_ready();
        let hello = self.uplink.hello.as_ref();
        let (pairs, enforced) = self.pairs();
        Summary {
            node_uid: self.set.own.as_ref().and_then(|own| own.uid.clone()),
            dataplane: hello.map_or("unreachable".to_owned(), |hello| hello.kind.clone()),
            mode: self.snapshot.policy.mode.to_string(),
            generation: self.snapshot.policy.generation,
            mtu: self.pod_mtu,
            pairs,
            enforced,
            certificate: self.keyring.certificate.clone(),
            problems: self.problems(not_ready.clone()),
            not_ready,
        }
    }

    /// Pairs with other nodes by what is sent, and how many refuse clear packets.
    fn pairs(&self) -> (PairCounts, i32) {
        let (mut counts, mut enforced) = (PairCounts::default(), 0);
        for peer in self.peers.values() {
            let view = peer.pair.view();
            counts.total += 1;
            enforced += i32::from(view.enforced);
            let count = match view.sends {
                Sends::Nothing if self.is_idle(peer, &view) => &mut counts.encrypted,
                Sends::Nothing => &mut counts.blocked,
                Sends::Clear => &mut counts.clear,
                Sends::Esp if self.encrypts(peer) => &mut counts.encrypted,
                Sends::Esp => &mut counts.authenticated,
            };
            *count += 1;
        }
        (counts, enforced)
    }

    /// Of a pair that sends ESP or AH: whether what is sent cannot be read.
    fn encrypts(&self, peer: &PeerState) -> bool {
        let active = peer.sas.iter().find(|sa| Some(sa.spi_out) == peer.active);
        match active {
            Some(sa) => sa.suite.encrypts(),
            // Adopted: as the policy has it.
            None => !self.terms.ah() && self.may_encrypt(),
        }
    }

    fn may_encrypt(&self) -> bool {
        let mut suites = self.terms.protection.suites.iter().copied();
        suites.any(SuiteName::encrypts)
    }
}
