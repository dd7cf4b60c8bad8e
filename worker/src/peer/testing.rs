//! Certificates for tests.

use argosy_common::node::Role;
use argosy_pki::{Authority, Issued};
use argosy_rpc::{Pem, Tls};
use std::time::{Duration, SystemTime};

pub(crate) const DAY: Duration = Duration::from_secs(86_400);

pub(crate) struct Pki(pub(crate) Authority);

impl Default for Pki {
    fn default() -> Self {
        Self(Authority::new(30 * DAY).unwrap())
    }
}

impl Pki {
    pub(crate) fn worker(&self, node: &str) -> Tls {
        self.tls(&self.issue(node, Role::Worker, SystemTime::now() + DAY), None)
    }

    pub(crate) fn issue(&self, node: &str, role: Role, until: SystemTime) -> Issued {
        self.0.issue(node, role, SystemTime::now() - 2 * DAY, until).unwrap()
    }

    pub(crate) fn tls(&self, issued: &Issued, revoked: Option<String>) -> Tls {
        Tls::new(&Pem {
            ca: self.0.certificate().into(),
            certificate: issued.certificate.clone(),
            key: issued.key.clone(),
            revoked,
        })
        .unwrap()
    }
}
