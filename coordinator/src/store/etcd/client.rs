//! The connection to etcd, and what its errors mean.

use super::{Keys, StoreError};
use argosy_rpc::clock;
use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, TlsOptions};
use std::time::Duration;
use tonic::Code;

/// Etcd does not grant shorter leases (rule G12): three of its election time-outs, halved, in whole seconds.
pub const LEASE_MIN: Duration = Duration::from_secs(2);
/// Nobody waits longer for one answer, however long the lease.
const ANSWER_WITHIN_MAX: Duration = Duration::from_secs(2);
/// Between two tries of a request that failed at once.
const ASK_AGAIN: Duration = Duration::from_millis(20);
const CONNECT_WITHIN: Duration = Duration::from_secs(1);

/// Where etcd is and how it is spoken to.
#[derive(Clone)]
pub struct EtcdOptions {
    /// `http://host:2379` or, with TLS, `https://...`; all members of one cluster.
    pub endpoints: Vec<String>,
    /// The run whose keys these are: letters, digits, `-`, `_` and `.`.
    pub run: String,
    /// A leader that is not heard for so long is followed by another; whole seconds, from [`LEASE_MIN`].
    pub lease: Duration,
    /// After a write without an answer the store is asked for so long what became of it.
    pub patience: Duration,
    /// Name and password.
    pub user: Option<(String, String)>,
    /// Certificates.
    pub tls: Option<EtcdTls>,
}

impl std::fmt::Debug for EtcdOptions {
    /// Without the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdOptions")
            .field("endpoints", &self.endpoints)
            .field("run", &self.run)
            .field("lease", &self.lease)
            .field("user", &self.user.as_ref().map(|(name, _)| name))
            .field("tls", &self.tls.is_some())
            .finish_non_exhaustive()
    }
}

/// Certificates in PEM.
#[derive(Clone)]
pub struct EtcdTls {
    /// Who signs etcd's certificates.
    pub ca: String,
    /// Our certificate and its key, if etcd wants to know its clients.
    pub identity: Option<(String, String)>,
}

impl std::fmt::Debug for EtcdTls {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdTls").finish_non_exhaustive()
    }
}

/// A connected client.
pub(super) struct Etcd {
    client: Client,
    pub(super) options: EtcdOptions,
    pub(super) keys: Keys,
    /// A request without an answer for so long is given up.
    answer_within: Duration,
}

impl std::fmt::Debug for Etcd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Etcd")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// What went wrong with one request.
#[derive(Debug)]
pub(super) enum Trouble {
    /// No answer in time.
    Silent,
    /// An answer that is an error, or a broken connection.
    Etcd(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Etcd(error)
    }
}

impl Trouble {
    /// The request may have been carried out, or can be made again: only the store knows.
    pub(super) fn is_unclear(&self) -> bool {
        match self {
            Self::Silent => true,
            Self::Etcd(Error::GRpcStatus(status)) => match status.code() {
                Code::Unavailable
                | Code::DeadlineExceeded
                | Code::Cancelled
                | Code::Unknown
                | Code::Internal
                | Code::Aborted => true,
                Code::ResourceExhausted => !self.is_full(),
                _ => false,
            },
            Self::Etcd(Error::TransportError(_) | Error::IoError(_) | Error::WatchError(_) | Error::Internal(_)) => {
                true
            }
            Self::Etcd(_) => false,
        }
    }

    /// The store is out of space; too many requests have the same code.
    pub(super) fn is_full(&self) -> bool {
        matches!(self, Self::Etcd(Error::GRpcStatus(status)) if status.message().contains("space exceeded"))
    }

    /// The lease that a request named does not exist any more.
    pub(super) fn lease_is_gone(&self) -> bool {
        match self {
            Self::Etcd(Error::LeaseKeepAliveError(_)) => true,
            Self::Etcd(Error::GRpcStatus(status)) => status.code() == Code::NotFound,
            _ => false,
        }
    }

    fn is_denied(&self) -> bool {
        let Self::Etcd(Error::GRpcStatus(status)) = self else {
            return false;
        };
        // Etcd says so with the code for bad arguments when it does not know who asks.
        matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied)
            || (status.code() == Code::InvalidArgument && status.message().contains("user name is empty"))
            || status.message().contains("authentication failed")
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Silent => f.write_str("no answer in time"),
            Self::Etcd(Error::GRpcStatus(status)) => f.write_str(status.message()),
            // What a connection broke of stands in its causes.
            Self::Etcd(error) => f.write_str(&argosy_rpc::chain(error)),
        }
    }
}

impl Etcd {
    pub(super) async fn connect(options: EtcdOptions) -> Result<Self, StoreError> {
        check(&options)?;
        // A third of the lease: two requests in a row may fail before a leader has to doubt itself.
        let answer_within = (options.lease / 3).min(ANSWER_WITHIN_MAX);
        let mut connect = ConnectOptions::new()
            .with_connect_timeout(CONNECT_WITHIN)
            .with_keep_alive(options.lease / 2, options.lease / 2)
            .with_require_leader(true);
        if let Some((name, password)) = &options.user {
            connect = connect.with_user(name, password).with_auto_token_refresh(true);
        }
        if let Some(tls) = &options.tls {
            let mut own = TlsOptions::new().ca_certificate(Certificate::from_pem(&tls.ca));
            if let Some((certificate, key)) = &tls.identity {
                own = own.identity(Identity::from_pem(certificate, key));
            }
            connect = connect.with_tls(own);
        }
        let connecting = Client::connect(&options.endpoints, Some(connect));
        let connected = match tokio::time::timeout(CONNECT_WITHIN + answer_within, connecting).await {
            Ok(connected) => connected.map_err(Trouble::Etcd),
            Err(_) => Err(Trouble::Silent),
        };
        let client = connected.map_err(|trouble| error(&options, trouble))?;
        let keys = Keys::new(&options.run);
        Ok(Self {
            client,
            options,
            keys,
            answer_within,
        })
    }

    /// To make a request with; cheap.
    pub(super) fn client(&self) -> Client {
        self.client.clone()
    }

    /// One request, answered in time or not.
    pub(super) async fn call<T>(&self, request: impl Future<Output = Result<T, Error>>) -> Result<T, Trouble> {
        match tokio::time::timeout(self.answer_within, request).await {
            Ok(answered) => Ok(answered?),
            Err(_) => Err(Trouble::Silent),
        }
    }

    /// A request that may be made twice, made again while it fails at once: of several servers the next may answer.
    pub(super) async fn ask<T, F>(&self, request: impl Fn(Client) -> F + Send + Sync) -> Result<T, Trouble>
    where
        F: Future<Output = Result<T, Error>> + Send,
    {
        let give_up = clock::now() + self.answer_within;
        loop {
            match self.call(request(self.client())).await {
                Err(trouble) if trouble.is_unclear() && clock::now() < give_up => {
                    tokio::time::sleep(ASK_AGAIN).await;
                }
                answered => return answered,
            }
        }
    }

    pub(super) fn place(&self) -> String {
        format!("etcd at {}, run {}", self.options.endpoints.join(","), self.options.run)
    }

    pub(super) fn broken(&self, revision: u64, reason: String) -> StoreError {
        let place = self.place();
        StoreError::Broken {
            place,
            revision,
            reason,
        }
    }

    pub(super) fn error(&self, trouble: Trouble) -> StoreError {
        error(&self.options, trouble)
    }
}

fn error(options: &EtcdOptions, trouble: Trouble) -> StoreError {
    let endpoints = options.endpoints.join(",");
    let reason = trouble.to_string();
    if trouble.is_full() {
        let help =
            "Raise its quota or remove what is not needed, compact and defragment it, then disarm its NOSPACE alarm";
        let place = format!("etcd at {endpoints}");
        StoreError::Full { place, reason, help }
    } else if trouble.is_denied() {
        StoreError::Denied { endpoints, reason }
    } else if let Trouble::Etcd(Error::InvalidArgs(_) | Error::InvalidUri(_)) = trouble {
        StoreError::BadOptions { reason }
    } else {
        StoreError::Unreachable { endpoints, reason }
    }
}

fn check(options: &EtcdOptions) -> Result<(), StoreError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let with_tls = |url: &String| url.starts_with("https://");
    let reason = if options.endpoints.is_empty() {
        "no endpoint is given; name at least one like http://127.0.0.1:2379".to_owned()
    } else if options.run.is_empty() || !options.run.chars().all(plain) {
        format!(
            "the run's name `{}` may only have letters, digits, `-`, `_` and `.`",
            options.run
        )
    } else if options.lease < LEASE_MIN || options.lease.subsec_nanos() != 0 {
        format!(
            "a lease of {} ms is asked for; etcd grants whole seconds from {} (rule G12): raise failure_budget_ms",
            options.lease.as_millis(),
            LEASE_MIN.as_secs()
        )
    } else if let (Some(_), Some(url)) = (&options.tls, options.endpoints.iter().find(|url| !with_tls(url))) {
        format!("certificates are given, but {url} does not begin with https://")
    } else if let (Some(_), Some(url)) = (
        &options.user,
        options.endpoints.iter().find(|u| !with_tls(u) && !local(u)),
    ) {
        format!("a password would travel in clear to {url}; use https://")
    } else {
        return Ok(());
    };
    Err(StoreError::BadOptions { reason })
}

/// Whether nobody else hears what is said to `url`.
fn local(url: &str) -> bool {
    let host = url.split("://").last().unwrap_or(url);
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    host == "localhost"
        || host
            .trim_matches(['[', ']'])
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}
