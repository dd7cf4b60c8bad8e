//! `argosy pki`: an authority for one cluster and the certificates that it signs.

use crate::args::{PkiCommand, Role};
use crate::fail::{Failure, Outcome};
use crate::out;
use crate::run::folder;
use argosy_common::exit::Exit;
use argosy_rpc::tls::{COORDINATOR_NAME, WORKER_NAME};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// What was issued, so that it can be issued again.
const ISSUED_FILE: &str = "issued.json";
/// Clocks of machines differ: a certificate is valid a little before it is made.
const SKEW: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
const NAME_MAX: usize = 63;

type Issued = BTreeMap<String, Role>;

pub(crate) fn run(command: &PkiCommand) -> Outcome<Exit> {
    match command {
        PkiCommand::Init { dir, days } => init(dir, *days)?,
        PkiCommand::Issue { dir, name, role, days } => {
            check_name(name)?;
            let mut issued = read_issued(dir)?;
            if issued.contains_key(name) {
                let failure = Failure::new(Exit::Conflict, format!("{} has a certificate of {name}", dir.display()));
                return Err(failure.help(format!("renew it with: argosy pki rotate {} {name}", dir.display())));
            }
            issue(dir, name, *role, *days)?;
            issued.insert(name.clone(), *role);
            write_issued(dir, &issued)?;
        }
        PkiCommand::Rotate { dir, names, days } => {
            let issued = read_issued(dir)?;
            let all: Vec<String> = issued.keys().cloned().collect();
            for name in if names.is_empty() { &all } else { names } {
                let role = issued.get(name).ok_or_else(|| {
                    let message = format!("{} has issued nothing to {name}", dir.display());
                    Failure::new(Exit::NotFound, message).help("see its issued.json for the names")
                })?;
                issue(dir, name, *role, *days)?;
            }
        }
    }
    Ok(Exit::Ok)
}

fn failed(what: &str) -> impl Fn(rcgen::Error) -> Failure + use<'_> {
    move |e| Failure::new(Exit::BadConfig, format!("{what}: {e}"))
}

fn params(names: Vec<String>, common_name: &str, days: u32) -> Outcome<CertificateParams> {
    let mut params = CertificateParams::new(names).map_err(failed("the name does not fit into a certificate"))?;
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, common_name);
    params.distinguished_name = subject;
    params.not_before = (SystemTime::now() - SKEW).into();
    params.not_after = (SystemTime::now() + DAY * days).into();
    Ok(params)
}

fn init(dir: &Path, days: u32) -> Outcome<()> {
    let (certificate, key) = (dir.join("ca.pem"), dir.join("ca.key"));
    if key.exists() {
        let message = format!("{} holds an authority already", dir.display());
        return Err(Failure::new(Exit::Conflict, message).help("give another folder"));
    }
    std::fs::create_dir_all(dir).map_err(|e| Failure::io("create", dir, &e))?;
    let own = KeyPair::generate().map_err(failed("no key could be made"))?;
    let mut params = params(Vec::new(), "argosy authority", days)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let signed = params
        .self_signed(&own)
        .map_err(failed("the authority could not be signed"))?;
    folder::write_secret(&key, &own.serialize_pem())?;
    write(&certificate, &signed.pem())?;
    write_issued(dir, &Issued::new())?;
    out::say(&format!(
        "next: argosy pki issue {} NAME --role coordinator|worker",
        dir.display()
    ));
    Ok(())
}

fn issue(dir: &Path, name: &str, role: Role, days: u32) -> Outcome<()> {
    let (ca, ca_key) = (read(&dir.join("ca.pem"))?, read(&dir.join("ca.key"))?);
    let ca_key = KeyPair::from_pem(&ca_key).map_err(failed("ca.key is no key"))?;
    let issuer = Issuer::from_ca_cert_pem(&ca, ca_key).map_err(failed("ca.pem is no certificate"))?;
    let role_name = match role {
        Role::Coordinator => COORDINATOR_NAME,
        Role::Worker => WORKER_NAME,
    };
    let mut params = params(vec![role_name.into(), format!("{name}.{role_name}")], name, days)?;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // A coordinator asks etcd, and a worker is asked by its peers: each may be either end.
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().map_err(failed("no key could be made"))?;
    let signed = params
        .signed_by(&key, &issuer)
        .map_err(failed("the certificate could not be signed"))?;
    let (certificate, key_file) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
    folder::write_secret(&key_file, &key.serialize_pem())?;
    write(&certificate, &signed.pem())?;
    out::data(&format!("{}\n{}\n", certificate.display(), key_file.display()))?;
    Ok(())
}

/// A name is a label of a DNS name and a file's name.
fn check_name(name: &str) -> Outcome<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let fits = !name.is_empty() && name.len() <= NAME_MAX && name.chars().all(plain) && !name.starts_with('-');
    if fits && name != "ca" {
        return Ok(());
    }
    let message = format!("`{name}` is no name of a node: letters, digits and `-`, at most {NAME_MAX}, not `ca`");
    Err(Failure::new(Exit::Usage, message))
}

fn read(path: &Path) -> Outcome<String> {
    std::fs::read_to_string(path).map_err(|e| Failure::io("read", path, &e))
}

fn write(path: &Path, text: &str) -> Outcome<()> {
    std::fs::write(path, text).map_err(|e| Failure::io("write", path, &e))
}

fn read_issued(dir: &Path) -> Outcome<Issued> {
    let path = dir.join(ISSUED_FILE);
    serde_json::from_str(&read(&path)?)
        .map_err(|e| Failure::new(Exit::BadConfig, format!("{} is not ours: {e}", path.display())))
}

fn write_issued(dir: &Path, issued: &Issued) -> Outcome<()> {
    let text = serde_json::to_string_pretty(issued);
    let text = text.map_err(|e| Failure::new(Exit::Panic, format!("{ISSUED_FILE} cannot be written: {e}")))?;
    write(&dir.join(ISSUED_FILE), &(text + "\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::PathBuf;

    fn issue_to(dir: &Path, name: &str) -> Outcome<Exit> {
        run(&PkiCommand::Issue {
            dir: dir.into(),
            name: name.into(),
            role: Role::Worker,
            days: 9,
        })
    }

    #[test]
    fn authority_issues_once_rotates_with_a_new_key_and_refuses_what_it_does_not_know() {
        let temp = tempfile::tempdir().unwrap();
        let dir: PathBuf = temp.path().join("pki");
        let init = || {
            run(&PkiCommand::Init {
                dir: dir.clone(),
                days: 30,
            })
        };
        init().unwrap();
        assert_eq!(init().unwrap_err().exit, Exit::Conflict);
        issue_to(&dir, "gpu-1").unwrap();
        assert_eq!(issue_to(&dir, "gpu-1").unwrap_err().exit, Exit::Conflict);
        for bad in ["", "ca", "../x", "a.b", "-x"] {
            assert_eq!(issue_to(&dir, bad).unwrap_err().exit, Exit::Usage, "{bad}");
        }
        let key = dir.join("gpu-1.key");
        let (before, ca) = (read(&key).unwrap(), read(&dir.join("ca.pem")).unwrap());
        for secret in [&key, &dir.join("ca.key")] {
            assert_eq!(secret.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
        let rotate = |names: Vec<String>| {
            run(&PkiCommand::Rotate {
                dir: dir.clone(),
                names,
                days: 9,
            })
        };
        rotate(Vec::new()).unwrap();
        assert_ne!(read(&key).unwrap(), before);
        assert_eq!(read(&dir.join("ca.pem")).unwrap(), ca);
        assert_eq!(rotate(vec!["gpu-2".into()]).unwrap_err().exit, Exit::NotFound);
    }
}
