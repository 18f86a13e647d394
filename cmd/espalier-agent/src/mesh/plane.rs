//! Following the data plane: who it is, whether it is there, what it reports.

use std::time::Duration;

use espalier_dataplane_core::{Dataplane as _, Direction, Event, Hello, SaInfo};
use espalier_rpc::DataplaneClient;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tracing::{debug, info};

/// How often a data plane that is away is asked for.
const RETRY: Duration = Duration::from_millis(200);

/// Longer than a data plane is unheard of when its program is replaced.
const LATELY: Duration = Duration::from_secs(2);

/// What is known of the data plane.
#[derive(Debug)]
pub(crate) enum PlaneFact {
    /// It answers; another instance than before has lost all state.
    Up(Hello),
    /// It does not answer, for this reason.
    Down(String),
    /// It reports.
    Event(Event),
}

/// Tells `facts` about the data plane for ever. The events stream is the heartbeat: when it ends, the process is gone or
/// events were missed, and a new hello tells which.
pub(crate) async fn follow(plane: DataplaneClient, facts: mpsc::Sender<PlaneFact>) {
    let (mut known_down, mut before) = (false, None);
    loop {
        let session = session(&plane, &facts, &mut known_down, &mut before).await;
        let Err(why) = session else { return };
        debug!(%why, "data plane session ended");
        if !known_down && plane.hello().await.is_err() {
            known_down = true;
            info!(%why, "data plane is away");
            if facts.send(PlaneFact::Down(why)).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// `Ok` when nobody listens any more.
async fn session(
    plane: &DataplaneClient,
    facts: &mpsc::Sender<PlaneFact>,
    known_down: &mut bool,
    before: &mut Option<u64>,
) -> Result<(), String> {
    let mut events = plane.events().await.map_err(|e| e.to_string())?;
    let hello = plane.hello().await.map_err(|e| e.to_string())?;
    *known_down = false;
    let missed = match before.replace(hello.instance) == Some(hello.instance) {
        true => missed(plane).await?,
        false => Vec::new(),
    };
    let up = [PlaneFact::Up(hello)].into_iter();
    for fact in up.chain(missed.into_iter().map(PlaneFact::Event)) {
        if facts.send(fact).await.is_err() {
            return Ok(());
        }
    }
    while let Some(event) = events.next().await {
        let event = event.map_err(|e| e.to_string())?;
        if facts.send(PlaneFact::Event(event)).await.is_err() {
            return Ok(());
        }
    }
    Err("the data plane closed the connection".to_owned())
}

/// What the same data plane may have reported while nobody listened, as when its program was replaced: SAs on which packets have come
/// in lately. Who knows it already loses nothing by hearing it again.
async fn missed(plane: &DataplaneClient) -> Result<Vec<Event>, String> {
    let dump = plane.dump().await.map_err(|e| e.to_string())?;
    let recent = |sa: &SaInfo| {
        sa.idle_ms
            .is_some_and(|ms| u128::from(ms) < LATELY.as_millis())
    };
    let opened = |sa: &SaInfo| sa.direction == Direction::In && sa.active && recent(sa);
    let found = dump.sas.into_iter().filter(opened);
    let event = |sa: SaInfo| Event::FirstPacket {
        peer: sa.peer,
        spi: sa.spi,
    };
    Ok(found.map(event).collect())
}
