//! `ListObjectsV2` and the little XML that S3 speaks.

use crate::objects::Objects;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// When everything was last changed: etags tell contents apart here, never times.
const MODIFIED: &str = "2024-01-01T00:00:00.000Z";

/// The answer to a list request of `bucket` with the query's pairs; pages hold at most `page_keys` keys.
pub(crate) fn page(
    objects: &Objects,
    bucket: &str,
    query: &BTreeMap<String, String>,
    page_keys: usize,
    reversed: bool,
    twice: bool,
) -> String {
    let get = |name: &str| query.get(name).map_or("", String::as_str);
    let (prefix, delimiter) = (get("prefix"), get("delimiter"));
    let after = [get("continuation-token"), get("start-after")]
        .into_iter()
        .max()
        .unwrap_or("");
    let most = get("max-keys").parse().unwrap_or(1000).min(page_keys).max(1);
    let root = format!("{bucket}/");
    let mut keys = Vec::new();
    let mut folders = BTreeSet::new();
    let mut next = None;
    for (path, object) in objects.stored.range(format!("{root}{prefix}")..) {
        let Some(key) = path.strip_prefix(&root).filter(|k| k.starts_with(prefix)) else {
            break;
        };
        if key <= after {
            continue;
        }
        if keys.len() + folders.len() >= most {
            next = keys.last().map(|(k, _): &(String, _)| k.clone());
            break;
        }
        match key[prefix.len()..].find(delimiter).filter(|_| !delimiter.is_empty()) {
            Some(at) => {
                folders.insert(key[..prefix.len() + at + delimiter.len()].to_owned());
            }
            None => keys.push((key.to_owned(), object)),
        }
    }
    if twice {
        keys.extend(keys.clone().into_iter().rev());
    }
    if reversed {
        keys.reverse();
    }
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?><ListBucketResult>");
    let _ = write!(
        xml,
        "<Name>{bucket}</Name><IsTruncated>{}</IsTruncated>",
        next.is_some()
    );
    if let Some(token) = next {
        let _ = write!(xml, "<NextContinuationToken>{}</NextContinuationToken>", escape(&token));
    }
    for (key, object) in &keys {
        let _ = write!(
            xml,
            "<Contents><Key>{}</Key><LastModified>{MODIFIED}</LastModified><ETag>{}</ETag><Size>{}</Size></Contents>",
            escape(key),
            escape(&object.etag),
            object.bytes.len()
        );
    }
    for folder in &folders {
        let _ = write!(
            xml,
            "<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>",
            escape(folder)
        );
    }
    xml.push_str("</ListBucketResult>");
    xml
}

/// An error in S3's form.
pub(crate) fn error(status: u16) -> String {
    let code = match status {
        400 => "ExpiredToken",
        403 => "AccessDenied",
        404 => "NoSuchKey",
        412 => "PreconditionFailed",
        416 => "InvalidRange",
        429 => "TooManyRequests",
        503 => "SlowDown",
        _ => "InternalError",
    };
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>planned or refused</Message></Error>"
    )
}

/// The texts between every `<tag>` and its end.
pub(crate) fn texts(xml: &str, tag: &str) -> Vec<String> {
    let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
    let mut found = Vec::new();
    let mut rest = xml;
    while let Some((_, tail)) = rest.split_once(&open) {
        let Some((text, tail)) = tail.split_once(&close) else {
            break;
        };
        found.push(unescape(text));
        rest = tail;
    }
    found
}

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

fn unescape(text: &str) -> String {
    text.replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&apos;", "'")
        .replace("&amp;", "&")
}
