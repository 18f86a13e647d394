//! Following the data plane: who it is, whether it is there, what it reports.

use std::time::Duration;

use espalier_dataplane_core::{Dataplane as _, Event, Hello};
use espalier_rpc::DataplaneClient;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tracing::{debug, info};

/// How often a data plane that is away is asked for.
const RETRY: Duration = Duration::from_millis(200);

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
    let mut known_down = false;
    loop {
        let session = session(&plane, &facts, &mut known_down).await;
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
) -> Result<(), String> {
    let mut events = plane.events().await.map_err(|e| e.to_string())?;
    let hello = plane.hello().await.map_err(|e| e.to_string())?;
    *known_down = false;
    if facts.send(PlaneFact::Up(hello)).await.is_err() {
        return Ok(());
    }
    while let Some(event) = events.next().await {
        let event = event.map_err(|e| e.to_string())?;
        if facts.send(PlaneFact::Event(event)).await.is_err() {
            return Ok(());
        }
    }
    Err("the data plane closed the connection".to_owned())
}
