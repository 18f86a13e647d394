//! The data plane is brought to the program of this release, in place: once each time the agent starts.

use std::path::PathBuf;
use std::time::Duration;

use espalier_dataplane_core::{Dataplane as _, Hello};
use espalier_handover::{Digest, binary};
use espalier_rpc::DataplaneClient;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::news;

/// After the data plane's first answer: until then a starting agent takes over what it finds there.
const SETTLE: Duration = Duration::from_secs(5);
/// How often it is asked what it runs.
const LOOK: Duration = Duration::from_secs(5);

/// The program of this release, and where data planes take programs from.
#[derive(Clone, Debug)]
pub(crate) struct Carried {
    pub(crate) binary: PathBuf,
    pub(crate) folder: PathBuf,
    pub(crate) plane: DataplaneClient,
}

impl Carried {
    /// Does it in the background; what is told is why the data plane runs something else. Needs a tokio runtime.
    pub(crate) fn start(self) -> watch::Receiver<Vec<String>> {
        let (sender, complaints) = watch::channel(Vec::new());
        tokio::spawn(async move {
            match self.put().await {
                Ok(digest) => self.keep(digest, &sender).await,
                Err(why) => drop(sender.send_replace(vec![why])),
            }
            sender.closed().await;
        });
        complaints
    }

    /// Puts the program where the data plane can see it.
    async fn put(&self) -> Result<Digest, String> {
        let (from, folder) = (self.binary.clone(), self.folder.clone());
        let put = tokio::task::spawn_blocking(move || binary::install(&from, &folder)).await;
        put.map_err(|error| error.to_string())?
            .map_err(|error| format!("the data plane is not upgraded: {error}"))
    }

    async fn keep(&self, digest: Digest, complaints: &watch::Sender<Vec<String>>) {
        while self.plane.hello().await.is_err() {
            tokio::time::sleep(LOOK).await;
        }
        tokio::time::sleep(SETTLE).await;
        let refused = self.upgrade(digest).await.err();
        while !complaints.is_closed() {
            if let Ok(hello) = self.plane.hello().await {
                let found = complaint(&hello, digest, refused.as_deref());
                news::tell(complaints, found);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn upgrade(&self, digest: Digest) -> Result<(), String> {
        match self.plane.upgrade(&digest.to_string()).await {
            Ok(Hello { version, .. }) => {
                info!(
                    version,
                    digest = digest.short(),
                    "the data plane runs this release"
                )
            }
            Err(error) => {
                warn!(%error, "the data plane was not upgraded");
                return Err(error.to_string());
            }
        }
        if let Err(error) = binary::prune(&self.folder, &[digest]) {
            warn!(%error, folder = %self.folder.display(), "old data plane binaries stay");
        }
        Ok(())
    }
}

/// Why the data plane runs something else than this release's program.
fn complaint(hello: &Hello, digest: Digest, refused: Option<&str>) -> Vec<String> {
    if hello.digest == digest.to_string() {
        return Vec::new();
    }
    let remedy = "`espalier upgrade-dataplane` on the node tries again";
    vec![match refused {
        Some(why) => format!("{why}; {remedy}"),
        None => format!(
            "the data plane runs another program than this release's (it says version {}): its pod was started again with an older \
             image, or somebody chose another; {remedy}, or delete the pod",
            hello.version
        ),
    }]
}

#[cfg(test)]
mod tests {
    use espalier_dataplane_core::{Capabilities, USERSPACE};

    use super::*;

    fn hello(digest: &str) -> Hello {
        Hello {
            instance: 1,
            version: "0.0.9".to_owned(),
            digest: digest.to_owned(),
            kind: USERSPACE.to_owned(),
            device: None,
            pid: 1,
            can: Capabilities::default(),
        }
    }

    #[test]
    fn what_runs_is_compared_with_what_is_carried() {
        let carried = "5a".repeat(32);
        let digest: Digest = carried.parse().unwrap();
        let other = hello(&"77".repeat(32));
        assert!(complaint(&hello(&carried), digest, Some("it was refused")).is_empty());
        let refused = complaint(&other, digest, Some("it was refused")).join("");
        assert!(
            refused.contains("refused") && refused.contains("tries again"),
            "{refused}"
        );
        let restarted = complaint(&other, digest, None).join("");
        assert!(
            restarted.contains("0.0.9") && restarted.contains("delete the pod"),
            "{restarted}"
        );
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let carried = Carried {
            binary: folder.path().join("missing"),
            folder: folder.path().join("bin"),
            plane: DataplaneClient::new(folder.path().join("dataplane.sock")).unwrap(),
        };
        let mut complaints = carried.start();
        complaints.changed().await.unwrap();
        let said = complaints.borrow().join("");
        assert!(
            said.contains("not upgraded") && said.contains("missing"),
            "{said}"
        );
    }
}
