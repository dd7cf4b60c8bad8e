//! Compute Engine: `instance/preempted`, whose answer the service holds back until it changes.

use super::{Metadata, Notice, Trouble};
use reqwest::StatusCode;
use std::time::Duration;

pub(super) const URL: &str = "http://metadata.google.internal";
const PATH: &str = "/computeMetadata/v1/instance/preempted";
const FLAVOR: (&str, &str) = ("metadata-flavor", "Google");
/// The service answers after so long though nothing has changed.
const HOLD_S: u32 = 60;
const WITHIN: Duration = Duration::from_secs(HOLD_S as u64 + 10);
/// Of the half minute between the notice and the end.
const GRACE: Duration = Duration::from_secs(25);

#[derive(Debug)]
pub(super) struct Gcp {
    metadata: Metadata,
    etag: Option<String>,
}

impl Gcp {
    pub(super) fn new(metadata: Metadata) -> Self {
        Self { metadata, etag: None }
    }

    pub(super) async fn poll(&mut self) -> Result<Option<Notice>, Trouble> {
        // Without the mark of a known answer the first change might have come before the first question.
        let path = match self.etag.take() {
            Some(etag) if etag.chars().all(|c| c.is_ascii_alphanumeric()) => {
                format!("{PATH}?wait_for_change=true&timeout_sec={HOLD_S}&last_etag={etag}")
            }
            _ => PATH.to_owned(),
        };
        let answer = self.metadata.get(&path, FLAVOR, WITHIN).await?;
        if answer.status != StatusCode::OK || answer.flavor.as_deref() != Some(FLAVOR.1) {
            return Err(answer.unexpected("preempted"));
        }
        let announced = match answer.body.trim() {
            "TRUE" => true,
            "FALSE" => false,
            _ => return Err(answer.unexpected("preempted")),
        };
        self.etag = answer.etag;
        Ok(announced.then(|| Notice {
            grace: GRACE,
            reason: "Compute Engine preempts this instance".into(),
        }))
    }
}
