//! The words of S3, and of Google's XML interface, which are nearly the same.
//!
//! Knows what `object_store` and boto ask for: GET and HEAD with ranges and If-Match, PUT with If-Match and
//! `If-None-Match: *` (Google: by generation), uploads in parts, lists by page, copies, single and bulk deletes. Path style
//! only. Plain GETs of S3 need no signature, so it serves `http://` addresses too; signatures are not checked beyond their
//! access key.

use crate::faults::{Fault, Met, Op};
use crate::listing;
use crate::objects::{Conditions, Objects};
use crate::server::{Asked, Body, Kind, Shared, full, status, xml};
use bytes::Bytes;
use hyper::{Method, Response};
use object_store::aws::AmazonS3Builder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::{ObjectStore, RetryConfig};
use percent_encoding::percent_decode_str;
use std::sync::Arc;

/// The access key that the double knows.
const ACCESS_KEY: &str = "TESTACCESSKEY";
/// Its secret, long and odd so that a test can search logs for it.
const SECRET_KEY: &str = "canary-secret-7f3a91c2";

pub(crate) fn environment(kind: Kind, endpoint: &str) -> Vec<(&'static str, String)> {
    if kind == Kind::Gcs {
        return vec![
            ("GOOGLE_BASE_URL", endpoint.into()),
            ("GOOGLE_BEARER_TOKEN", SECRET_KEY.into()),
        ];
    }
    vec![
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY.into()),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.into()),
        ("AWS_ENDPOINT_URL", endpoint.into()),
        ("AWS_ALLOW_HTTP", "true".into()),
        ("AWS_REGION", "us-east-1".into()),
    ]
}

pub(crate) fn no_retry() -> RetryConfig {
    RetryConfig {
        max_retries: 0,
        ..RetryConfig::default()
    }
}

pub(crate) fn client(kind: Kind, endpoint: &str, bucket: &str) -> object_store::Result<Arc<dyn ObjectStore>> {
    if kind == Kind::Gcs {
        let builder = GoogleCloudStorageBuilder::new()
            .with_base_url(endpoint)
            .with_bearer_token(SECRET_KEY)
            .with_bucket_name(bucket)
            .with_retry(no_retry());
        return Ok(Arc::new(builder.build()?));
    }
    let client = AmazonS3Builder::new()
        .with_endpoint(endpoint)
        .with_allow_http(true)
        .with_region("us-east-1")
        .with_bucket_name(bucket)
        .with_access_key_id(ACCESS_KEY)
        .with_secret_access_key(SECRET_KEY)
        .with_retry(no_retry())
        .build()?;
    Ok(Arc::new(client))
}

/// Where a copy comes from.
fn copied(asked: &Asked) -> Option<&str> {
    asked.header("x-amz-copy-source").or(asked.header("x-goog-copy-source"))
}

pub(crate) fn op(asked: &Asked) -> Op {
    let whole_bucket = !asked.path.contains('/');
    match asked.method {
        Method::GET if whole_bucket => Op::List,
        Method::GET => Op::Get,
        Method::HEAD => Op::Head,
        Method::DELETE if asked.has("uploadId") => Op::Multipart,
        Method::DELETE => Op::Delete,
        Method::POST if asked.has("delete") => Op::Delete,
        Method::POST => Op::Multipart,
        _ if asked.has("uploadId") => Op::Multipart,
        _ if copied(asked).is_some() => Op::Copy,
        _ => Op::Put,
    }
}

fn conditions(asked: &Asked) -> Conditions {
    let generation = asked.header("x-goog-if-generation-match");
    Conditions {
        if_match: asked.header("if-match").map(str::to_owned),
        // To Google, what is not there has the generation zero.
        create_only: asked.header("if-none-match") == Some("*") || generation == Some("0"),
        generation: generation.and_then(|g| g.parse().ok()).filter(|g| *g > 0),
    }
}

/// Reads of a key of S3 need no signature; what is signed must be by the key we know.
pub(crate) fn allowed(kind: Kind, asked: &Asked, op: Op) -> bool {
    match asked.header("authorization") {
        Some(bearer) if kind == Kind::Gcs => bearer == format!("Bearer {SECRET_KEY}"),
        Some(signature) => signature.contains(&format!("Credential={ACCESS_KEY}/")),
        None => kind == Kind::S3 && matches!(op, Op::Get | Op::Head),
    }
}

pub(crate) fn carry_out(shared: &Shared, objects: &mut Objects, op: Op, asked: &Asked, met: &Met) -> Response<Body> {
    match op {
        // Common to all stores, and done there.
        Op::Get | Op::Head => status(500),
        Op::List => {
            let reversed = met.fault == Some(Fault::ListedReversed);
            let twice = met.fault == Some(Fault::ListedTwice);
            let page = listing::page(objects, &asked.path, &asked.query, shared.page_keys, reversed, twice);
            xml(200, page)
        }
        Op::Put => written(objects.put(&asked.path, asked.body.clone(), &conditions(asked))),
        Op::Copy => {
            let from = copied(asked).unwrap_or_default();
            let from = percent_decode_str(from.trim_start_matches('/')).decode_utf8_lossy();
            let Some(object) = objects.stored.get(from.as_ref()).cloned() else {
                return status(404);
            };
            match objects.put(&asked.path, object.bytes, &conditions(asked)) {
                Ok(etag) => xml(200, result("CopyObjectResult", "ETag", &etag)),
                Err(code) => status(code),
            }
        }
        Op::Delete => {
            let text = String::from_utf8_lossy(&asked.body);
            let keys = match asked.method {
                Method::POST => listing::texts(&text, "Key"),
                _ => Vec::new(),
            };
            objects.stored.remove(&asked.path);
            for key in &keys {
                objects.stored.remove(&format!("{}/{key}", asked.path));
            }
            let deleted: String = keys
                .iter()
                .map(|k| format!("<Deleted><Key>{}</Key></Deleted>", listing::escape(k)))
                .collect();
            match asked.method {
                Method::POST => xml(200, format!("<DeleteResult>{deleted}</DeleteResult>")),
                _ => status(204),
            }
        }
        Op::Multipart => multipart(objects, asked),
    }
}

fn multipart(objects: &mut Objects, asked: &Asked) -> Response<Body> {
    let id = asked.query.get("uploadId").map_or("", String::as_str);
    match asked.method {
        Method::POST if asked.has("uploads") => {
            let id = objects.begin();
            xml(200, result("InitiateMultipartUploadResult", "UploadId", &id))
        }
        Method::POST => match objects.complete(id, &asked.path, &conditions(asked)) {
            Ok(etag) => xml(200, result("CompleteMultipartUploadResult", "ETag", &etag)),
            Err(code) => status(code),
        },
        Method::DELETE => {
            objects.abort(id);
            status(204)
        }
        _ => {
            let number = asked.query.get("partNumber").and_then(|n| n.parse().ok());
            let etag = number.and_then(|n| objects.part(id, n, asked.body.clone()));
            written(etag.ok_or(404))
        }
    }
}

fn written(done: Result<String, u16>) -> Response<Body> {
    match done {
        Ok(etag) => Response::builder()
            .status(200)
            .header("etag", etag)
            .body(full(Bytes::new()))
            .unwrap_or_else(|_| status(500)),
        Err(code) => status(code),
    }
}

fn result(name: &str, field: &str, value: &str) -> String {
    format!("<{name}><{field}>{}</{field}></{name}>", listing::escape(value))
}
