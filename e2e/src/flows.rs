//! Several flows that are counted together.

use anyhow::Result;

use crate::flow::{Count, Flow, Mark};

/// Flows, and how far each was when counting began.
#[derive(Debug)]
pub struct Flows(Vec<(Flow, Mark)>);

impl Flows {
    /// The port of the first; those of the others follow.
    pub const FIRST_PORT: u16 = 7001;

    /// Returns when packets of all of them arrive; what counts begins then.
    ///
    /// # Errors
    /// Packets of one do not arrive.
    pub fn count_from_now(flows: Vec<Flow>) -> Result<Self> {
        for flow in &flows {
            flow.await_since(flow.mark())?;
        }
        let marked = flows.into_iter().map(|flow| {
            let mark = flow.mark();
            (flow, mark)
        });
        Ok(Self(marked.collect()))
    }

    /// Waits until packets of all of them that are sent from now on arrive.
    ///
    /// # Errors
    /// Packets of one do not.
    pub fn arrive(&self) -> Result<()> {
        let mut flows = self.0.iter();
        flows.try_for_each(|(flow, _)| flow.await_since(flow.mark()))
    }

    /// What became of the packets of each.
    #[must_use]
    pub fn counts(&self) -> Vec<Count> {
        let flows = self.0.iter();
        flows.map(|(flow, mark)| flow.count_since(*mark)).collect()
    }
}
