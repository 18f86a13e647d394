use std::io;
use std::path::PathBuf;

/// Why an interface could not be made, removed, compared or listed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The specification cannot work.
    #[error("{field} is {found}: expected {expected}")]
    Invalid {
        /// Which field.
        field: &'static str,
        /// What should be there.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// The kernel did not make the interface work.
    #[error(
        "interface {name} is up but did not work within {seconds} s; is the node overloaded? Try again"
    )]
    NoCarrier {
        /// The host's end.
        name: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The pod's namespace cannot be entered.
    #[error("network namespace {}: {source}; expected the path of a running pod's namespace", path.display())]
    Netns {
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The pod's namespace is the host's.
    #[error("network namespace {} is the host's own: expected the pod's; hostNetwork pods take no CNI interface", path.display())]
    HostNetns {
        /// Its path.
        path: PathBuf,
    },
    /// The host has an interface of the name that belongs to this pod. It and its addresses are not touched.
    #[error(
        "interface {name} of this container exists on the host already: DEL it before the next ADD"
    )]
    HostNameTaken {
        /// Its name.
        name: String,
    },
    /// The pod has an interface of this name.
    #[error(
        "interface {name} exists in the pod's namespace already: expected it to be free; DEL it or choose another CNI_IFNAME"
    )]
    PodNameTaken {
        /// Its name.
        name: String,
    },
    /// Something that is not ours has the name.
    #[error("interface {name} is not a veth of ours but {kind}: remove or rename it")]
    Foreign {
        /// Its name.
        name: String,
        /// What it is.
        kind: String,
    },
    /// The kernel refused a step.
    #[error("{step}: {source}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        source: espalier_netlink::Error,
    },
    /// A fault that a test asked for; only in debug builds.
    #[error("{step}: fault injected by ESPALIER_FAULT")]
    Fault {
        /// Where.
        step: &'static str,
    },
    /// Several things failed; the rest was done all the same.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<Error>),
}

impl Error {
    pub(crate) fn invalid(field: &'static str, expected: &'static str, found: String) -> Self {
        Self::Invalid {
            field,
            expected,
            found,
        }
    }

    /// Success when there is no error, the only one, or all of them.
    pub(crate) fn collect(mut errors: Vec<Self>) -> Result<(), Self> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Several(errors)),
        }
    }
}

/// Names the step that failed.
pub(crate) trait At<T>: Sized {
    /// A step of its own name, after which a test may ask for a fault.
    fn at(self, step: &'static str) -> Result<T, Error> {
        let done = self.at_step(step)?;
        crate::fault::at(step)?;
        Ok(done)
    }

    /// Part of a step.
    fn at_step(self, step: &'static str) -> Result<T, Error>;
}

impl<T> At<T> for Result<T, espalier_netlink::Error> {
    fn at_step(self, step: &'static str) -> Result<T, Error> {
        self.map_err(|source| Error::Step { step, source })
    }
}
