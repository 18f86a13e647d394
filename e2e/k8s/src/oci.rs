//! Small container images, as OCI archives that containerd imports: one layer, nothing compressed.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const BLOCK: usize = 512;
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// What is in an image.
pub(crate) struct Image<'a> {
    /// Its name and tag.
    pub(crate) reference: &'a str,
    /// Runs when the container names no command.
    pub(crate) entrypoint: &'a [&'a str],
    /// Path in the image, without `/` in front, and contents; all of them programs.
    pub(crate) files: &'a [(&'a str, &'a [u8])],
}

impl Image<'_> {
    /// Writes the archive.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let mut archive = Tar::default();
        for (name, bytes) in self.members()? {
            archive.file(&name, &bytes)?;
        }
        fs::write(path, archive.end()).with_context(|| format!("writing {}", path.display()))
    }

    fn members(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let layer = self.layer()?;
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {"Entrypoint": self.entrypoint, "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
        });
        let manifest = manifest.to_string().into_bytes();
        let mut entry = descriptor(MANIFEST, &manifest);
        entry["platform"] = json!({"architecture": architecture(), "os": "linux"});
        entry["annotations"] = json!({"io.containerd.image.name": self.reference});
        let index = json!({"schemaVersion": 2, "manifests": [entry]});
        let mut members = vec![
            (
                "oci-layout".to_owned(),
                br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
            ),
            ("index.json".to_owned(), index.to_string().into_bytes()),
        ];
        let blobs = [config, layer, manifest];
        members.extend(blobs.map(|blob| (format!("blobs/sha256/{}", hash(&blob)), blob)));
        Ok(members)
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut layer = Tar::default();
        for folder in ["bin/", "etc/", "tmp/", "proc/", "sys/", "dev/"] {
            layer.folder(folder)?;
        }
        for (name, bytes) in self.files {
            layer.file(name, bytes)?;
        }
        Ok(layer.end())
    }
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    }
}

fn descriptor(kind: &str, blob: &[u8]) -> Value {
    json!({"mediaType": kind, "digest": digest(blob), "size": blob.len()})
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hash(bytes))
}

fn hash(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// The format of POSIX.1-1988 (ustar), as far as it is needed.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn folder(&mut self, name: &str) -> Result<()> {
        self.header(name, 0, b'5')
    }

    fn file(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.header(name, bytes.len(), b'0')?;
        self.0.extend_from_slice(bytes);
        let padded = self.0.len().next_multiple_of(BLOCK);
        self.0.resize(padded, 0);
        Ok(())
    }

    fn header(&mut self, name: &str, size: usize, kind: u8) -> Result<()> {
        let mut header = [0_u8; BLOCK];
        let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
        anyhow::ensure!(name.len() < 100, "{name} is too long for an archive");
        put(0, name.as_bytes());
        put(100, b"0000755\x000000000\x000000000\0");
        put(124, format!("{size:011o}\0").as_bytes());
        put(136, b"00000000000\0        ");
        put(156, &[kind]);
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&header);
        Ok(())
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_what_tar_writes() {
        let mut tar = Tar::default();
        tar.file("bin/x", b"hello").unwrap();
        let bytes = tar.end();
        assert_eq!(bytes.len(), 4 * BLOCK);
        let sum: u32 = bytes[..BLOCK]
            .iter()
            .enumerate()
            .map(|(at, byte)| match at {
                148..156 => 32,
                _ => u32::from(*byte),
            })
            .sum();
        assert_eq!(&bytes[148..154], format!("{sum:06o}").as_bytes());
        assert_eq!(&bytes[124..135], b"00000000005");
        assert_eq!(&bytes[BLOCK..BLOCK + 5], b"hello");
    }

    #[test]
    fn every_blob_is_named_after_its_hash() {
        let image = Image {
            reference: "espalier.dev/x:1",
            entrypoint: &["/bin/x"],
            files: &[("bin/x", b"x")],
        };
        let members = image.members().unwrap();
        assert_eq!(members.len(), 5);
        for (name, bytes) in &members[2..] {
            assert_eq!(*name, format!("blobs/sha256/{}", hash(bytes)));
        }
    }
}
