//! S3 and S4: no key twice, no sequence number twice.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use espalier_e2e::{Mode, State};

use crate::ground::{Ground, Populated, indexes};
use crate::load::{Load, nothing_clear};

/// A rekey in each pair comes within this.
const EPOCHS: usize = 3;
const REKEY_SECONDS: u32 = 10;
const RESTARTS: usize = 4;
const LOOK: Duration = Duration::from_millis(250);

/// Which SA a state belongs to, seen from either end.
type Sa = (String, String, u32);

/// S3: over pairs, directions and rekeys each key belongs to one SA.
pub(crate) fn s3(ground: &mut Ground<'_>) -> Result<String> {
    let mut mesh = ground.prepare(3, Mode::Required, &[])?;
    for node in &mut mesh.nodes {
        node.rekey_seconds = Some(REKEY_SECONDS);
    }
    let mut on = ground.populate(mesh)?;
    on.works()?;
    let mut owners: BTreeMap<String, BTreeSet<Sa>> = BTreeMap::new();
    let mut sas = BTreeSet::new();
    let time = Duration::from_secs(u64::from(REKEY_SECONDS) * u64::try_from(EPOCHS)?);
    let looks = time.as_millis() / LOOK.as_millis();
    for _ in 0..looks {
        for state in all_states(&on)? {
            let sa = (state.src.to_string(), state.dst.to_string(), state.spi);
            sas.insert(sa.clone());
            for (_, key) in state.keys {
                owners.entry(key).or_default().insert(sa.clone());
            }
        }
        std::thread::sleep(LOOK);
    }
    // Three pairs, two directions, and each replaced at least once.
    ensure!(
        sas.len() >= 12,
        "expected 12 SAs at least, found {}",
        sas.len()
    );
    if let Some(shared) = owners.values().find(|owners| owners.len() > 1) {
        bail!("one key for several SAs: {shared:?}");
    }
    ensure!(
        owners.len() == sas.len(),
        "{} keys for {} SAs",
        owners.len(),
        sas.len()
    );
    Ok(format!("{} SAs, as many keys", sas.len()))
}

fn all_states(on: &Populated) -> Result<Vec<State>> {
    let mut all = Vec::new();
    for index in indexes(&on.mesh) {
        all.extend(on.states(index)?);
    }
    Ok(all)
}

/// S4: over agent restarts the counters of outbound SAs only rise, and a removed SA does not come back.
pub(crate) fn s4(ground: &mut Ground<'_>) -> Result<String> {
    let mut on = ground.required(2, &[])?;
    let load = Load::start(&on)?;
    let mut history = History::default();
    history.look(&on)?;
    for restart in 0..RESTARTS {
        let index = if restart % 2 == 0 { 1 } else { 2 };
        on.mesh.node(index)?.kill_agent()?;
        history.look_for(&on, Duration::from_secs(1))?;
        on.mesh.node(index)?.start_agent()?;
        history.look_for(&on, Duration::from_secs(8))?;
        on.all_encrypt()?;
    }
    load.ends_without_loss(&on.mesh, ground.measured)?;
    nothing_clear(ground.measured)?;
    let seen = history.highest.len();
    ensure!(seen > 2, "the SAs were never replaced");
    Ok(format!(
        "{RESTARTS} restarts, {seen} outbound SAs, {} looks",
        history.looks
    ))
}

/// What was seen of outbound SAs, by node and SPI.
#[derive(Default)]
struct History {
    highest: BTreeMap<(u8, u32), u64>,
    gone: BTreeSet<(u8, u32)>,
    looks: usize,
}

impl History {
    fn look_for(&mut self, on: &Populated, duration: Duration) -> Result<()> {
        let looks = duration.as_millis() / LOOK.as_millis();
        for _ in 0..looks {
            self.look(on)?;
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    fn look(&mut self, on: &Populated) -> Result<()> {
        self.looks += 1;
        for index in indexes(&on.mesh) {
            let states = on.outbound(index)?;
            ensure!(!states.is_empty(), "node-{index} has no outbound state");
            let now: BTreeMap<(u8, u32), u64> = states
                .iter()
                .map(|state| ((index, state.spi), state.sent))
                .collect();
            self.note(index, &now)?;
        }
        Ok(())
    }

    fn note(&mut self, index: u8, now: &BTreeMap<(u8, u32), u64>) -> Result<()> {
        for (sa, sent) in now {
            let (node, spi) = sa;
            ensure!(
                !self.gone.contains(sa),
                "node-{node}: SA {spi:08x} came back"
            );
            let before = self.highest.insert(*sa, *sent).unwrap_or_default();
            ensure!(
                *sent >= before,
                "node-{node}: SA {spi:08x} went from {before} to {sent}"
            );
        }
        let known = self.highest.keys().filter(|(node, _)| *node == index);
        self.gone.extend(known.filter(|sa| !now.contains_key(*sa)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_falls_and_a_dead_sa_are_noticed() {
        let now = |entries: &[(u32, u64)]| {
            entries
                .iter()
                .map(|(spi, sent)| ((1, *spi), *sent))
                .collect::<BTreeMap<_, _>>()
        };
        let mut history = History::default();
        history.note(1, &now(&[(7, 5)])).unwrap();
        history.note(1, &now(&[(7, 6), (8, 0)])).unwrap();
        assert!(history.note(1, &now(&[(7, 5), (8, 0)])).is_err());
        history.note(1, &now(&[(8, 1)])).unwrap();
        assert!(history.note(1, &now(&[(7, 9), (8, 1)])).is_err());
    }
}
