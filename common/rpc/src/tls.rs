//! Certificates: who may be a coordinator and who a worker.
//!
//! One authority signs for one cluster. A certificate names its role as a DNS name, `coordinator.argosy` or `worker.argosy`:
//! a worker only speaks to the former, a coordinator only to the latter, so that no worker's key makes a coordinator.

use rustls::pki_types::{CertificateDer, ServerName};
use std::fmt;
use tonic::Status;
use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};
use webpki::EndEntityCert;

/// Name in every coordinator's certificate.
pub const COORDINATOR_NAME: &str = "coordinator.argosy";
/// Name in every worker's certificate.
pub const WORKER_NAME: &str = "worker.argosy";

/// What one process shows and whom it believes, in PEM.
#[derive(Clone)]
pub struct Tls {
    /// The cluster's authority.
    pub ca: String,
    /// The own certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

impl fmt::Debug for Tls {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl Tls {
    fn identity(&self) -> Identity {
        Identity::from_pem(&self.certificate, &self.key)
    }

    pub(crate) fn server(&self) -> ServerTlsConfig {
        ServerTlsConfig::new()
            .identity(self.identity())
            .client_ca_root(Certificate::from_pem(&self.ca))
    }

    pub(crate) fn client(&self) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .identity(self.identity())
            .ca_certificate(Certificate::from_pem(&self.ca))
            .domain_name(COORDINATOR_NAME)
    }
}

/// Whether the certificate, which the handshake has checked, is a worker's.
// A status is what tonic's interceptors return, whatever its size.
#[allow(clippy::result_large_err)]
pub(crate) fn check_worker(chain: Option<&[CertificateDer<'_>]>) -> Result<(), Status> {
    let refused = |why: &str| {
        Status::permission_denied(format!(
            "{why}; a worker shows a certificate made with `argosy pki issue NAME --role worker`"
        ))
    };
    let Some(own) = chain.and_then(<[_]>::first) else {
        return Err(refused("no certificate was shown"));
    };
    let named = EndEntityCert::try_from(own)
        .ok()
        .zip(ServerName::try_from(WORKER_NAME).ok())
        .is_some_and(|(certificate, name)| certificate.verify_is_valid_for_subject_name(&name).is_ok());
    if named {
        Ok(())
    } else {
        Err(refused("this certificate is not a worker's"))
    }
}
