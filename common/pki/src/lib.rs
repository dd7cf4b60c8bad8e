//! An authority for one cluster: makes the certificates that sessions and rings ask for, and says which are good no more.
//! Knows texts only: files are the command line's, handshakes those of `argosy-rpc`.

use argosy_common::node::Role;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use std::time::{Duration, SystemTime};

/// Clocks of machines differ, and may jump: what is made is valid a day before that.
pub const SKEW: Duration = Duration::from_secs(86_400);
/// A list of what is revoked says that it holds so long. Nobody refuses an older one: it is read again when it changes.
const LIST_HOLDS: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Longest name of a node: a label of a DNS name (RFC 1035, 2.3.4).
pub const NODE_BYTES_MAX: usize = 63;
const HOST_BYTES_MAX: usize = 253;

/// Why something could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// What is there already is not good.
    #[error("the authority cannot be used: {0}")]
    Authority(rcgen::Error),
    /// It could not be made or signed.
    #[error("it could not be signed: {0}")]
    Sign(rcgen::Error),
    /// No name of a node.
    #[error("`{0}` is no name of a node: letters, digits and `-`, at most {NODE_BYTES_MAX}")]
    Name(String),
}

/// Who signs.
pub struct Authority {
    certificate: String,
    key: String,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    /// Without its key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

/// What was made for a node, in PEM.
#[derive(Clone)]
pub struct Issued {
    /// Its certificate.
    pub certificate: String,
    /// The key that goes with it.
    pub key: String,
    /// The certificate's number, in hexadecimal.
    pub serial: String,
}

impl std::fmt::Debug for Issued {
    /// Without its key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued")
            .field("serial", &self.serial)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// A new one that is valid so long.
    ///
    /// # Errors
    /// [`PkiError`] when the system gives no key.
    pub fn new(valid: Duration) -> Result<Self, PkiError> {
        let own = KeyPair::generate().map_err(PkiError::Sign)?;
        let now = SystemTime::now();
        // Each has a name of its own: lists of what is revoked are found by it, also while one authority replaces another.
        let name = format!("argosy authority {}", hex(&serial_of(&own)[..4]));
        let mut params = params(Vec::new(), &name, now, now + valid)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&own).map_err(PkiError::Sign)?.pem();
        let key = own.serialize_pem();
        Self::from_pem(certificate, key)
    }

    /// The one that these texts are of.
    ///
    /// # Errors
    /// [`PkiError::Authority`].
    pub fn from_pem(certificate: String, key: String) -> Result<Self, PkiError> {
        let own = KeyPair::from_pem(&key).map_err(PkiError::Authority)?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, own).map_err(PkiError::Authority)?;
        Ok(Self {
            certificate,
            key,
            issuer,
        })
    }

    /// Its certificate, which everybody may have.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Its key, which nobody may have.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// A certificate for `node`, which names it and its role, and a new key.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn issue(&self, node: &str, role: Role, from: SystemTime, until: SystemTime) -> Result<Issued, PkiError> {
        check_name(node, role)?;
        let names = match role {
            // Who connects to it compares the name that it was called by.
            Role::Etcd => vec![role.name().to_owned(), node.to_owned(), "localhost".into()],
            Role::Coordinator | Role::Worker => vec![role.name().to_owned(), format!("{node}.{}", role.name())],
        };
        let mut params = params(names, node, from, until)?;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // A coordinator asks etcd, and a worker is asked by its peers: each may be either end.
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().map_err(PkiError::Sign)?;
        let serial = serial_of(&key);
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let certificate = params.signed_by(&key, &self.issuer).map_err(PkiError::Sign)?.pem();
        Ok(Issued {
            certificate,
            key: key.serialize_pem(),
            serial: hex(&serial),
        })
    }

    /// The list of certificates that are good no more (RFC 5280, 5), by their numbers; `edition` grows from list to list.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn revoke<'a>(&self, serials: impl IntoIterator<Item = &'a str>, edition: u64) -> Result<String, PkiError> {
        let now = SystemTime::now();
        let revoked = |serial: &str| RevokedCertParams {
            serial_number: SerialNumber::from(bytes_of(serial)),
            revocation_time: now.into(),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: (now - SKEW).into(),
            next_update: (now + LIST_HOLDS).into(),
            crl_number: SerialNumber::from(edition),
            issuing_distribution_point: None,
            revoked_certs: serials.into_iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer).map_err(PkiError::Sign)?;
        list.pem().map_err(PkiError::Sign)
    }
}

fn params(
    names: Vec<String>,
    common_name: &str,
    from: SystemTime,
    until: SystemTime,
) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::new(names).map_err(PkiError::Sign)?;
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, common_name);
    params.distinguished_name = subject;
    params.not_before = (from - SKEW).into();
    params.not_after = until.into();
    Ok(params)
}

/// A number that no other key gets: the key's own last bytes, positive and at most 20 of them (RFC 5280, 4.1.2.2).
fn serial_of(key: &KeyPair) -> Vec<u8> {
    let public = key.public_key_raw();
    let mut serial = public[public.len().saturating_sub(16)..].to_vec();
    if let Some(first) = serial.first_mut() {
        *first = *first & 0x7f | 0x40;
    }
    serial
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes_of(hex: &str) -> Vec<u8> {
    let digit = |at: usize| hex.get(at..at + 2).and_then(|two| u8::from_str_radix(two, 16).ok());
    (0..hex.len()).step_by(2).filter_map(digit).collect()
}

/// A name is a label of a DNS name and a folder's name; that of an etcd's host may have several labels or be an address.
///
/// # Errors
/// [`PkiError::Name`].
pub fn check_name(node: &str, role: Role) -> Result<(), PkiError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let label = |label: &str| {
        let edges = label.starts_with('-') || label.ends_with('-');
        !label.is_empty() && label.len() <= NODE_BYTES_MAX && label.chars().all(plain) && !edges
    };
    let good = match role {
        Role::Etcd => node.len() <= HOST_BYTES_MAX && node.split('.').all(label),
        Role::Coordinator | Role::Worker => label(node),
    };
    good.then_some(()).ok_or_else(|| PkiError::Name(node.to_owned()))
}
