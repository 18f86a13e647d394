//! Our policies in the kernel.

use std::{cmp::Reverse, collections::HashMap, os::fd::OwnedFd};

use espalier_netlink::{Action, Direction, Errno, InstalledPolicy, PLAIN, Policy, Socket, Xfrm};

use crate::{Error, PRIORITIES};

/// Our policies in the kernel. Where it has no XFRM there are none, which is fine as long as none are wanted.
#[derive(Debug)]
pub(crate) struct Spd {
    netns: Option<OwnedFd>,
    socket: Option<Socket<Xfrm>>,
}

/// Policies that allow come first: where the base block stands they open only what is wanted, where it does not everything is
/// open already.
pub(crate) fn in_order(policies: &mut [Policy]) {
    policies.sort_unstable_by_key(|p| (p.action, *p));
}

impl Spd {
    pub(crate) fn new(netns: Option<OwnedFd>) -> Self {
        Self {
            netns,
            socket: None,
        }
    }

    pub(crate) fn writes(&self) -> usize {
        self.socket.as_ref().map_or(0, Socket::writes)
    }

    /// Whether this kernel has XFRM.
    pub(crate) fn exists(&mut self) -> Result<bool, Error> {
        match self.socket() {
            Ok(_) => Ok(true),
            Err(e) if e.errno() == Some(Errno::EPROTONOSUPPORT) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Ours, and only ours.
    pub(crate) fn list(&mut self) -> Result<Vec<InstalledPolicy>, Error> {
        if !self.exists()? {
            return Ok(Vec::new());
        }
        let mut list = self.socket()?.policies()?;
        list.retain(|p| PRIORITIES.contains(&p.policy.priority));
        Ok(list)
    }

    /// Adds and corrects what is wanted; gives what is there and not wanted.
    pub(crate) fn install(&mut self, wanted: &[Policy]) -> Result<Vec<InstalledPolicy>, Error> {
        let there = self.list()?.into_iter();
        let mut there: HashMap<Policy, InstalledPolicy> =
            there.map(|p| (p.policy.place(), p)).collect();
        let mut changed = Vec::new();
        for policy in wanted {
            match there.remove(&policy.place()) {
                Some(found) if found.policy == *policy => {}
                Some(_) => changed.push((policy, Put::Over)),
                None => changed.push((policy, Put::New)),
            }
        }
        self.put(changed.into_iter())?;
        Ok(there.into_values().collect())
    }

    /// Writes policies, one message each.
    pub(crate) fn put<'a>(
        &mut self,
        policies: impl Iterator<Item = (&'a Policy, Put)>,
    ) -> Result<(), Error> {
        let policies: Vec<_> = policies.collect();
        if policies.is_empty() {
            return Ok(());
        }
        let cannot_block = |source| Error::CannotBlock { source };
        let messages = policies.iter().map(|(policy, put)| match put {
            Put::New => policy.add(),
            Put::Over => policy.update(),
        });
        let results = self
            .socket()
            .and_then(|s| s.batch(messages.map(|m| (m, PLAIN))));
        for ((policy, _), result) in policies.iter().zip(results.map_err(cannot_block)?) {
            result.map_err(|e| {
                if e.is_exists() {
                    foreign(policy)
                } else {
                    cannot_block(e)
                }
            })?;
        }
        Ok(())
    }

    /// Removes policies: those that block first, since no pair may lose what allows it while the base block stands.
    ///
    /// The kernel's tunnel devices keep the route to a host, and with it the decision that packets may leave as they are, until
    /// a policy is put in; that one is removed does not count. So a policy that lets packets out as they are is made to block
    /// before it goes (`deny_clear`), else what it allowed would leave for as long as the device has packets.
    pub(crate) fn remove(
        &mut self,
        mut stale: Vec<InstalledPolicy>,
        deny_clear: bool,
    ) -> Result<(), Error> {
        if stale.is_empty() {
            return Ok(());
        }
        stale.sort_unstable_by_key(|p| Reverse(p.policy.action));
        let mut messages = Vec::new();
        for found in &stale {
            if deny_clear && lets_out(&found.policy) {
                let block = Policy {
                    action: Action::Block,
                    ..found.policy
                };
                messages.push(block.update());
            }
            messages.push(found.delete());
        }
        for result in self
            .socket()?
            .batch(messages.into_iter().map(|m| (m, PLAIN)))?
        {
            result.or_else(|e| if e.is_missing() { Ok(()) } else { Err(e) })?;
        }
        Ok(())
    }

    /// Removes those of these policies that stand as they are described.
    pub(crate) fn remove_exactly(
        &mut self,
        policies: &[Policy],
        deny_clear: bool,
    ) -> Result<(), Error> {
        let mut found = Vec::new();
        for policy in policies {
            let there = self.socket()?.policy_at(policy)?;
            found.extend(there.filter(|there| there.policy == *policy));
        }
        self.remove(found, deny_clear)
    }

    /// Opened when it is first needed; a kernel module may come later than we do.
    fn socket(&mut self) -> Result<&mut Socket<Xfrm>, espalier_netlink::Error> {
        if self.socket.is_none() {
            self.socket = Some(match &self.netns {
                Some(netns) => Socket::open_in(netns)?,
                None => Socket::open()?,
            });
        }
        self.socket
            .as_mut()
            .ok_or_else(|| espalier_netlink::Error::Missing("the XFRM socket".to_owned()))
    }
}

/// How a policy is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Put {
    /// Where there is none.
    New,
    /// In the place of ours.
    Over,
}

fn lets_out(policy: &Policy) -> bool {
    policy.direction == Direction::Out
        && policy.action == Action::Allow
        && policy.template.is_none()
}

fn foreign(policy: &Policy) -> Error {
    Error::ForeignPolicy {
        policy: policy.to_string(),
    }
}
