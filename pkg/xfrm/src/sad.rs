//! The kernel's SAD: add, read, delete, list.

use espalier_dataplane_core::Suite;
use espalier_netlink::{EXCLUSIVE, Errno, PLAIN, Socket};

use crate::algorithm;
use crate::error::Error;
use crate::wire::new_state::NewState;
use crate::wire::policy::{self, Pinned};
use crate::wire::state::State;
use crate::wire::state_id::{self, StateId};
use crate::wire::{ParseError, Sad as Family};

/// A netlink socket for states, in the network namespace that it was opened in.
#[derive(Debug)]
pub(crate) struct Sad(Socket<Family>);

impl Sad {
    pub(crate) fn open() -> Result<Self, Error> {
        let needs = "xfrm_user (CONFIG_XFRM_USER)";
        Socket::open()
            .map(Self)
            .map_err(|source| Error::with_needs(source, needs))
    }

    /// How many messages were sent that can change something.
    pub(crate) fn writes(&self) -> usize {
        self.0.writes()
    }

    /// Adds a state; never changes one that is there (EEXIST).
    pub(crate) fn add(&mut self, state: &NewState<'_>) -> Result<(), Error> {
        self.0
            .request(state.message(), EXCLUSIVE)
            .map(|_| ())
            .map_err(|source| Error::with_needs(source, algorithm::options(state.suite)))
    }

    /// A state, if it is there.
    pub(crate) fn get(&mut self, id: &StateId) -> Result<Option<State>, Error> {
        match self.0.request(id.get(), PLAIN) {
            Ok(answers) => {
                let states = answers.iter().map(|message| State::parse(&message.body));
                Ok(states.collect::<Result<Vec<_>, _>>()?.into_iter().next())
            }
            Err(source) if source.errno() == Some(Errno::ESRCH) => Ok(None),
            Err(source) => Err(source.into()),
        }
    }

    /// Removes a state; says whether it was there.
    pub(crate) fn delete(&mut self, id: &StateId) -> Result<bool, Error> {
        match self.0.request(id.delete(), PLAIN) {
            Ok(_) => Ok(true),
            Err(source) if source.errno() == Some(Errno::ESRCH) => Ok(false),
            Err(source) => Err(source.into()),
        }
    }

    /// All states that `wanted` takes by their reqid.
    pub(crate) fn list(&mut self, wanted: impl Fn(u32) -> bool) -> Result<Vec<State>, Error> {
        let messages = self.0.dump(state_id::dump())?;
        let states = messages.iter().map(|message| State::parse(&message.body));
        let ours = states.filter(|state| state.as_ref().map_or(true, |state| wanted(state.reqid)));
        Ok(ours.collect::<Result<_, ParseError>>()?)
    }

    /// What the outbound policies pin, those for probes left out.
    pub(crate) fn pinned(&mut self) -> Result<Vec<Pinned>, Error> {
        let messages = self.0.dump(policy::dump())?;
        let mut all = Vec::new();
        for message in &messages {
            all.extend(policy::pinned(&message.body)?);
        }
        Ok(all)
    }
}

/// Removes what [`Sad::add`] added, even when what comes in between fails.
pub(crate) fn with_throw_away<T>(
    sad: &mut Sad,
    state: &NewState<'_>,
    use_it: impl FnOnce(&mut Sad, &StateId) -> Result<T, Error>,
) -> Result<T, Error> {
    let id = StateId {
        destination: state.destination,
        spi: state.spi.0,
        protocol: state.protocol(),
    };
    sad.add(state)?;
    let result = use_it(sad, &id);
    let removed = sad.delete(&id);
    let result = result?;
    removed.map(|_| result)
}

/// Every suite, for probes.
pub(crate) fn preferred() -> [Suite; 6] {
    [
        Suite::Aes256Gcm16,
        Suite::Aes128Gcm16,
        Suite::ChaCha20Poly1305,
        Suite::Aes256Gmac,
        Suite::Aes128Gmac,
        Suite::AhHmacSha256,
    ]
}
