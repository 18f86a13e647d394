//! The programs of a Kubernetes release, and what differs between releases.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A folder of programs of one release.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    folder: PathBuf,
    /// 36 of 1.36.
    minor: u32,
}

impl Programs {
    /// Asks kubelet which release it is.
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        let kubelet = folder.join("kubelet");
        let shown = kubelet.display();
        let output = Command::new(&kubelet).arg("--version").output();
        let output = output.with_context(|| format!("running {shown} --version"))?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success(),
            "{shown} --version: {}",
            output.status
        );
        let minor = minor(&said);
        let minor = minor.with_context(|| {
            format!("{shown} --version: expected `Kubernetes v1.MINOR.PATCH`, got {said:?}")
        })?;
        let folder = folder.to_owned();
        Ok(Self { folder, minor })
    }

    pub(crate) fn path(&self, program: &str) -> PathBuf {
        self.folder.join(program)
    }

    /// kubelet must be told that containerd is another process; since 1.27 nothing else is possible, and the flag is gone.
    pub(crate) fn names_its_runtime(&self) -> bool {
        self.minor < 27
    }

    /// kubelet refuses a machine with the first version of control groups, unless its configuration says otherwise (1.31, and by
    /// default since 1.35).
    pub(crate) fn may_refuse_cgroup_v1(&self) -> bool {
        self.minor >= 31
    }
}

/// What kube-proxy writes Services' rules with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ProxyMode {
    /// Every release has it.
    Iptables,
    /// Since 1.29 (in earnest since 1.33).
    Nftables,
}

impl ProxyMode {
    /// As kube-proxy calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        }
    }
}

fn minor(said: &str) -> Option<u32> {
    let version = said.trim().strip_prefix("Kubernetes v1.")?;
    version.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubelets_release_is_read_from_what_it_says() {
        assert_eq!(minor("Kubernetes v1.20.2\n"), Some(20));
        assert_eq!(minor("Kubernetes v1.36.4+k3s1"), Some(36));
        assert_eq!(minor("Kubernetes v2.0.0"), None);
        assert_eq!(minor(""), None);
    }

    #[test]
    fn a_folder_without_kubelet_is_named() {
        let error = Programs::new(Path::new("/nowhere")).unwrap_err();
        assert!(
            format!("{error:#}").contains("/nowhere/kubelet"),
            "{error:#}"
        );
    }
}
