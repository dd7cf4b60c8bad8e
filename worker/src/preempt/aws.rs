//! EC2: `spot/instance-action` and, if asked for, `events/recommendations/rebalance`, by IMDSv2 with a session token.

use super::{Answer, Metadata, Notice, Trouble};
use reqwest::StatusCode;
use serde::Deserialize;
use std::time::Duration;

pub(super) const URL: &str = "http://169.254.169.254";
const TOKEN: &str = "/latest/api/token";
const TOKEN_HEADER: &str = "x-aws-ec2-metadata-token";
const TOKEN_TTL: (&str, &str) = ("x-aws-ec2-metadata-token-ttl-seconds", "21600");
const ACTION: &str = "/latest/meta-data/spot/instance-action";
const REBALANCE: &str = "/latest/meta-data/events/recommendations/rebalance";
const WITHIN: Duration = Duration::from_secs(5);
/// Of the two minutes that come before a stop or a termination.
const STOP_GRACE: Duration = Duration::from_secs(110);
/// Hibernation begins with its notice.
const HIBERNATE_GRACE: Duration = Duration::from_secs(5);
/// A recommendation is no deadline: enough for a boundary and a checkpoint of any model.
const REBALANCE_GRACE: Duration = Duration::from_secs(600);

#[derive(Debug)]
pub(super) struct Aws {
    metadata: Metadata,
    rebalance: bool,
    token: Option<String>,
}

#[derive(Deserialize)]
struct Action {
    action: String,
    #[serde(default)]
    time: String,
}

#[derive(Deserialize)]
struct Rebalance {
    #[serde(rename = "noticeTime")]
    notice_time: String,
}

impl Aws {
    pub(super) fn new(metadata: Metadata, rebalance: bool) -> Self {
        Self {
            metadata,
            rebalance,
            token: None,
        }
    }

    pub(super) async fn poll(&mut self) -> Result<Option<Notice>, Trouble> {
        if let Some(answer) = self.ask(ACTION).await? {
            let Action { action, time } =
                serde_json::from_str(&answer.body).map_err(|_| answer.unexpected("instance-action"))?;
            let grace = match action.as_str() {
                "hibernate" => HIBERNATE_GRACE,
                _ => STOP_GRACE,
            };
            let reason = format!("EC2 will {action} this spot instance at {time}");
            return Ok(Some(Notice { grace, reason }));
        }
        if !self.rebalance {
            return Ok(None);
        }
        let Some(answer) = self.ask(REBALANCE).await? else {
            return Ok(None);
        };
        let Rebalance { notice_time } =
            serde_json::from_str(&answer.body).map_err(|_| answer.unexpected("rebalance recommendation"))?;
        Ok(Some(Notice {
            grace: REBALANCE_GRACE,
            reason: format!("EC2 recommended at {notice_time} to rebalance away from this instance"),
        }))
    }

    /// What stands at `path`; `None` where nothing does. A token that has run out is replaced once.
    async fn ask(&mut self, path: &str) -> Result<Option<Answer>, Trouble> {
        for _ in 0..2 {
            let token = match &self.token {
                Some(token) => token.clone(),
                None => self.new_token().await?,
            };
            let answer = self.metadata.get(path, (TOKEN_HEADER, &token), WITHIN).await?;
            match answer.status {
                StatusCode::OK => return Ok(Some(answer)),
                StatusCode::NOT_FOUND => return Ok(None),
                StatusCode::UNAUTHORIZED => self.token = None,
                _ => return Err(answer.unexpected(path)),
            }
        }
        Err("it refuses the session token that it gave".into())
    }

    async fn new_token(&mut self) -> Result<String, Trouble> {
        let answer = self.metadata.put(TOKEN, TOKEN_TTL, WITHIN).await?;
        let good = answer.status == StatusCode::OK && !answer.body.is_empty() && answer.body.len() < 1024;
        if !good {
            return Err(answer.unexpected("session token"));
        }
        self.token = Some(answer.body.clone());
        Ok(answer.body)
    }
}
