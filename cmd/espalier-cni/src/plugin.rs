//! What every verb needs: the network's configuration with our own settings, and the agent.

use std::io::Write;
use std::path::PathBuf;

use espalier_cni_types::{Attachment, Error, ErrorCode, Invocation, NetworkConfig, Version};
use espalier_ipam::{Key, pending};
use serde_json::Value;

use crate::agent::Agent;
use crate::failure::io_failure;

/// Where the agent listens, unless the key `socket` says otherwise.
const DEFAULT_SOCKET: &str = "/run/espalier/agent.sock";
/// Where the agent keeps its state, unless the key `stateDir` says otherwise.
const DEFAULT_STATE_DIR: &str = "/var/lib/espalier";

pub(crate) struct Plugin {
    pub(crate) config: NetworkConfig,
    pub(crate) agent: Agent,
    pub(crate) state_dir: PathBuf,
}

impl Plugin {
    pub(crate) fn new(config: NetworkConfig) -> Result<Self, Error> {
        let path = |key, default: &str| -> Result<PathBuf, Error> {
            Ok(config
                .string(key)?
                .filter(|text| !text.is_empty())
                .unwrap_or(default)
                .into())
        };
        let (socket, state_dir) = (
            path("socket", DEFAULT_SOCKET)?,
            path("stateDir", DEFAULT_STATE_DIR)?,
        );
        Ok(Self {
            agent: Agent::new(socket)?,
            state_dir,
            config,
        })
    }

    /// Gives an interface's addresses back: now, or when the agent returns.
    pub(crate) fn release(&self, attachment: &Attachment) -> Result<(), Error> {
        match self.agent.release(attachment) {
            Ok(()) => self.cancel_release(attachment).map(drop),
            Err(failure) if failure.is_final() => Err(failure.into_error("DEL")),
            Err(failure) => {
                tracing::warn!(%failure, "release queued");
                pending::queue(&self.state_dir, &key(attachment)).map_err(|e| io_failure(&e))
            }
        }
    }

    /// Takes back a release that is queued for this interface; false when there is none.
    pub(crate) fn cancel_release(&self, attachment: &Attachment) -> Result<bool, Error> {
        pending::cancel(&self.state_dir, &key(attachment)).map_err(|e| io_failure(&e))
    }
}

/// Verbs that came after the configuration's version are refused: the runtime must not get an answer in a form that its
/// version does not have.
pub(crate) fn require_version(
    config: &NetworkConfig,
    invocation: &Invocation,
) -> Result<(), Error> {
    let since = match invocation {
        Invocation::Check { .. } => Version::V0_4_0,
        Invocation::Gc | Invocation::Status => Version::V1_1_0,
        _ => Version::V0_3_1,
    };
    if config.version >= since {
        return Ok(());
    }
    let (verb, version) = (invocation.command(), config.version);
    let text = format!(
        "{verb} needs cniVersion {since} or later: the network configuration says {version}"
    );
    Err(Error::new(ErrorCode::IncompatibleVersion, text))
}

/// One object and a line feed, flushed: what the runtime did not get has not happened.
pub(crate) fn print(output: &mut dyn Write, value: &Value) -> Result<(), Error> {
    let printed = writeln!(output, "{value}").and_then(|()| output.flush());
    printed.map_err(|error| {
        Error::new(
            ErrorCode::Io,
            format!("cannot write the result to stdout: {error}"),
        )
    })
}

fn key(attachment: &Attachment) -> Key {
    Key::new(attachment.container_id.as_str(), attachment.ifname.as_str())
}
