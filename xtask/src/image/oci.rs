//! One container image in a file: an OCI image layout in a tar archive, with one layer.
//!
//! Called by `image` for our own programs and by `cluster` for the test bed's and the test apps'. It must never depend on the time or on
//! the machine: the same content is the same file.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::tar::Archive;
use crate::digest::sha256;

/// What an image says of itself beside its files.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// The whole reference: `localhost/countersign-proxy:0.1.0`.
    pub name: String,
    /// The program that is run, with its first arguments.
    pub entrypoint: Vec<String>,
    /// The user (and group) it runs as where the pod names none: numbers, as an image without /etc/passwd has no names.
    pub user: String,
    /// Labels.
    pub labels: Vec<(String, String)>,
}

/// Writes an image to a file, whole or not at all.
pub fn write(image: &Image, layer: Archive, to: &Path) -> Result<()> {
    let bytes = layout(image, layer)?;
    let folder = to.parent().context("an image's file has a folder")?;
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let part = to.with_extension("part");
    std::fs::write(&part, bytes).with_context(|| format!("writing {}", part.display()))?;
    std::fs::rename(&part, to).with_context(|| format!("writing {}", to.display()))
}

fn layout(image: &Image, layer: Archive) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    let mut blob = |content: &[u8], kind: &str| -> Result<Value> {
        let digest = sha256(content)?;
        archive.file(&format!("blobs/sha256/{digest}"), 0o644, content)?;
        let kind = format!("application/vnd.oci.image.{kind}");
        Ok(json!({ "mediaType": kind, "digest": format!("sha256:{digest}"), "size": content.len() }))
    };
    let layer = blob(&layer.finish(), "layer.v1.tar")?;
    let config = blob(config(image, &layer["digest"]).to_string().as_bytes(), "config.v1+json")?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": [layer],
    });
    let mut manifest = blob(manifest.to_string().as_bytes(), "manifest.v1+json")?;
    let tag = image.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    manifest["annotations"] =
        json!({ "io.containerd.image.name": image.name, "org.opencontainers.image.ref.name": tag });
    archive.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [manifest],
    });
    archive.file("index.json", 0o644, index.to_string().as_bytes())?;
    Ok(archive.finish())
}

fn config(image: &Image, layer: &Value) -> Value {
    let labels: serde_json::Map<_, _> =
        image.labels.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect();
    let mut run = json!({
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "Entrypoint": image.entrypoint,
        "Labels": labels,
    });
    if !image.user.is_empty() {
        run["User"] = Value::from(image.user.as_str());
    }
    json!({
        "architecture": architecture(),
        "os": "linux",
        "config": run,
        "rootfs": { "type": "layers", "diff_ids": [layer] },
    })
}

/// As Go, and so OCI, calls it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn bytes() -> Vec<u8> {
        let image = Image {
            name: "localhost/x:2".to_owned(),
            entrypoint: vec!["/x".to_owned()],
            user: "65532:65532".to_owned(),
            labels: vec![("a".to_owned(), "b".to_owned())],
        };
        let mut layer = Archive::default();
        layer.file("x", 0o755, b"program").unwrap();
        layout(&image, layer).unwrap()
    }

    #[test]
    fn the_same_content_is_the_same_file() {
        assert_eq!(bytes(), bytes());
    }

    #[test]
    fn every_digest_that_is_named_is_there_and_is_the_contents() {
        let dir = crate::programs::scratch("countersign-oci-test").unwrap();
        std::fs::write(dir.join("image.tar"), bytes()).unwrap();
        let untar = std::process::Command::new("tar").args(["-xf", "image.tar"]).current_dir(&dir).status().unwrap();
        assert!(untar.success());
        let read = |path: &str| std::fs::read(dir.join(path)).unwrap();
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
            let content = read(&format!("blobs/sha256/{digest}"));
            assert_eq!(sha256(&content).unwrap(), digest);
            assert_eq!(descriptor["size"], content.len());
            content
        };
        let index: Value = serde_json::from_slice(&read("index.json")).unwrap();
        let manifest: Value = serde_json::from_slice(&blob(&index["manifests"][0])).unwrap();
        let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
        blob(&manifest["layers"][0]);
        assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
        assert_eq!(config["config"]["Entrypoint"], json!(["/x"]));
        assert_eq!(config["config"]["User"], "65532:65532");
        assert_eq!(index["manifests"][0]["annotations"]["io.containerd.image.name"], "localhost/x:2");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
