//! Liveness, deletion, cookies.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::{Stage, Verdict, pass};
use crate::command::{capture, inside, until};
use crate::foreign::{Place, Wish};
use crate::lab::{Lab, OURS, THEIRS};
use crate::matrix::{Item, Role};
use crate::ours::Spis;

const INFORMATIONAL: u8 = 37;
const IKE_SA_INIT: u8 = 34;
/// Notify payload, and COOKIE in it (RFC 7296 §3.10).
const NOTIFY: u8 = 41;
const COOKIE: [u8; 2] = 16390_u16.to_be_bytes();
/// Half-open IKE SAs that make both sides ask for cookies.
const STRANGERS: u32 = 6;

/// As initiator our own liveness check, as responder theirs.
pub(super) fn dpd(item: Item, place: &Place, id: &str) -> Verdict {
    let ours = item.role == Role::Initiator;
    let wish = Wish {
        dpd: (!ours).then_some(2),
        ..Wish::new(item.auth)
    };
    let mut stage = Stage::set(item, place, id, &wish)?;
    let spis = stage.establish()?;
    let from = stage.ours.messages()?.len();
    // Request and answer, by whom it is asked.
    let asked = || {
        let messages = stage.ours.messages()?;
        let idle = messages
            .iter()
            .skip(from)
            .filter(|m| m.kinds().1 == INFORMATIONAL);
        let directions: Vec<bool> = idle.map(|m| m.inbound).collect();
        Ok(directions.windows(2).any(|pair| pair == [!ours, ours]))
    };
    until(
        "an empty INFORMATIONAL and its answer",
        Duration::from_secs(40),
        asked,
    )?;
    stage.traffic(&spis).context("after the check")?;
    if ours {
        stage.theirs.kill();
        let down = stage.ours.wait("ike-down", 120)?;
        if down["reason"] != "Timeout" {
            bail!("expected a timeout, the probe said {down}");
        }
        return pass("an idle peer is asked and answers; a dead one is noticed");
    }
    stage.ours.tell("mute")?;
    until("their IKE SA ends", Duration::from_secs(60), || {
        Ok(stage.theirs.ike_sas()? == 0)
    })?;
    pass("their questions are answered; our death is noticed by them")
}

/// As initiator we delete, as responder they do: first the CHILD_SA, then, of a second connection, the IKE SA.
pub(super) fn delete(item: Item, place: &Place, id: &str) -> Verdict {
    let mut stage = Stage::set(item, place, id, &Wish::new(item.auth))?;
    let spis = stage.establish()?;
    if item.role == Role::Initiator {
        stage.ours.tell("disconnect")?;
        stage.ours.wait_down(&spis, 5)?;
        stage.ours.wait("ike-down", 5)?;
        nothing_left(&mut stage)?;
        return pass("their side has nothing left after our DELETE");
    }
    stage.theirs.delete_child()?;
    let down = stage.ours.wait_down(&spis, 10)?;
    if down["reason"] != "Peer" {
        bail!("expected the peer's DELETE, the probe said {down}");
    }
    gone(&stage, &spis)?;
    // Some revive the connection at once, others delete the IKE SA with its last CHILD_SA, and so may we.
    until("no IKE SA on their side", Duration::from_secs(20), || {
        // One that has gone meanwhile cannot be deleted: what is there afterwards counts.
        let _ = stage.theirs.delete_ike();
        Ok(stage.theirs.ike_sas()? == 0)
    })?;
    no_states(&stage)?;
    stage.ours.skip();
    stage.theirs.initiate()?;
    stage.ours.wait("ike-up", 20)?;
    let again = stage.ours.wait_child(20)?;
    stage
        .traffic(&again)
        .context("after the second connection")?;
    stage.theirs.delete_ike()?;
    stage.ours.wait_down(&again, 10)?;
    stage.ours.wait("ike-down", 5)?;
    nothing_left(&mut stage)?;
    pass("their DELETEs of a CHILD_SA and of an IKE SA leave nothing on either side")
}

fn gone(stage: &Stage, spis: &Spis) -> Result<()> {
    let gone = || {
        for namespace in [&stage.lab.ours, &stage.lab.theirs] {
            let counters = Lab::counters(namespace)?;
            if counters.contains_key(&spis.inbound) || counters.contains_key(&spis.outbound) {
                return Ok(false);
            }
        }
        Ok(true)
    };
    until(
        "the CHILD_SA's states are gone",
        Duration::from_secs(10),
        gone,
    )
    .with_context(|| stage.states())
}

fn nothing_left(stage: &mut Stage) -> Result<()> {
    until("no IKE SA on their side", Duration::from_secs(15), || {
        Ok(stage.theirs.ike_sas()? == 0)
    })?;
    no_states(stage)
}

fn no_states(stage: &Stage) -> Result<()> {
    let none = || {
        let both = [&stage.lab.ours, &stage.lab.theirs];
        let left = both.map(|namespace| Lab::counters(namespace));
        for counters in left {
            if !counters?.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    };
    until("no states in either kernel", Duration::from_secs(10), none)
        .with_context(|| stage.states())
}

/// The responder has half-open IKE SAs of the initiator's address and asks for a cookie.
pub(super) fn cookies(item: Item, place: &Place, id: &str) -> Verdict {
    let ours = item.role == Role::Initiator;
    let wish = Wish {
        cookies: ours,
        ..Wish::new(item.auth)
    };
    let mut stage = Stage::set(item, place, id, &wish)?;
    let (namespace, from, to) = match item.role {
        Role::Initiator => (&stage.lab.ours, OURS, THEIRS),
        Role::Responder => (&stage.lab.theirs, THEIRS, OURS),
    };
    let program = std::env::current_exe()?.with_file_name("espalier-ike-probe");
    let mut command = inside(namespace, program);
    let said = capture(command.args(["--half-open", from, to, &STRANGERS.to_string()]))?;
    if !said.ok {
        bail!("half-open IKE SAs: {}", said.text.trim());
    }
    let spis = stage.establish()?;
    let messages = stage.ours.messages()?;
    let with_cookie = |inbound: bool| {
        messages.iter().any(|m| {
            let kinds = m.kinds() == (NOTIFY, IKE_SA_INIT);
            m.inbound == inbound && kinds && m.bytes.get(34..36) == Some(&COOKIE)
        })
    };
    if !(with_cookie(true) && with_cookie(false)) {
        bail!("no cookie was asked for and shown");
    }
    stage.check_rest(&spis)?;
    pass("the responder asked for a cookie and got it")
}
