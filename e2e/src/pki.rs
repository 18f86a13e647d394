//! Certificates and PSKs, made by `espalier pki` as an admin makes them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// A CA with its folder.
#[derive(Clone, Debug)]
pub struct Pki {
    program: PathBuf,
    folder: PathBuf,
}

impl Pki {
    /// Makes a CA in `folder` by the program in `bin`.
    ///
    /// # Errors
    /// `espalier pki init` fails.
    pub fn new(bin: &Path, folder: &Path) -> Result<Self> {
        let pki = Self {
            program: bin.join("espalier"),
            folder: folder.to_owned(),
        };
        pki.run(&["init", "--dir", &pki.folder.to_string_lossy()])?;
        Ok(pki)
    }

    /// Issues a node's certificate; `more` are further flags, such as `--expired`.
    ///
    /// # Errors
    /// `espalier pki issue` fails.
    pub fn issue(&self, node: &str, uid: &str, more: &[&str]) -> Result<()> {
        let folder = self.folder.to_string_lossy();
        let own = ["issue", "--dir", &folder, "--node", node, "--uid", uid];
        self.run(&[&own, more].concat())
    }

    /// Makes a PSK in a new file.
    ///
    /// # Errors
    /// `espalier pki psk` fails.
    pub fn psk(&self, file: &Path) -> Result<()> {
        self.run(&["psk", "--out", &file.to_string_lossy()])
    }

    /// A file of the folder: `ca.crt`, `node-1.key` ...
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn run(&self, args: &[&str]) -> Result<()> {
        let mut command = Command::new(&self.program);
        let output = command.arg("pki").args(args).output();
        let output = output.with_context(|| format!("starting {}", self.program.display()))?;
        if !output.status.success() {
            bail!(
                "espalier pki {}: {}",
                args.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }
}
