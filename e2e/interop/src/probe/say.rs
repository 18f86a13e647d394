//! Events as JSON lines on stdout, IKE messages as JSON lines in a file.

use std::fs::File;
use std::io::Write as _;
use std::path::Path as FilePath;
use std::time::Instant;

use anyhow::{Context as _, Result};
use espalier_ike::{Event, Path};
use serde_json::{Value, json};

pub(super) fn event(value: &Value) {
    let mut out = std::io::stdout().lock();
    // Whoever does not read any more does not need it.
    let _gone = writeln!(out, "{value}").and_then(|()| out.flush());
}

/// What an engine's event is as JSON, without keys.
pub(super) fn describe(event: &Event) -> Value {
    match event {
        Event::IkeUp { role, .. } => json!({"event": "ike-up", "role": format!("{role:?}")}),
        Event::ChildUp { child, .. } => json!({
            "event": "child-up",
            "spi_in": format!("{:08x}", child.spi_in),
            "spi_out": format!("{:08x}", child.spi_out),
            "role": format!("{:?}", child.role),
            "transport": child.transport,
            "esn": child.esn,
            "suite": format!("{:?}", child.suite),
        }),
        Event::ChildDown { spi_in, reason, .. } => json!({
            "event": "child-down",
            "spi_in": format!("{spi_in:08x}"),
            "reason": format!("{reason:?}"),
        }),
        Event::IkeDown { reason, .. } => {
            json!({"event": "ike-down", "reason": format!("{reason:?}")})
        }
        Event::HandshakeFailed { error, .. } => {
            json!({"event": "handshake-failed", "error": error.to_string()})
        }
        other => json!({"event": "other", "text": format!("{other:?}")}),
    }
}

/// Keeps the IKE messages of a case.
pub(super) struct Recorder {
    file: File,
    start: Instant,
}

impl Recorder {
    pub(super) fn create(file: &FilePath) -> Result<Self> {
        let file = File::create(file).with_context(|| format!("creating {}", file.display()))?;
        let start = Instant::now();
        Ok(Self { file, start })
    }

    pub(super) fn keep(&mut self, direction: &str, path: &Path, message: &[u8]) -> Result<()> {
        let line = json!({
            "ms": self.start.elapsed().as_millis(),
            "dir": direction,
            "local": path.local.port(),
            "remote": path.remote.port(),
            "message": hex::encode(message),
        });
        writeln!(self.file, "{line}").context("recording a message")
    }
}
