//! The network configuration list that makes the container runtime call `espalier-cni`.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::mesh::NodeFacts;
use crate::news;

/// Runtimes take the first file in the order of names.
const FILE: &str = "05-espalier.conflist";
/// Between two looks at the folder.
const LOOK: Duration = Duration::from_secs(15);
const CNI_VERSION: &str = "1.0.0";

/// Where the list is written, and what is known of this host.
#[derive(Clone, Debug)]
pub(crate) struct CniConf {
    pub(crate) folder: PathBuf,
    pub(crate) binaries: PathBuf,
    pub(crate) run_dir: PathBuf,
    pub(crate) state_dir: PathBuf,
}

impl CniConf {
    /// Writes the list once this node can enforce its policy, and again should somebody delete it. What is told is what keeps it
    /// from having its effect. Needs a tokio runtime.
    pub(crate) fn start(self, facts: watch::Receiver<NodeFacts>) -> watch::Receiver<Vec<String>> {
        let (sender, complaints) = watch::channel(Vec::new());
        tokio::spawn(self.keep(facts, sender));
        complaints
    }

    async fn keep(
        self,
        mut facts: watch::Receiver<NodeFacts>,
        complaints: watch::Sender<Vec<String>>,
    ) {
        let ready = facts
            .wait_for(|facts| facts.why_not_ready().is_empty())
            .await;
        if ready.map(drop).is_err() {
            return;
        }
        while !complaints.is_closed() {
            let mut found = self.problems();
            match self.write() {
                Ok(true) => info!(folder = %self.folder.display(), "{FILE} written"),
                Ok(false) => {}
                Err(error) => found.push(format!(
                    "{FILE} cannot be written to {}: {error}; is --cni-conf-dir mounted?",
                    self.folder.display()
                )),
            }
            if news::tell(&complaints, found) {
                let found = complaints.borrow();
                found.iter().for_each(|problem| warn!("{problem}"));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Writes the list, when it is not there as it should be.
    pub(crate) fn write(&self) -> io::Result<bool> {
        let text = format!("{:#}\n", self.list());
        let path = self.folder.join(FILE);
        if fs::read_to_string(&path).is_ok_and(|there| there == text) {
            return Ok(false);
        }
        fs::create_dir_all(&self.folder)?;
        // Not *.conflist: a runtime that looks now must not see half of it.
        let fresh = self.folder.join(format!(".{FILE}.new"));
        let mut file = fs::File::create(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(fresh, path)?;
        Ok(true)
    }

    /// What keeps the list from having its effect.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(first) = self.winner() {
            problems.push(format!(
                "{} in {} comes before {FILE}, so pods are wired by another CNI plugin; remove it",
                first,
                self.folder.display()
            ));
        }
        if !self.has("espalier-cni") {
            problems.push(format!(
                "there is no espalier-cni in {}; `espalier install-cni --to {}` puts it there",
                self.binaries.display(),
                self.binaries.display()
            ));
        }
        problems
    }

    fn winner(&self) -> Option<String> {
        let entries = fs::read_dir(&self.folder).ok()?.flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names
            .filter(|name| counts(name) && name.as_str() < FILE)
            .min()
    }

    fn list(&self) -> Value {
        let mut plugins = vec![json!({
            "type": "espalier-cni",
            "socket": self.run_dir.join("agent.sock"),
            "stateDir": self.state_dir,
        })];
        for (binary, capability) in [("portmap", "portMappings"), ("bandwidth", "bandwidth")] {
            if self.has(binary) {
                plugins.push(json!({"type": binary, "capabilities": {capability: true}}));
            }
        }
        json!({"cniVersion": CNI_VERSION, "name": "espalier", "plugins": plugins})
    }

    fn has(&self, binary: &str) -> bool {
        self.binaries.join(binary).is_file()
    }
}

/// As libcni chooses.
fn counts(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|e| e.to_str());
    matches!(extension, Some("conf" | "conflist" | "json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_chains_what_there_is_and_names_who_comes_before() {
        let host = tempfile::tempdir().unwrap();
        let conf = CniConf {
            folder: host.path().join("net.d"),
            binaries: host.path().join("bin"),
            run_dir: "/run/espalier".into(),
            state_dir: "/var/lib/espalier".into(),
        };
        fs::create_dir(&conf.binaries).unwrap();
        for binary in ["espalier-cni", "portmap"] {
            fs::write(conf.binaries.join(binary), "").unwrap();
        }
        assert!(conf.write().unwrap());
        assert!(!conf.write().unwrap());
        let text = fs::read_to_string(conf.folder.join(FILE)).unwrap();
        let list: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(list["plugins"].as_array().unwrap().len(), 2);
        assert_eq!(list["plugins"][1]["capabilities"]["portMappings"], true);
        assert_eq!(fs::read_dir(&conf.folder).unwrap().count(), 1);
        for other in ["10-other.conflist", "00-note.txt"] {
            fs::write(conf.folder.join(other), "").unwrap();
        }
        assert_eq!(conf.problems(), [""; 0]);
        fs::write(conf.folder.join("00-other.conf"), "").unwrap();
        let problems = conf.problems();
        assert!(problems[0].contains("00-other.conf"), "{problems:?}");
    }
}
