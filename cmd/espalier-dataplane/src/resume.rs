//! What the program before left to this one, and whether this one could go on with it.

use std::os::fd::OwnedFd;

use anyhow::{Context as _, Result, ensure};
use espalier_handover::{Plane, Role, State, VERSIONS, carry, format, memory};
use tracing::info;

use crate::args::Args;

/// Begins what a program says that could go on.
pub(crate) const CAN_RESUME: &str = "can resume";

/// What was found on standard input.
#[derive(Debug)]
pub(crate) struct Inherited {
    pub(crate) state: State,
    descriptors: Vec<(Role, OwnedFd)>,
}

impl Inherited {
    /// Takes it. Whoever reads standard input afterwards finds what was there before.
    pub(crate) fn take() -> Result<Self> {
        let (state, descriptors) = take()?;
        let (expected, got) = (state.descriptors.len(), descriptors.len());
        ensure!(
            expected == got,
            "expected {expected} descriptors, got {got}"
        );
        let roles = state.descriptors.iter().copied();
        Ok(Self {
            descriptors: roles.zip(descriptors).collect(),
            state,
        })
    }

    /// All descriptors of this role.
    pub(crate) fn all(&mut self, role: Role) -> Vec<OwnedFd> {
        let found = self.descriptors.extract_if(.., |(of, _)| *of == role);
        found.map(|(_, descriptor)| descriptor).collect()
    }

    /// All descriptors of this role, of which there must be one or more.
    pub(crate) fn several(&mut self, role: Role) -> Result<Vec<OwnedFd>> {
        let all = self.all(role);
        ensure!(!all.is_empty(), "expected {role:?} descriptors, got none");
        Ok(all)
    }

    /// The only one.
    pub(crate) fn one(&mut self, role: Role) -> Result<OwnedFd> {
        let mut all = self.all(role);
        ensure!(
            all.len() == 1,
            "expected one {role:?} descriptor, got {}",
            all.len()
        );
        all.pop().context("one descriptor")
    }

    /// Says how long packets waited.
    pub(crate) fn report(writer: &str, frozen_at_ns: u64) {
        let gap = espalier_handover::monotonic_ns().saturating_sub(frozen_at_ns);
        info!(from = writer, gap_us = gap / 1000, "took over in place");
    }
}

fn take() -> Result<(State, Vec<OwnedFd>)> {
    let taken = carry::take()
        .context("standard input is not what a data plane leaves that is upgraded in place")?;
    let bytes = memory::take(taken.memfd).context("reading the state")?;
    let state = format::read(&bytes).context("the state that was handed over")?;
    Ok((state, taken.descriptors))
}

/// Reads a state as [`Inherited::take`] does, and makes everything of it that needs no descriptor; nothing of it stays.
pub(crate) fn check(args: &Args) -> Result<()> {
    let (state, _) = take()?;
    if let Plane::Userspace(frozen) = state.plane {
        let raw = frozen.has_raw().then_some(Role::Raw);
        for role in [Role::Udp, Role::Tun, Role::IkeRelay]
            .into_iter()
            .chain(raw)
        {
            let there = state.descriptors.contains(&role);
            ensure!(there, "expected a {role:?} descriptor, got none");
        }
        espalier_esp_tun::check(args.listen_port, frozen)?;
    }
    let (oldest, newest) = (VERSIONS.start(), VERSIONS.end());
    println!("{CAN_RESUME}: state versions {oldest} to {newest}");
    Ok(())
}
