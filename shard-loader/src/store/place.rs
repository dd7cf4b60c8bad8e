//! From a location to a store and a key: absolute paths, `s3://`, `gs://`, `az://`, `http(s)://`.
//!
//! Credentials and endpoints come from the usual environment (`AWS_*`, `GOOGLE_*`, `AZURE_*`) and are never printed.

use crate::error::DataError;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{ClientConfigKey, ClientOptions, ObjectStore, RetryConfig};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Longest life of one request. Ours end earlier by stall detection; object_store's own default of 30 s would cut every
/// large read on a slow line.
const REQUEST_TIMEOUT: &str = "600s";

/// Where a location lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Scheme and authority (`s3://bucket`); empty for files.
    pub(super) root: String,
    /// Key within it.
    pub(super) key: Key,
}

impl Place {
    /// Whether it is a file of this machine.
    pub(super) fn is_file(&self) -> bool {
        self.root.is_empty()
    }
}

/// Whether a location names an object store rather than a file.
pub(crate) fn is_url(location: &str) -> bool {
    location.contains("://")
}

/// Splits a location.
pub(super) fn place(location: &str) -> Result<Place, DataError> {
    let wrong = |why: String| DataError::Config(format!("{location}: {why}"));
    let Some((scheme, rest)) = location.split_once("://") else {
        let key = Key::from_absolute_path(Path::new(location)).map_err(|e| wrong(e.to_string()))?;
        let root = String::new();
        return Ok(Place { root, key });
    };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if authority.is_empty() {
        return Err(wrong(format!("names no bucket or host after {scheme}://")));
    }
    if authority.contains('@') && matches!(scheme, "http" | "https" | "s3" | "s3a" | "gs") {
        // Such names end up in logs and in the index.
        let host = authority.rsplit('@').next().unwrap_or_default();
        return Err(DataError::Config(format!(
            "{scheme}://...@{host}: a user or password in an address is not accepted; use the environment"
        )));
    }
    let key = match scheme {
        "http" | "https" if path.contains(['?', '#']) => {
            let host = format!("{scheme}://{authority}");
            return Err(DataError::Config(format!(
                "an address at {host} has a query or fragment; presigned addresses are not accepted, use s3://, gs:// or az://"
            )));
        }
        "http" | "https" => Key::from_url_path(path).map_err(|e| wrong(e.to_string()))?,
        "s3" | "s3a" | "gs" | "az" | "azure" | "adl" | "abfs" | "abfss" => {
            Key::parse(path.trim_end_matches('/')).map_err(|e| wrong(e.to_string()))?
        }
        other => {
            return Err(wrong(format!(
                "`{other}://` is not a store; known are s3, gs, az, abfs, abfss, http, https and plain paths"
            )));
        }
    };
    let root = format!("{scheme}://{authority}");
    Ok(Place { root, key })
}

/// The client of a root, for reading shards.
pub(super) fn open(root: &str) -> Result<Arc<dyn ObjectStore>, DataError> {
    // Retrying is ours: it knows the failed byte, the budget and the clock of the tests.
    let retry = RetryConfig {
        max_retries: 0,
        retry_timeout: Duration::from_secs(60),
        ..RetryConfig::default()
    };
    open_with(root, retry)
}

/// The client and the key of a URL, for checkpoints: whole objects, for which the client's own retries do, within a time
/// after which another attempt is the better one.
pub(crate) fn open_at(location: &str) -> Result<(Arc<dyn ObjectStore>, Key), DataError> {
    let place = place(location)?;
    let retry = RetryConfig {
        max_retries: 4,
        retry_timeout: Duration::from_secs(30),
        ..RetryConfig::default()
    };
    Ok((open_with(&place.root, retry)?, place.key))
}

fn open_with(root: &str, retry: RetryConfig) -> Result<Arc<dyn ObjectStore>, DataError> {
    // Only the first choice of a process counts, and every one of ours is this one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = ClientConfigKey::Timeout;
    let opened: object_store::Result<Arc<dyn ObjectStore>> = match root.split("://").next().unwrap_or_default() {
        "" => Ok(Arc::new(LocalFileSystem::new())),
        "s3" | "s3a" => AmazonS3Builder::from_env()
            .with_url(root)
            .with_config(AmazonS3ConfigKey::Client(client), REQUEST_TIMEOUT)
            .with_retry(retry)
            .build()
            .map(|s| Arc::new(s) as _),
        "gs" => GoogleCloudStorageBuilder::from_env()
            .with_url(root)
            .with_config(GoogleConfigKey::Client(client), REQUEST_TIMEOUT)
            .with_retry(retry)
            .build()
            .map(|s| Arc::new(s) as _),
        "http" | "https" => HttpBuilder::new()
            .with_url(root)
            .with_client_options(
                // What is typed as http:// is meant as http://.
                ClientOptions::new()
                    .with_allow_http(root.starts_with("http://"))
                    .with_timeout(Duration::from_secs(600)),
            )
            .with_retry(retry)
            .build()
            .map(|s| Arc::new(s) as _),
        _ => MicrosoftAzureBuilder::from_env()
            .with_url(root)
            .with_config(AzureConfigKey::Client(client), REQUEST_TIMEOUT)
            .with_retry(retry)
            .build()
            .map(|s| Arc::new(s) as _),
    };
    opened.map_err(|e| DataError::Config(format!("{root}: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn place_of_every_kind_of_location_is_split() {
        let split = |location: &str| place(location).map(|p| (p.root, p.key.to_string()));
        let good = [
            ("/data/0.tar", "", "data/0.tar"),
            ("s3://bucket/a/0.tar", "s3://bucket", "a/0.tar"),
            ("gs://bucket/a%20b/0.tar", "gs://bucket", "a%20b/0.tar"),
            (
                "abfss://files@account.dfs.core.windows.net/0.tar",
                "abfss://files@account.dfs.core.windows.net",
                "0.tar",
            ),
            ("https://host:8080/a%20b/0.tar", "https://host:8080", "a b/0.tar"),
        ];
        for (location, root, key) in good {
            assert_eq!(split(location).expect(location), (root.to_owned(), key.to_owned()));
        }
        for bad in [
            "ftp://host/0.tar",
            "s3:///0.tar",
            "https://h/0.tar?sig=secret",
            "https://me:secret@h/0.tar",
        ] {
            let text = place(bad).expect_err(bad).to_string();
            assert!(!text.contains("secret"), "{text}");
        }
    }

    #[test]
    fn client_of_every_kind_of_store_is_made() {
        // Azure's client wants an account, which here stands in the address.
        for root in [
            "",
            "s3://bucket",
            "http://127.0.0.1:1",
            "https://host",
            "abfss://files@account.dfs.core.windows.net",
        ] {
            open(root).expect(root);
        }
    }
}
