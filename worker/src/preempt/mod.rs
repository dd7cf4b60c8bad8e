//! Notices of clouds that a machine will be taken away (rule G13). Off unless asked for: nothing is polled by default.
//!
//! Notices carry the time of day, which a clock that was set may contradict; what each provider promises as a least notice is
//! used instead, less a margin for having been asked.

mod aws;
mod azure;
mod gcp;
#[cfg(test)]
mod tests;

use argosy_rpc::chain;
use reqwest::{Client, Response, StatusCode};
use std::time::Duration;

/// Polls so far apart, where a provider does not hold the answer back until something changes.
const EVERY: Duration = Duration::from_secs(5);
/// The same after a failure, doubled up to [`FAILED_MAX`].
const FAILED_FIRST: Duration = Duration::from_secs(5);
const FAILED_MAX: Duration = Duration::from_secs(60);
/// Largest answer that is read.
const BODY_BYTES_MAX: usize = 1 << 20;
/// A connection to the link-local address takes no longer.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// Whose notices are heeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Provider {
    /// Interruptions of EC2 spot instances (IMDSv2).
    Aws,
    /// Those, and EC2's recommendations to rebalance, which may come long before or without one.
    AwsRebalance,
    /// Preemptions of Compute Engine.
    Gcp,
    /// Scheduled events of Azure that end the machine's life: preemption, termination, reboot, redeployment.
    Azure,
}

/// What is polled.
#[derive(Clone, Debug)]
pub struct Watch {
    /// Whose notices.
    pub provider: Provider,
    /// Address of the metadata service; by default the provider's own.
    pub url: Option<String>,
}

/// The machine will be taken away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// It is still there for so long.
    pub grace: Duration,
    /// In the provider's words.
    pub reason: String,
}

/// Why a poll told nothing.
type Trouble = String;

/// Asks one provider. `Ok(None)`: nothing is announced.
#[derive(Debug)]
enum Poller {
    Aws(aws::Aws),
    Gcp(gcp::Gcp),
    Azure(azure::Azure),
}

impl Poller {
    fn new(watch: &Watch) -> Result<Self, Trouble> {
        let at = |default: &str| Metadata::new(watch.url.as_deref().unwrap_or(default));
        Ok(match watch.provider {
            Provider::Aws => Self::Aws(aws::Aws::new(at(aws::URL)?, false)),
            Provider::AwsRebalance => Self::Aws(aws::Aws::new(at(aws::URL)?, true)),
            Provider::Gcp => Self::Gcp(gcp::Gcp::new(at(gcp::URL)?)),
            Provider::Azure => Self::Azure(azure::Azure::new(at(azure::URL)?)),
        })
    }

    async fn poll(&mut self) -> Result<Option<Notice>, Trouble> {
        match self {
            Self::Aws(aws) => aws.poll().await,
            Self::Gcp(gcp) => gcp.poll().await,
            Self::Azure(azure) => azure.poll().await,
        }
    }
}

/// Hands on every notice, each once, for as long as it is polled.
pub async fn watch(watch: &Watch, heard: impl Fn(Notice)) {
    watch_every(watch, EVERY, heard).await;
}

async fn watch_every(watch: &Watch, every: Duration, heard: impl Fn(Notice)) {
    let mut poller = match Poller::new(watch) {
        Ok(poller) => poller,
        Err(why) => return tracing::error!(why, "notices of the machine's end cannot be heard"),
    };
    let (mut last, mut pause) = (None, FAILED_FIRST.min(every));
    let mut failing = false;
    loop {
        match poller.poll().await {
            Ok(notice) => {
                if std::mem::take(&mut failing) {
                    tracing::info!(provider = ?watch.provider, "the metadata service answers");
                }
                pause = FAILED_FIRST.min(every);
                if notice.is_some() && notice != last {
                    last.clone_from(&notice);
                    notice.into_iter().for_each(&heard);
                }
                tokio::time::sleep(every).await;
            }
            Err(why) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(why, provider = ?watch.provider, "no word from the metadata service; asking again");
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(FAILED_MAX);
            }
        }
    }
}

/// A metadata service: plain HTTP on a link-local address, never by way of a proxy.
#[derive(Debug)]
struct Metadata {
    client: Client,
    url: String,
}

impl Metadata {
    fn new(url: &str) -> Result<Self, Trouble> {
        // An error means that one is there already. Nothing here speaks TLS, but the client wants to know how it would.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_WITHIN)
            .build()
            .map_err(|e| e.to_string())?;
        Ok(Self {
            client,
            url: url.trim_end_matches('/').to_owned(),
        })
    }

    /// Asks for `path` with one header; the answer within `within`.
    async fn get(&self, path: &str, header: (&'static str, &str), within: Duration) -> Result<Answer, Trouble> {
        let request = self.client.get(format!("{}{path}", self.url));
        let response = request.header(header.0, header.1).timeout(within).send().await;
        Answer::read(response.map_err(|e| chain(&e))?).await
    }

    async fn put(&self, path: &str, header: (&'static str, &str), within: Duration) -> Result<Answer, Trouble> {
        let request = self.client.put(format!("{}{path}", self.url));
        let response = request.header(header.0, header.1).timeout(within).send().await;
        Answer::read(response.map_err(|e| chain(&e))?).await
    }
}

/// What a service said.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    etag: Option<String>,
    flavor: Option<String>,
    body: String,
}

impl Answer {
    async fn read(mut response: Response) -> Result<Self, Trouble> {
        let status = response.status();
        let header = |name: &str| {
            let value = response.headers().get(name)?;
            value.to_str().ok().map(str::to_owned)
        };
        let (etag, flavor) = (header("etag"), header("metadata-flavor"));
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| chain(&e))? {
            if body.len() + chunk.len() > BODY_BYTES_MAX {
                return Err(format!("its answer has more than {BODY_BYTES_MAX} bytes"));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Self {
            status,
            etag,
            flavor,
            body: String::from_utf8_lossy(&body).into_owned(),
        })
    }

    /// What is said about an answer that is none.
    fn unexpected(&self, what: &str) -> Trouble {
        let said: String = self.body.chars().take(200).collect();
        format!("{what}: HTTP {} `{said}`", self.status)
    }
}
