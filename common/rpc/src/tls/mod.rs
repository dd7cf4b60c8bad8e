//! Certificates: who may be a coordinator and who a worker.
//!
//! One authority signs for one cluster. A certificate names its role as a DNS name, `coordinator.argosy` or `worker.argosy`,
//! and its node as `NODE.worker.argosy`: a worker only speaks to coordinators and, in the ring, to workers; a coordinator lets
//! only workers in, and each only under its own name. So no worker's key makes a coordinator, or another worker.
//!
//! What a folder holds is read again when it has changed, so that certificates are renewed and revoked without a restart.
//! Sessions are not resumed (RFC 8446, 2.2): every one shows its certificate anew.

mod load;

pub use load::{CA_FILE, CERTIFICATE_FILE, KEY_FILE, REVOKED_FILE, TlsError};

use argosy_common::node::{COORDINATOR_NAME, Role, WORKER_NAME};
use load::{Stamps, parse};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::danger::ClientCertVerifier;
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::{CertificateError, ClientConfig, ServerConfig};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tonic::Status;
use webpki::EndEntityCert;

/// What connections between workers call their protocol, so that none is ever taken for a session.
const PEER_PROTOCOL: &[u8] = b"argosy-peer/2";
const SESSION_PROTOCOL: &[u8] = b"h2";

/// What one process shows and whom it believes, in PEM.
#[derive(Clone)]
pub struct Pem {
    /// The cluster's authority; several while one replaces another.
    pub ca: String,
    /// The own certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
    /// The authority's lists of certificates that are good no more (RFC 5280, 5).
    pub revoked: Option<String>,
}

impl fmt::Debug for Pem {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pem").finish_non_exhaustive()
    }
}

/// The certificates of this process. Cheap to clone; clones see the same renewals.
#[derive(Clone)]
pub struct Tls(Arc<Shared>);

struct Shared {
    folder: Option<PathBuf>,
    /// What certificates' days are counted by. Nothing else of a session looks at a clock that can be set.
    clock: Arc<dyn TimeProvider>,
    now: Mutex<(Stamps, Arc<Loaded>)>,
}

/// Certificates as they were at one time, ready to be used.
pub struct Loaded {
    node: String,
    own: Vec<CertificateDer<'static>>,
    session_server: Arc<ServerConfig>,
    session_client: Arc<ClientConfig>,
    peer_server: Arc<ServerConfig>,
    peer_client: Arc<ClientConfig>,
    verifier: Arc<dyn ClientCertVerifier>,
    clock: Arc<dyn TimeProvider>,
    coordinator: ServerName<'static>,
    worker: ServerName<'static>,
}

impl fmt::Debug for Tls {
    /// Without any key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("folder", &self.0.folder)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl Tls {
    /// From texts; they stay as they are.
    ///
    /// # Errors
    /// [`TlsError`] if they do not fit together.
    pub fn new(pem: &Pem) -> Result<Self, TlsError> {
        Self::judged_by(pem, Arc::new(DefaultTimeProvider))
    }

    /// The same with another clock than the system's.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn judged_by(pem: &Pem, clock: Arc<dyn TimeProvider>) -> Result<Self, TlsError> {
        let loaded = Arc::new(parse(pem, Path::new("certificates"), &clock)?);
        Ok(Self(Arc::new(Shared {
            folder: None,
            clock,
            now: Mutex::new((Stamps::default(), loaded)),
        })))
    }

    /// From a folder with `ca.pem`, `node.pem`, `node.key` and, once something was revoked, `revoked.pem`.
    ///
    /// # Errors
    /// [`TlsError`]: what is missing or wrong, and which file it is in.
    pub fn open(folder: &Path) -> Result<Self, TlsError> {
        let stamps = Stamps::of(folder);
        let clock: Arc<dyn TimeProvider> = Arc::new(DefaultTimeProvider);
        let loaded = Arc::new(parse(&load::read(folder)?, folder, &clock)?);
        Ok(Self(Arc::new(Shared {
            folder: Some(folder.to_owned()),
            clock,
            now: Mutex::new((stamps, loaded)),
        })))
    }

    /// What holds now. Files that changed and cannot be used are told of, and what held before still holds: they may be in
    /// the middle of being replaced, and are looked at again the next time.
    #[must_use]
    pub fn current(&self) -> Arc<Loaded> {
        // One assignment at a time: a panic elsewhere leaves nothing half done.
        let mut now = self.0.now.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(folder) = &self.0.folder else {
            return Arc::clone(&now.1);
        };
        let stamps = Stamps::of(folder);
        if stamps != now.0 {
            match load::read(folder).and_then(|pem| parse(&pem, folder, &self.0.clock)) {
                Ok(loaded) => {
                    tracing::info!(folder = %folder.display(), node = loaded.node, "certificates were read again");
                    *now = (stamps, Arc::new(loaded));
                }
                Err(error) => tracing::warn!(%error, "the certificates that were read before stay in use"),
            }
        }
        Arc::clone(&now.1)
    }

    /// The node that the own certificate names; empty if it names none.
    #[must_use]
    pub fn node(&self) -> String {
        self.current().node.clone()
    }

    /// Whether the own certificate is one of `role`.
    #[must_use]
    pub fn is_for(&self, role: Role) -> bool {
        is_named(self.current().own.first(), role.name())
    }
}

impl Loaded {
    /// The coordinator's end of a session.
    pub(crate) fn session_server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.session_server)
    }

    /// The worker's end of a session, and the name that the other end's certificate has to bear.
    pub(crate) fn session_client(&self) -> (Arc<ClientConfig>, ServerName<'static>) {
        (Arc::clone(&self.session_client), self.coordinator.clone())
    }

    /// The end of a connection between workers that was called. Callers are to be judged by [`check_worker`].
    #[must_use]
    pub fn peer_server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.peer_server)
    }

    /// The end of a connection between workers that calls, and the name that the other end's certificate has to bear.
    #[must_use]
    pub fn peer_client(&self) -> (Arc<ClientConfig>, ServerName<'static>) {
        (Arc::clone(&self.peer_client), self.worker.clone())
    }

    /// Whether a certificate that was good when it was shown has been revoked since.
    pub(crate) fn is_revoked(&self, chain: &[CertificateDer<'_>]) -> bool {
        let Some((own, others)) = chain.split_first() else {
            return false;
        };
        let Some(now) = self.clock.current_time() else {
            return false;
        };
        let judged = self.verifier.verify_client_cert(own, others, now);
        matches!(
            judged,
            Err(rustls::Error::InvalidCertificate(CertificateError::Revoked))
        )
    }
}

fn is_named(certificate: Option<&CertificateDer<'_>>, name: &str) -> bool {
    let Some(certificate) = certificate else { return false };
    EndEntityCert::try_from(certificate)
        .ok()
        .zip(ServerName::try_from(name).ok())
        .is_some_and(|(certificate, name)| certificate.verify_is_valid_for_subject_name(&name).is_ok())
}

/// The node that a certificate names.
fn node_of(certificate: &CertificateDer<'_>) -> Option<String> {
    let certificate = EndEntityCert::try_from(certificate).ok()?;
    let node = |name: &str| {
        let rest = name
            .strip_suffix(WORKER_NAME)
            .or_else(|| name.strip_suffix(COORDINATOR_NAME))?;
        rest.strip_suffix('.').map(str::to_owned)
    };
    certificate.valid_dns_names().find_map(node)
}

/// Whether the certificate, which the handshake has checked, is a worker's.
///
/// # Errors
/// A refusal in one sentence.
// A status is what tonic's interceptors return, whatever its size.
#[allow(clippy::result_large_err)]
pub fn check_worker(chain: Option<&[CertificateDer<'_>]>) -> Result<(), Status> {
    let refused = |why: &str| {
        Status::permission_denied(format!(
            "{why}; a worker shows a certificate made with `argosy pki issue NAME --role worker`"
        ))
    };
    let Some(own) = chain.and_then(<[_]>::first) else {
        return Err(refused("no certificate was shown"));
    };
    if is_named(Some(own), WORKER_NAME) {
        Ok(())
    } else {
        Err(refused("this certificate is not a worker's"))
    }
}

/// Whether the certificate is that of the node which its holder says it is.
#[allow(clippy::result_large_err)]
pub(crate) fn check_node(chain: &[CertificateDer<'_>], claimed: &str) -> Result<(), Status> {
    let Some(own) = chain.first() else {
        return Err(Status::permission_denied("no certificate was shown"));
    };
    if !claimed.is_empty() && is_named(Some(own), &format!("{claimed}.{WORKER_NAME}")) {
        return Ok(());
    }
    let named = node_of(own).unwrap_or_else(|| "no node".into());
    Err(Status::permission_denied(format!(
        "the worker says that it is node `{claimed}`, its certificate names {named}; use the certificate of that node, or its name"
    )))
}
