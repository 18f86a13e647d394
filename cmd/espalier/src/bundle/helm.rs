//! The values that Helm was given. Helm keeps them in a Secret, with all else of a release.

use std::io::Read as _;

use anyhow::{Context as _, Result};
use flate2::read::GzDecoder;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ListParams};
use serde_json::{Value, json};

use super::scrub::clean_values;
use crate::cluster::{Cluster, explain};

/// A release's objects are at most 1 MiB packed.
const MAX: u64 = 64 << 20;

/// Of the newest release in the namespace.
///
/// # Errors
/// The Secret cannot be read, or is not as Helm 3 and 4 write it.
pub(super) async fn values(cluster: &Cluster) -> Result<String> {
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let params = ListParams::default().labels("owner=helm,status=deployed");
    let list = secrets.list(&params).await;
    let list = list.map_err(|error| explain("list secrets", error))?;
    let releases = list
        .items
        .into_iter()
        .filter_map(|secret| secret.data?.remove("release"));
    let mut found: Vec<Value> = Vec::new();
    for release in releases {
        let release = unpack(release)?;
        if release["chart"]["metadata"]["name"] == "espalier" {
            found.push(told(release));
        }
    }
    Ok(serde_json::to_string_pretty(&found)?)
}

/// base64 of gzip of JSON.
fn unpack(release: ByteString) -> Result<Value> {
    let text = String::from_utf8(release.0).context("a release that is no text")?;
    let packed: ByteString =
        serde_json::from_value(Value::String(text)).context("a release that is not base64")?;
    let mut json = String::new();
    GzDecoder::new(packed.0.as_slice())
        .take(MAX)
        .read_to_string(&mut json)
        .context("a release that is not gzip")?;
    serde_json::from_str(&json).context("a release that is not JSON")
}

fn told(mut release: Value) -> Value {
    let mut values = release["config"].take();
    clean_values(&mut values);
    json!({
        "name": release["name"], "revision": release["version"],
        "chart": release["chart"]["metadata"]["version"], "values": values,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    /// As Helm writes it.
    pub(crate) fn packed(release: &Value) -> ByteString {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(release.to_string().as_bytes()).unwrap();
        let text = serde_json::to_value(ByteString(gzip.finish().unwrap())).unwrap();
        ByteString(text.as_str().unwrap().as_bytes().to_vec())
    }

    #[test]
    fn values_are_told_and_nothing_else_of_the_release() {
        let release = json!({
            "name": "espalier", "version": 3, "manifest": "SECRET",
            "chart": {"metadata": {"name": "espalier", "version": "0.1.0"}, "templates": ["SECRET"]},
            "config": {"logLevel": "debug", "apiToken": "SECRET"},
        });
        let told = told(unpack(packed(&release)).unwrap()).to_string();
        assert!(
            told.contains("\"logLevel\":\"debug\"") && told.contains("\"revision\":3"),
            "{told}"
        );
        assert!(!told.contains("SECRET"), "{told}");
    }
}
