//! IKE SAs in their last seconds: those whose DELETE is not acknowledged, and those whose last response may be asked for again.
//! However fast a peer makes and ends them, few are kept: the oldest goes first.

use super::Endpoint;
use crate::config::Identity;
use crate::limits;

impl Endpoint {
    /// This IKE SA is gone but for its last words. `owner`: the authenticated peer; `None`: whoever was refused.
    pub(super) fn linger(&mut self, owner: Option<Identity>, spi: u64) {
        let most = match owner {
            Some(_) => limits::LINGERING_PER_PEER,
            None => limits::LINGERING_REFUSED,
        };
        let kept = self.lingering.entry(owner).or_default();
        kept.retain(|other| *other != spi && self.sas.contains_key(other));
        kept.push_back(spi);
        let oldest = (kept.len() > most).then(|| kept.pop_front()).flatten();
        if let Some(oldest) = oldest.filter(|spi| !self.is_in_use(*spi)) {
            tracing::debug!("an IKE SA that is gone makes room for another");
            self.forget(oldest);
        }
    }

    /// It came without a CHILD_SA and has got one since.
    fn is_in_use(&self, spi: u64) -> bool {
        let established = self.sas.get(&spi).and_then(|sa| sa.established());
        established.is_some_and(|sa| self.is_listed(&sa.peer, spi))
    }
}
