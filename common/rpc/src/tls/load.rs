//! From PEM files to what handshakes use.

use super::{Loaded, PEER_PROTOCOL, Pem, SESSION_PROTOCOL, node_of};
use argosy_common::node::{COORDINATOR_NAME, WORKER_NAME};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// The authority's certificate.
pub const CA_FILE: &str = "ca.pem";
/// The node's certificate.
pub const CERTIFICATE_FILE: &str = "node.pem";
/// Its key.
pub const KEY_FILE: &str = "node.key";
/// What the authority has revoked.
pub const REVOKED_FILE: &str = "revoked.pem";
const FILES: [&str; 4] = [CA_FILE, CERTIFICATE_FILE, KEY_FILE, REVOKED_FILE];
/// A list of a hundred thousand revoked certificates is smaller.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is missing or cannot be read.
    #[error(
        "certificates: {path}: {source}; a TLS folder holds ca.pem, node.pem and node.key as `argosy pki issue` makes them"
    )]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What they say is not good.
    #[error("certificates in {place}: {reason}")]
    Bad {
        /// Where.
        place: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// When files were written, and how long they are: cheap to ask for, different after a change.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Stamps([Option<(SystemTime, u64, u64)>; FILES.len()]);

impl Stamps {
    pub(super) fn of(folder: &Path) -> Self {
        use std::os::unix::fs::MetadataExt as _;
        Self(FILES.map(|file| {
            let meta = std::fs::metadata(folder.join(file)).ok()?;
            Some((meta.modified().ok()?, meta.len(), meta.ino()))
        }))
    }
}

pub(super) fn read(folder: &Path) -> Result<Pem, TlsError> {
    let one = |file: &str| {
        let path = folder.join(file);
        let mut text = String::new();
        std::fs::File::open(&path)
            .and_then(|f| f.take(FILE_BYTES_MAX).read_to_string(&mut text))
            .map_err(|source| TlsError::File { path, source })?;
        Ok(text)
    };
    let revoked = match one(REVOKED_FILE) {
        Err(TlsError::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None,
        read => Some(read?),
    };
    Ok(Pem {
        ca: one(CA_FILE)?,
        certificate: one(CERTIFICATE_FILE)?,
        key: one(KEY_FILE)?,
        revoked,
    })
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

pub(super) fn parse(pem: &Pem, place: &Path, clock: &Arc<dyn TimeProvider>) -> Result<Loaded, TlsError> {
    let bad = |reason: String| TlsError::Bad {
        place: place.to_owned(),
        reason,
    };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem.certificate.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| bad(format!("{CERTIFICATE_FILE}: {e}")))?;
    let Some(own) = chain.first() else {
        return Err(bad(format!("{CERTIFICATE_FILE} holds no certificate")));
    };
    let node = node_of(own).unwrap_or_default();
    let key = PrivateKeyDer::from_pem_slice(pem.key.as_bytes()).map_err(|e| bad(format!("{KEY_FILE}: {e}")))?;
    let role = |name: &'static str| ServerName::try_from(name).map_err(|e| bad(e.to_string()));
    let roots = Arc::new(roots(&pem.ca).map_err(&bad)?);
    let revoked = revoked(pem.revoked.as_deref()).map_err(&bad)?;

    let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider())
        .with_crls(revoked.clone())
        .only_check_end_entity_revocation()
        .allow_unknown_revocation_status()
        .build()
        .map_err(|e| bad(format!("{CA_FILE} or {REVOKED_FILE}: {e}")))?;
    let servers = WebPkiServerVerifier::builder_with_provider(roots, provider())
        .with_crls(revoked)
        .only_check_end_entity_revocation()
        .allow_unknown_revocation_status()
        .build()
        .map_err(|e| bad(format!("{CA_FILE} or {REVOKED_FILE}: {e}")))?;

    // The key has to be the certificate's: rustls compares them here.
    let mut server = ServerConfig::builder_with_details(provider(), Arc::clone(clock))
        .with_protocol_versions(&[&TLS13])
        .map_err(|e| bad(e.to_string()))?
        .with_client_cert_verifier(Arc::clone(&clients))
        .with_single_cert(chain.clone(), key.clone_key())
        .map_err(|e| bad(format!("{CERTIFICATE_FILE} and {KEY_FILE}: {e}")))?;
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    let mut client = ClientConfig::builder_with_details(provider(), Arc::clone(clock))
        .with_protocol_versions(&[&TLS13])
        .map_err(|e| bad(e.to_string()))?
        .with_webpki_verifier(servers)
        .with_client_auth_cert(chain.clone(), key)
        .map_err(|e| bad(format!("{CERTIFICATE_FILE} and {KEY_FILE}: {e}")))?;
    client.resumption = Resumption::disabled();

    let (mut peer_server, mut peer_client) = (server.clone(), client.clone());
    server.alpn_protocols = vec![SESSION_PROTOCOL.into()];
    client.alpn_protocols = vec![SESSION_PROTOCOL.into()];
    peer_server.alpn_protocols = vec![PEER_PROTOCOL.into()];
    peer_client.alpn_protocols = vec![PEER_PROTOCOL.into()];
    Ok(Loaded {
        node,
        own: chain,
        session_server: Arc::new(server),
        session_client: Arc::new(client),
        peer_server: Arc::new(peer_server),
        peer_client: Arc::new(peer_client),
        verifier: clients,
        clock: Arc::clone(clock),
        coordinator: role(COORDINATOR_NAME)?,
        worker: role(WORKER_NAME)?,
    })
}

fn roots(ca: &str) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        let certificate = certificate.map_err(|e| format!("{CA_FILE}: {e}"))?;
        roots.add(certificate).map_err(|e| format!("{CA_FILE}: {e}"))?;
    }
    if roots.is_empty() {
        return Err(format!("{CA_FILE} holds no certificate"));
    }
    Ok(roots)
}

fn revoked(lists: Option<&str>) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    CertificateRevocationListDer::pem_slice_iter(lists.unwrap_or_default().as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| format!("{REVOKED_FILE}: {e}"))
}
