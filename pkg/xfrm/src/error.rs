use std::io;

use espalier_dataplane_core as seam;
use espalier_netlink::Errno;

use crate::wire::ParseError;

/// What can go wrong between this data plane and the kernel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused, or did not answer.
    #[error("{source}{}", remedy.as_ref().map(|r| format!("; {r}")).unwrap_or_default())]
    Netlink {
        /// What it said.
        source: espalier_netlink::Error,
        /// What to do.
        remedy: Option<String>,
    },
    /// The kernel's message cannot be read.
    #[error("a message of the kernel's XFRM cannot be read: {0}")]
    Parse(#[from] ParseError),
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// The operation.
        what: String,
        /// Its error.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn io(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io {
            what: what.into(),
            source: source.into(),
        }
    }

    /// `needs`: the kernel options without which this cannot work.
    pub(crate) fn with_needs(source: espalier_netlink::Error, needs: &str) -> Self {
        let remedy = source.errno().and_then(|errno| remedy(errno, needs));
        Self::Netlink { source, remedy }
    }

    /// What the kernel said and what to do, without what was tried: for a probe, whose state nobody knows.
    pub(crate) fn reason(&self) -> String {
        let Self::Netlink {
            source: espalier_netlink::Error::Kernel { errno, reason, .. },
            remedy,
        } = self
        else {
            return self.to_string();
        };
        let said = reason.clone().unwrap_or_else(|| errno.to_string());
        match remedy {
            Some(remedy) => format!("{said}; {remedy}"),
            None => said,
        }
    }

    pub(crate) fn errno(&self) -> Option<Errno> {
        match self {
            Self::Netlink { source, .. } => source.errno(),
            _ => None,
        }
    }
}

impl From<espalier_netlink::Error> for Error {
    fn from(source: espalier_netlink::Error) -> Self {
        Self::with_needs(source, "xfrm_user (CONFIG_XFRM_USER)")
    }
}

/// The seam has no error of its own for a kernel that refuses: the call failed and may be tried again.
impl From<Error> for seam::Error {
    fn from(error: Error) -> Self {
        Self::Unreachable(error.to_string())
    }
}

fn remedy(errno: Errno, needs: &str) -> Option<String> {
    match errno {
        Errno::EPROTONOSUPPORT | Errno::ENOENT | Errno::ENOSYS | Errno::EAFNOSUPPORT => Some(
            format!("this kernel lacks something: load or build in {needs}"),
        ),
        Errno::EPERM | Errno::EACCES => Some("CAP_NET_ADMIN is needed".to_owned()),
        Errno::ENOBUFS | Errno::ENOMEM => Some("the kernel is out of memory".to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(errno: Errno) -> espalier_netlink::Error {
        espalier_netlink::Error::Kernel {
            what: "installing inbound SA 00001234".into(),
            errno,
            reason: Some("Requested type not found".into()),
        }
    }

    #[test]
    fn what_the_kernel_lacks_is_named() {
        let error = Error::with_needs(refused(Errno::EPROTONOSUPPORT), "esp4").to_string();
        assert!(
            error.contains("Requested type not found") && error.contains("load or build in esp4"),
            "{error}"
        );
        let reason = Error::with_needs(refused(Errno::EPROTONOSUPPORT), "esp4").reason();
        assert_eq!(
            reason,
            "Requested type not found; this kernel lacks something: load or build in esp4"
        );
        let error = Error::with_needs(refused(Errno::EINVAL), "esp4").to_string();
        assert!(!error.contains("esp4"), "{error}");
    }
}
