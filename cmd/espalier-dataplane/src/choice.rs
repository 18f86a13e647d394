//! Who encrypts on this node.

use std::time::Duration;

use anyhow::{Context as _, Result};
use espalier_xfrm::{Findings, probe};
use tracing::{info, warn};

use crate::args::Choice;

/// How often a kernel that was found wanting is asked again: a module may be loaded at any time.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// What was decided.
pub(crate) enum Decision {
    /// The kernel, which can do this.
    Kernel(Box<Findings>),
    /// This process; why not the kernel, if that was wanted.
    Userspace(Option<String>),
    /// Nobody, and why.
    Nobody(String),
}

pub(crate) async fn decide(choice: Choice) -> Result<Decision> {
    if choice == Choice::Userspace {
        return Ok(Decision::Userspace(None));
    }
    let findings = ask().await?;
    Ok(match (choice, &findings.problem) {
        (_, None) => {
            info!(can = ?findings.can, "the kernel encrypts");
            Decision::Kernel(Box::new(findings))
        }
        (Choice::Kernel, Some(problem)) => {
            let reason =
                format!("--dataplane kernel was asked for and this kernel cannot do it: {problem}");
            warn!(%reason, "nothing encrypts; every call is refused until the kernel can");
            Decision::Nobody(reason)
        }
        (_, Some(problem)) => {
            let note = format!(
                "userspace encrypts, because this kernel cannot: {problem}; restart espalier-dataplane when it can"
            );
            warn!(%note, "FALLBACK");
            Decision::Userspace(Some(note))
        }
    })
}

/// Resolves when the kernel can do what it could not.
pub(crate) async fn kernel_can() {
    loop {
        tokio::time::sleep(ASK_AGAIN).await;
        if let Ok(Findings { problem: None, .. }) = ask().await {
            info!("the kernel can encrypt now");
            return;
        }
    }
}

pub(crate) async fn ask() -> Result<Findings> {
    tokio::task::spawn_blocking(probe)
        .await
        .context("probing the kernel")
}
