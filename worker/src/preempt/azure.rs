//! Azure: the document of scheduled events, which names the machines each is about.

use super::{Metadata, Notice, Trouble};
use reqwest::StatusCode;
use serde::Deserialize;
use std::time::Duration;

pub(super) const URL: &str = "http://169.254.169.254";
const EVENTS: &str = "/metadata/scheduledevents?api-version=2020-07-01";
const NAME: &str = "/metadata/instance/compute/name?api-version=2021-02-01&format=text";
const HEADER: (&str, &str) = ("metadata", "true");
/// The first question switches the service on, which takes up to two minutes.
const WITHIN: Duration = Duration::from_secs(130);

#[derive(Debug)]
pub(super) struct Azure {
    metadata: Metadata,
    /// This machine's name among the resources of an event.
    name: Option<String>,
}

#[derive(Deserialize)]
struct Document {
    #[serde(rename = "Events", default)]
    events: Vec<Scheduled>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Scheduled {
    event_type: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    not_before: String,
}

/// What is left of the least notice of such an event; `None` for those that a process survives (`Freeze`).
fn grace(event_type: &str) -> Option<Duration> {
    match event_type {
        "Preempt" => Some(Duration::from_secs(25)),
        "Terminate" => Some(Duration::from_secs(290)),
        "Reboot" | "Redeploy" => Some(Duration::from_secs(590)),
        _ => None,
    }
}

impl Azure {
    pub(super) fn new(metadata: Metadata) -> Self {
        Self { metadata, name: None }
    }

    pub(super) async fn poll(&mut self) -> Result<Option<Notice>, Trouble> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => self.ask_name().await?,
        };
        let answer = self.metadata.get(EVENTS, HEADER, WITHIN).await?;
        if answer.status != StatusCode::OK {
            return Err(answer.unexpected("scheduled events"));
        }
        let document: Document =
            serde_json::from_str(&answer.body).map_err(|_| answer.unexpected("scheduled events"))?;
        let ours = document
            .events
            .into_iter()
            .filter(|event| event.resources.contains(&name));
        let notices = ours.filter_map(|event| {
            let Scheduled {
                event_type, not_before, ..
            } = event;
            let at = if not_before.is_empty() { "now" } else { &not_before };
            Some(Notice {
                grace: grace(&event_type)?,
                reason: format!("Azure announces {event_type} of {name}, not before: {at}"),
            })
        });
        Ok(notices.min_by_key(|notice| notice.grace))
    }

    async fn ask_name(&mut self) -> Result<String, Trouble> {
        let answer = self.metadata.get(NAME, HEADER, WITHIN).await?;
        if answer.status != StatusCode::OK || answer.body.is_empty() {
            return Err(answer.unexpected("the machine's name"));
        }
        self.name = Some(answer.body.clone());
        Ok(answer.body)
    }
}
