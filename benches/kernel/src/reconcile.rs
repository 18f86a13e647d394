//! The overlay's objects of a large mesh, written and compared by [`Overlay::apply`] and changed by
//! [`Overlay::apply_changes`], which does not read first, beside `ip -batch` and `bridge -batch`
//! writing the same objects. The kernel needs no ESP for policies, so this runs in namespaces of the machine itself.
//!
//! ```text
//!  namespace "ours"    Overlay::apply ──▶ kernel ──▶ ip route, ip neigh, bridge fdb, ip xfrm policy
//!  namespace "theirs"  kernel ◀── ip -batch ◀── the same objects as commands, from what is listed on the left
//! ```

mod batch;
mod mesh;

use anyhow::{Result, ensure};
use espalier_overlay::Overlay;
use espalier_testnet::{Netns, VethEnd, address, veth};

use crate::clock::{Took, timed};
use crate::host::Size;
use crate::rows::Writer;
use batch::Objects;

/// Of every round.
#[derive(Default)]
struct Rounds {
    first: Vec<Took>,
    first_writes: Vec<f64>,
    nothing: Vec<Took>,
    switch: Vec<Took>,
    switch_writes: Vec<f64>,
    change: Vec<Took>,
    change_writes: Vec<f64>,
    batch: Vec<Took>,
    objects: f64,
}

/// All sizes.
pub(crate) fn run(size: &Size, rows: &Writer) -> Result<()> {
    for &peers in &size.peers {
        let mut rounds = Rounds::default();
        for _ in 0..size.rounds {
            round(peers, &mut rounds)?;
        }
        report(peers, &rounds, rows)?;
    }
    Ok(())
}

fn round(peers: usize, rounds: &mut Rounds) -> Result<()> {
    let (ours, theirs) = (Netns::new("ours")?, Netns::new("theirs")?);
    let end = |netns, name| VethEnd { netns, name };
    veth(end(&ours, "eth0"), end(&theirs, "eth0"), mesh::UNDERLAY_MTU)?;
    for netns in [&ours, &theirs] {
        netns.run(|| address("eth0", mesh::LOCAL.into(), mesh::PREFIX))??;
    }
    let mut overlay = ours.run(Overlay::open)??;
    let mut desired = mesh::desired(peers);
    let (done, took) = timed(|| Ok(overlay.apply(&desired)?))?;
    rounds.first.push(took);
    rounds.first_writes.push(done.writes as f64);
    let (done, took) = timed(|| Ok(overlay.apply(&desired)?))?;
    ensure!(
        done.writes == 0,
        "{} writes with nothing to do",
        done.writes
    );
    rounds.nothing.push(took);
    mesh::other_spi(&mut desired);
    let (done, took) = timed(|| Ok(overlay.apply(&desired)?))?;
    ensure!(done.writes > 0, "another SPI, and nothing was written");
    rounds.switch.push(took);
    rounds.switch_writes.push(done.writes as f64);
    mesh::other_spi(&mut desired);
    let (done, took) = timed(|| Ok(overlay.apply_changes(&desired)?))?;
    ensure!(done.writes > 0, "another SPI, and nothing was written");
    rounds.change.push(took);
    rounds.change_writes.push(done.writes as f64);
    counterpart(&ours, &theirs, rounds)
}

/// The other namespace gets what an overlay without peers has, such as the device; the rest is the counterpart's work.
fn counterpart(ours: &Netns, theirs: &Netns, rounds: &mut Rounds) -> Result<()> {
    theirs.run(Overlay::open)??.apply(&mesh::desired(0))?;
    let all = Objects::of(ours)?;
    let missing = all.without(&Objects::of(theirs)?);
    let batches = missing.batches()?;
    let ((), took) = timed(|| batches.run(theirs))?;
    rounds.batch.push(took);
    rounds.objects = missing.count() as f64;
    let difference = all.without(&Objects::of(theirs)?);
    ensure!(
        difference.count() == 0,
        "{} of {} objects are not what the counterpart wrote, such as {:?}",
        difference.count(),
        all.count(),
        difference.first()
    );
    Ok(())
}

fn report(peers: usize, rounds: &Rounds, rows: &Writer) -> Result<()> {
    let mode = format!("overlay-{peers}");
    let wall = |took: &[Took]| took.iter().map(|took| took.ms).collect::<Vec<_>>();
    let cpu = |took: &[Took]| took.iter().map(|took| took.cpu_ms).collect::<Vec<_>>();
    for (name, took, writes) in [
        ("first", &rounds.first, &rounds.first_writes[..]),
        ("nothing-to-do", &rounds.nothing, &[0.0]),
        ("one-spi-whole", &rounds.switch, &rounds.switch_writes),
        ("one-spi-change", &rounds.change, &rounds.change_writes),
    ] {
        rows.add(&mode, name, "ms", &wall(took))?;
        rows.add(&mode, &format!("{name}-cpu"), "ms", &cpu(took))?;
        rows.add(&mode, &format!("{name}-writes"), "", writes)?;
    }
    rows.add(&mode, "ip-batch", "ms", &wall(&rounds.batch))?;
    rows.add(&mode, "ip-batch-cpu", "ms", &cpu(&rounds.batch))?;
    rows.add(&mode, "ip-batch-objects", "", &[rounds.objects])?;
    let pairs = rounds.first.iter().zip(&rounds.batch);
    let (wall, cpu): (Vec<f64>, Vec<f64>) = pairs
        .map(|(first, batch)| (first.ms / batch.ms, first.cpu_ms / batch.cpu_ms))
        .unzip();
    rows.add(&mode, "first-by-ip-batch", "", &wall)?;
    rows.add(&mode, "first-by-ip-batch-cpu", "", &cpu)
}
