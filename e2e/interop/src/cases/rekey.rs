//! Rekeys by either side, and by both at once. Each CHILD_SA must carry packets before and after.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::{Stage, Verdict, pass};
use crate::command::until;
use crate::foreign::{Place, Wish};
use crate::matrix::Item;
use crate::ours::Spis;
use crate::report::Outcome;

/// CREATE_CHILD_SA (RFC 7296 §1.3), for counting.
const CREATE_CHILD_SA: u8 = 36;
/// Both sides clean up within this; what the other side does not, we do after [`espalier_ike::limits::REDUNDANT_PATIENCE`].
const SETTLES: Duration = Duration::from_secs(30);
/// What pluto logs when its own IKE SA is not any more the one that it asked on: it has moved its CHILD_SAs to the IKE SA
/// that it granted, and these end with that one, though it is the redundant one (RFC 7296 §2.8.2).
const PLUTO_BROKEN: &str =
    "EXPECTATION FAILED: ike->sa.st_serialno == larval_ike->sa.st_clonedfrom";

/// What pluto logs when a DELETE comes while it still works on the answer before it: it takes the two for one another, counts its
/// messages wrongly, and answers every later request with the last response.
const PLUTO_CONFUSED: &str = "EXPECTATION FAILED: v2_msg_role(md) == MESSAGE_REQUEST";

pub(super) fn child(item: Item, place: &Place, id: &str) -> Verdict {
    let mut stage = Stage::set(item, place, id, &Wish::new(item.auth))?;
    let first = stage.establish()?;
    let second = by_us(&mut stage, &first).context("our rekey")?;
    let third = by_them(&mut stage, &second).context("their rekey")?;
    stage.check_rest(&third)?;
    pass("rekeyed by us and by them, each with a key exchange")
}

fn by_us(stage: &mut Stage, old: &Spis) -> Result<Spis> {
    stage.ours.tell("rekey-child")?;
    replaced(stage, old)
}

fn by_them(stage: &mut Stage, old: &Spis) -> Result<Spis> {
    stage.theirs.rekey_child()?;
    replaced(stage, old)
}

/// Packets pass while there are two CHILD_SAs, though the other side may use either, and on the new one afterwards.
fn replaced(stage: &mut Stage, old: &Spis) -> Result<Spis> {
    let new = stage.ours.wait_child(15)?;
    stage.ping().context("with the old and the new CHILD_SA")?;
    stage.ours.wait_down(old, 20)?;
    stage
        .traffic(&new)
        .context("after the old CHILD_SA's end")?;
    Ok(new)
}

pub(super) fn ike(item: Item, place: &Place, id: &str) -> Verdict {
    let mut stage = Stage::set(item, place, id, &Wish::new(item.auth))?;
    let spis = stage.establish()?;
    stage.ours.tell("rekey-ike")?;
    moved(&mut stage, 1).context("our rekey")?;
    let first = last_spis(&stage)?;
    stage.traffic(&spis).context("after our rekey")?;
    one_ike_sa(&mut stage)?;
    stage.theirs.rekey_ike()?;
    moved(&mut stage, 2).context("their rekey")?;
    let second = last_spis(&stage)?;
    stage.traffic(&spis).context("after their rekey")?;
    on_new_ike_sa(&mut stage, &spis, &[first, second])?;
    pass("rekeyed by us and by them; the CHILD_SA went along")
}

/// The CHILD_SA belongs to the newest IKE SA on both sides: it can be rekeyed there.
fn on_new_ike_sa(stage: &mut Stage, spis: &Spis, old: &[Vec<u8>]) -> Result<()> {
    let next = by_us(stage, spis).context("the CHILD_SA's rekey on the new IKE SA")?;
    let on = last_spis(stage)?;
    if old.contains(&on) {
        bail!("the CHILD_SA was rekeyed on an old IKE SA");
    }
    one_ike_sa(stage)?;
    stage.check_rest(&next)
}

/// Every kind of rekey by both sides. Returns the CHILD_SA that is left.
pub(super) fn every_kind(stage: &mut Stage, first: &Spis) -> Result<Spis> {
    let second = by_us(stage, first).context("our rekey of the CHILD_SA")?;
    let third = by_them(stage, &second).context("their rekey of the CHILD_SA")?;
    stage.ours.tell("rekey-ike")?;
    moved(stage, 1).context("our rekey of the IKE SA")?;
    stage.traffic(&third).context("after our rekey")?;
    one_ike_sa(stage)?;
    stage.theirs.rekey_ike()?;
    moved(stage, 2).context("their rekey of the IKE SA")?;
    stage.traffic(&third).context("after their rekey")?;
    one_ike_sa(stage)?;
    Ok(third)
}

/// Both begin a rekey before either hears of the other's.
pub(super) fn child_collision(item: Item, place: &Place, id: &str) -> Verdict {
    let mut stage = Stage::set(item, place, id, &Wish::new(item.auth))?;
    let judged = judge_child_collision(&mut stage);
    unless_broken(&stage, judged, PLUTO_CONFUSED)
}

/// A failure is the other side's limit where its own log has the line `sign`.
fn unless_broken(stage: &Stage, judged: Verdict, sign: &str) -> Verdict {
    let log = stage.theirs.log();
    let broken = log.lines().find(|line| line.contains(sign));
    match (judged, broken) {
        (Err(_), Some(line)) => Ok((
            Outcome::PeerLimit,
            format!("its own check fails when rekeys cross: {}", line.trim()),
        )),
        (judged, _) => judged,
    }
}

fn judge_child_collision(stage: &mut Stage) -> Verdict {
    let first = stage.establish()?;
    let requests = cross(stage, "rekey-child")?;
    stage
        .ours
        .wait_down(&first, 20)
        .context("the old CHILD_SA stayed")?;
    let last = settled(stage)?;
    stage.traffic(&last)?;
    stage.check_rest(&last)?;
    let next = by_us(stage, &last).context("a rekey after the collision")?;
    stage.check_rest(&next)?;
    pass(format!(
        "{requests} requests crossed; one CHILD_SA left on both sides"
    ))
}

pub(super) fn ike_collision(item: Item, place: &Place, id: &str) -> Verdict {
    let mut stage = Stage::set(item, place, id, &Wish::new(item.auth))?;
    let judged = judge_ike_collision(&mut stage);
    unless_broken(&stage, judged, PLUTO_BROKEN)
}

fn judge_ike_collision(stage: &mut Stage) -> Verdict {
    let spis = stage.establish()?;
    let requests = cross(stage, "rekey-ike")?;
    let old = last_spis(stage)?;
    moved(stage, 1)?;
    stage.traffic(&spis)?;
    on_new_ike_sa(stage, &spis, &[old])?;
    pass(format!(
        "{requests} requests crossed; one IKE SA left on both sides"
    ))
}

/// Their request waits at our door until ours is out and answered.
fn cross(stage: &mut Stage, command: &str) -> Result<usize> {
    let from = stage.ours.messages()?.len();
    stage.ours.tell("hold")?;
    match command {
        "rekey-ike" => stage.theirs.rekey_ike()?,
        _ => stage.theirs.rekey_child()?,
    }
    stage.ours.wait("held", 10).context("their request")?;
    stage.ours.tell(command)?;
    stage.ours.wait("held", 10).context("their answer")?;
    stage.ours.tell("release")?;
    let messages = stage.ours.messages()?;
    let is_request = |bytes: &[u8]| bytes.get(19).is_some_and(|flags| flags & 0x20 == 0);
    let requests = messages.iter().skip(from);
    let requests: Vec<bool> = requests
        .filter(|m| m.kinds().1 == CREATE_CHILD_SA && is_request(&m.bytes))
        .map(|m| m.inbound)
        .collect();
    if !requests.contains(&true) || !requests.contains(&false) {
        bail!("no collision came about");
    }
    Ok(requests.len())
}

/// The one CHILD_SA that stays.
fn settled(stage: &mut Stage) -> Result<Spis> {
    let one = || Ok(stage.ours.children().len() == 1);
    until("one CHILD_SA", SETTLES, one)?;
    stage.ours.skip();
    stage.ours.children().pop().context("no CHILD_SA is left")
}

/// Waits until we have moved to another IKE SA for the `times`th time.
fn moved(stage: &mut Stage, times: usize) -> Result<()> {
    let count = || {
        let log = std::fs::read_to_string(&stage.ours.log)?;
        Ok(log.matches("IKE SA rekeyed").count() >= times)
    };
    until("a new IKE SA", SETTLES, count)
}

/// Both SPIs of the IKE SA of the last CREATE_CHILD_SA.
fn last_spis(stage: &Stage) -> Result<Vec<u8>> {
    let messages = stage.ours.messages()?;
    let last = messages
        .iter()
        .rev()
        .find(|m| m.kinds().1 == CREATE_CHILD_SA);
    let spis = last.and_then(|message| message.bytes.get(..16));
    Ok(spis.context("no CREATE_CHILD_SA")?.to_vec())
}

fn one_ike_sa(stage: &mut Stage) -> Result<()> {
    until("one IKE SA on their side", SETTLES, || {
        Ok(stage.theirs.ike_sas()? == 1)
    })
}
