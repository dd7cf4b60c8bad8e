//! The words of Azure's blobs, as far as `object_store` needs them to read, list and write: Get and Get Properties, Put Blob
//! with conditions, Put Block and Put Block List, List Blobs by page.
//!
//! As there, lists give etags without the quotes that everything else has. Signatures are not checked beyond their account.

use crate::faults::{Fault, Met, Op};
use crate::listing::{self, escape};
use crate::objects::{Conditions, Objects};
use crate::s3::no_retry;
use crate::server::{Asked, Body, MODIFIED, Shared, full, status, xml};
use bytes::Bytes;
use hyper::{Method, Response};
use object_store::ObjectStore;
use object_store::azure::MicrosoftAzureBuilder;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::Arc;

const ACCOUNT: &str = "testaccount";
/// Base64 of a key that a test can search logs for.
const KEY: &str = "Y2FuYXJ5LXNlY3JldC03ZjNhOTFjMg==";

pub(crate) fn environment(endpoint: &str) -> Vec<(&'static str, String)> {
    vec![
        ("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT.into()),
        ("AZURE_STORAGE_ACCOUNT_KEY", KEY.into()),
        ("AZURE_STORAGE_ENDPOINT", endpoint.into()),
        ("AZURE_ALLOW_HTTP", "true".into()),
    ]
}

pub(crate) fn client(endpoint: &str, container: &str) -> object_store::Result<Arc<dyn ObjectStore>> {
    let client = MicrosoftAzureBuilder::new()
        .with_account(ACCOUNT)
        .with_access_key(KEY)
        .with_endpoint(endpoint.to_owned())
        .with_allow_http(true)
        .with_container_name(container)
        .with_retry(no_retry())
        .build()?;
    Ok(Arc::new(client))
}

pub(crate) fn op(asked: &Asked) -> Op {
    let whole_container = !asked.path.contains('/');
    match asked.method {
        Method::GET if whole_container => Op::List,
        Method::GET => Op::Get,
        Method::HEAD => Op::Head,
        Method::PUT if asked.has("comp") => Op::Multipart,
        Method::PUT if asked.header("x-ms-copy-source").is_some() => Op::Copy,
        Method::PUT => Op::Put,
        _ => Op::Delete,
    }
}

pub(crate) fn allowed(asked: &Asked) -> bool {
    let signed = format!("SharedKey {ACCOUNT}:");
    asked.header("authorization").is_some_and(|by| by.starts_with(&signed))
}

pub(crate) fn carry_out(shared: &Shared, objects: &mut Objects, op: Op, asked: &Asked, met: &Met) -> Response<Body> {
    let conditions = Conditions {
        if_match: asked.header("if-match").map(str::to_owned),
        create_only: asked.header("if-none-match") == Some("*"),
        generation: None,
    };
    let done = match op {
        Op::List => return xml(200, page(objects, asked, shared.page_keys, met)),
        Op::Put if asked.header("x-ms-blob-type") != Some("BlockBlob") => Err(400),
        Op::Put => objects.put(&asked.path, asked.body.clone(), &conditions),
        Op::Multipart => match (asked.query["comp"].as_str(), asked.query.get("blockid")) {
            ("block", Some(id)) => {
                objects.block(&asked.path, id, asked.body.clone());
                Ok(String::new())
            }
            ("blocklist", _) => {
                let ids = listing::texts(&String::from_utf8_lossy(&asked.body), "Uncommitted");
                objects.join(&asked.path, &ids, &conditions)
            }
            _ => Err(400),
        },
        _ => Err(501),
    };
    match done {
        Ok(etag) => Response::builder()
            .status(201)
            .header("etag", etag)
            .header("last-modified", MODIFIED)
            .body(full(Bytes::new()))
            .unwrap_or_else(|_| status(500)),
        // What is there already is a conflict here, not a condition that fails.
        Err(412) if conditions.create_only => status(409),
        Err(code) => status(code),
    }
}

/// The answer to List Blobs.
fn page(objects: &Objects, asked: &Asked, page_keys: usize, met: &Met) -> String {
    let get = |name: &str| asked.query.get(name).map_or("", String::as_str);
    let (prefix, delimiter, marker) = (get("prefix"), get("delimiter"), get("marker"));
    let most = get("maxresults").parse().unwrap_or(5000).min(page_keys).max(1);
    let root = format!("{}/", asked.path);
    let (mut blobs, mut folders, mut next) = (Vec::new(), BTreeSet::new(), String::new());
    for (path, object) in objects.stored.range(format!("{root}{prefix}")..) {
        let Some(key) = path.strip_prefix(&root).filter(|k| k.starts_with(prefix)) else {
            break;
        };
        // A marker is where the next page begins.
        if key < marker {
            continue;
        }
        if blobs.len() + folders.len() >= most {
            key.clone_into(&mut next);
            break;
        }
        match key[prefix.len()..].find(delimiter).filter(|_| !delimiter.is_empty()) {
            Some(at) => {
                folders.insert(key[..prefix.len() + at + delimiter.len()].to_owned());
            }
            None => blobs.push((key, object)),
        }
    }
    match met.fault {
        Some(Fault::ListedTwice) => blobs.extend(blobs.clone().into_iter().rev()),
        Some(Fault::ListedReversed) => blobs.reverse(),
        _ => {}
    }
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"utf-8\"?><EnumerationResults><Blobs>");
    for (key, object) in blobs {
        let _ = write!(
            xml,
            "<Blob><Name>{}</Name><Properties><Last-Modified>{MODIFIED}</Last-Modified><Etag>{}</Etag>\
             <Content-Length>{}</Content-Length><Content-Type>application/octet-stream</Content-Type></Properties></Blob>",
            escape(key),
            object.etag.trim_matches('"'),
            object.bytes.len()
        );
    }
    for folder in folders {
        let _ = write!(xml, "<BlobPrefix><Name>{}</Name></BlobPrefix>", escape(&folder));
    }
    let _ = write!(
        xml,
        "</Blobs><NextMarker>{}</NextMarker></EnumerationResults>",
        escape(&next)
    );
    xml
}
