//! How one CA follows another so that at each moment every node trusts what every other node shows: a pure function from what is
//! there to the one next step. All state is in the API server, each step is one write, so it may be interrupted anywhere.
//!
//! 1. Distribute: the new CA is in the trust bundle, the old one signs, until every node has said that it has this bundle.
//! 2. Renew: the new CA signs and every node asks for a new certificate, until every node has said that it has one.
//! 3. The old CA leaves the bundle.
//!
//! A node that never says so holds a rotation up: its pairs would break. It is named, and no longer waited for when its Node is
//! deleted.

use espalier_pki::{Anchor, Bundle};

/// CAs that there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Authorities {
    /// Whose key is used.
    pub(crate) signing: Anchor,
    /// Whose key will be.
    pub(crate) next: Option<Anchor>,
    /// Whose certificates are still about, the one made last first.
    pub(crate) previous: Vec<Anchor>,
    /// The CA's key was replaced by others, so there was no time to distribute it before: the fingerprint of the CA that agents
    /// still have to show certificates of.
    pub(crate) replaced: Option<String>,
    /// A new CA is wanted.
    pub(crate) asked: bool,
}

/// What agents are told (the ConfigMap).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trust {
    /// ca.crt.
    pub(crate) bundle: Bundle,
    /// Fingerprint of the CA that certificates have to be of.
    pub(crate) signer: String,
}

/// What a node says in its MeshNode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) node: String,
    /// [`Bundle::hash`] of what it trusts.
    pub(crate) trust: Option<String>,
    /// Fingerprint of the CA that its certificate is of.
    pub(crate) issuer: Option<String>,
}

/// Where a rotation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// There is none.
    Steady,
    /// Nodes learn to trust the new CA.
    Distribute,
    /// Nodes get certificates of the new CA.
    Renew,
}

/// The next thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing.
    Rest,
    /// Write this into the ConfigMap.
    Tell(Trust),
    /// Make the next CA.
    Begin,
    /// These nodes are behind.
    Wait(Stage, Vec<String>),
    /// The new CA signs from now on.
    Switch,
    /// Forget the previous CAs.
    Finish,
}

impl Authorities {
    pub(crate) fn stage(&self) -> Stage {
        if self.next.is_some() || self.replaced.is_some() {
            Stage::Distribute
        } else if self.previous.is_empty() {
            Stage::Steady
        } else {
            Stage::Renew
        }
    }

    /// What agents should be told.
    pub(crate) fn trust(&self) -> Trust {
        let newest_first = self
            .next
            .iter()
            .chain([&self.signing])
            .chain(&self.previous);
        let signing = self.signing.fingerprint();
        Trust {
            bundle: Bundle::new(newest_first.cloned()),
            signer: self.replaced.clone().unwrap_or(signing),
        }
    }

    /// The next step, from what agents are told now and what the nodes of the mesh say.
    pub(crate) fn step(&self, told: Option<&Trust>, nodes: &[Report]) -> Step {
        let trust = self.trust();
        if told != Some(&trust) {
            return Step::Tell(trust);
        }
        match self.stage() {
            Stage::Steady if self.asked => Step::Begin,
            Stage::Steady => Step::Rest,
            Stage::Distribute => {
                let hash = trust.bundle.hash();
                let behind = behind(nodes, |node| node.trust.as_ref() == Some(&hash));
                wait_or(Stage::Distribute, behind, Step::Switch)
            }
            Stage::Renew => {
                let behind = behind(nodes, |node| node.issuer.as_ref() == Some(&trust.signer));
                wait_or(Stage::Renew, behind, Step::Finish)
            }
        }
    }
}

fn behind(nodes: &[Report], there: impl Fn(&Report) -> bool) -> Vec<String> {
    let behind = nodes.iter().filter(|node| !there(node));
    let mut names: Vec<String> = behind.map(|node| node.node.clone()).collect();
    names.sort();
    names
}

fn wait_or(stage: Stage, behind: Vec<String>, then: Step) -> Step {
    if behind.is_empty() {
        then
    } else {
        Step::Wait(stage, behind)
    }
}

#[cfg(test)]
mod tests;
