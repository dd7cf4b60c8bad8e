//! `argosy pki`: an authority for one cluster and the TLS folders of its nodes.

use crate::args::PkiCommand;
use crate::fail::{Failure, Outcome};
use crate::out;
use crate::run::folder;
use argosy_common::exit::Exit;
use argosy_common::node::Role;
use argosy_pki::{Authority, PkiError, check_name};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// What was issued, so that it can be issued again or revoked.
const ISSUED_FILE: &str = "issued.json";
const ISSUED_VERSION: u32 = 1;
const CA_FILE: &str = "ca.pem";
const CA_KEY_FILE: &str = "ca.key";
/// What coordinators and workers of the cluster know besides.
const TOKEN_FILE: &str = "token";
/// In a node's folder, as its process reads it.
const NODE_FILE: &str = "node.pem";
const NODE_KEY_FILE: &str = "node.key";
const REVOKED_FILE: &str = "revoked.pem";
const DAY: Duration = Duration::from_secs(86_400);

#[derive(Debug, Serialize, Deserialize)]
struct Issued {
    version: u32,
    /// Lists of what is revoked that were made.
    lists: u64,
    nodes: BTreeMap<String, Node>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Node {
    role: Role,
    /// Numbers of its certificates, the last of which is in use.
    serials: Vec<String>,
    /// Those that were revoked.
    #[serde(default)]
    revoked: Vec<String>,
}

pub(crate) fn run(command: &PkiCommand) -> Outcome<Exit> {
    match command {
        PkiCommand::Init { dir, days } => init(dir, *days)?,
        PkiCommand::Issue { dir, name, role, days } => issue(dir, name, *role, *days)?,
        PkiCommand::Rotate { dir, names, days } => rotate(dir, names, *days)?,
        PkiCommand::Revoke { dir, names } => revoke(dir, names)?,
    }
    Ok(Exit::Ok)
}

fn failed(error: PkiError) -> Failure {
    let exit = match error {
        PkiError::Name(_) => Exit::Usage,
        PkiError::Authority(_) | PkiError::Sign(_) => Exit::BadConfig,
    };
    Failure::new(exit, error.to_string())
}

fn init(dir: &Path, days: u32) -> Outcome<()> {
    if dir.join(CA_KEY_FILE).exists() {
        let message = format!("{} holds an authority already", dir.display());
        return Err(Failure::new(Exit::Conflict, message).help("give another folder"));
    }
    std::fs::create_dir_all(dir).map_err(|e| Failure::io("create", dir, &e))?;
    let authority = Authority::new(DAY * days).map_err(failed)?;
    folder::write_secret(&dir.join(CA_KEY_FILE), authority.key())?;
    write(&dir.join(CA_FILE), authority.certificate())?;
    folder::write_secret(&dir.join(TOKEN_FILE), &(folder::hex(&folder::random::<32>()?) + "\n"))?;
    write_issued(
        dir,
        &Issued {
            version: ISSUED_VERSION,
            lists: 0,
            nodes: BTreeMap::new(),
        },
    )?;
    let dir = dir.display();
    out::say(&format!("next: argosy pki issue {dir} NAME --role coordinator|worker"));
    Ok(())
}

fn issue(dir: &Path, name: &str, role: Role, days: u32) -> Outcome<()> {
    check_name(name, role).map_err(failed)?;
    let mut issued = read_issued(dir)?;
    let node = issued.nodes.entry(name.to_owned()).or_insert(Node {
        role,
        serials: Vec::new(),
        revoked: Vec::new(),
    });
    if node.serials.last().is_some_and(|last| !node.revoked.contains(last)) {
        let failure = Failure::new(Exit::Conflict, format!("{} has a certificate of {name}", dir.display()));
        return Err(failure.help(format!("renew it with: argosy pki rotate {} {name}", dir.display())));
    }
    node.role = role;
    make(dir, name, node, days)?;
    write_issued(dir, &issued)?;
    out::hint(&format!(
        "next: copy {} to that machine, and name the copy with --tls",
        dir.join(name).display()
    ));
    Ok(())
}

fn rotate(dir: &Path, names: &[String], days: u32) -> Outcome<()> {
    let mut issued = read_issued(dir)?;
    let all: Vec<String> = issued.nodes.keys().cloned().collect();
    for name in if names.is_empty() { &all } else { names } {
        let node = known(dir, &mut issued, name)?;
        if node.serials.last().is_some_and(|last| node.revoked.contains(last)) {
            if names.is_empty() {
                continue;
            }
            let message = format!("the certificate of {name} was revoked");
            let help = format!(
                "give it a new one with: argosy pki issue {} {name} --role ...",
                dir.display()
            );
            return Err(Failure::new(Exit::Conflict, message).help(help));
        }
        make(dir, name, node, days)?;
    }
    write_issued(dir, &issued)
}

/// All certificates that a node ever got are good no more.
fn revoke(dir: &Path, names: &[String]) -> Outcome<()> {
    let authority = authority(dir)?;
    let mut issued = read_issued(dir)?;
    for name in names {
        let node = known(dir, &mut issued, name)?;
        node.revoked.clone_from(&node.serials);
    }
    issued.lists += 1;
    let revoked = issued.nodes.values().flat_map(|node| &node.revoked).map(String::as_str);
    let list = authority.revoke(revoked, issued.lists).map_err(failed)?;
    write_issued(dir, &issued)?;
    let folders = issued.nodes.keys().map(|name| dir.join(name)).filter(|f| f.is_dir());
    for folder in folders {
        write(&folder.join(REVOKED_FILE), &list)?;
    }
    let path = dir.join(REVOKED_FILE);
    write(&path, &list)?;
    out::data(&format!("{}\n", path.display()))?;
    out::hint("next: copy it into the TLS folders of all machines; they read it again by themselves");
    Ok(())
}

fn known<'a>(dir: &Path, issued: &'a mut Issued, name: &str) -> Outcome<&'a mut Node> {
    issued.nodes.get_mut(name).ok_or_else(|| {
        let message = format!("{} has issued nothing to {name}", dir.display());
        Failure::new(Exit::NotFound, message).help("see its issued.json for the names")
    })
}

fn authority(dir: &Path) -> Outcome<Authority> {
    Authority::from_pem(read(&dir.join(CA_FILE))?, read(&dir.join(CA_KEY_FILE))?).map_err(failed)
}

/// Makes or renews a node's folder.
fn make(dir: &Path, name: &str, node: &mut Node, days: u32) -> Outcome<()> {
    let authority = authority(dir)?;
    let now = SystemTime::now();
    let made = authority
        .issue(name, node.role, now, now + DAY * days)
        .map_err(failed)?;
    let folder = dir.join(name);
    folder::make_private(&folder)?;
    folder::write_secret(&folder.join(NODE_KEY_FILE), &made.key)?;
    write(&folder.join(NODE_FILE), &made.certificate)?;
    write(&folder.join(CA_FILE), authority.certificate())?;
    let list = dir.join(REVOKED_FILE);
    if list.exists() {
        write(&folder.join(REVOKED_FILE), &read(&list)?)?;
    }
    node.serials.push(made.serial);
    out::data(&format!("{}\n", folder.display()))
}

fn read(path: &Path) -> Outcome<String> {
    std::fs::read_to_string(path).map_err(|e| Failure::io("read", path, &e))
}

/// Whoever reads it meanwhile has the old file or the new one.
fn write(path: &Path, text: &str) -> Outcome<()> {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text)
        .and_then(|()| std::fs::rename(&beside, path))
        .map_err(|e| Failure::io("write", path, &e))
}

fn read_issued(dir: &Path) -> Outcome<Issued> {
    let path = dir.join(ISSUED_FILE);
    let refuse = |why: String| Failure::new(Exit::BadConfig, format!("{} is not ours: {why}", path.display()));
    let issued: Issued = serde_json::from_str(&read(&path)?).map_err(|e| refuse(e.to_string()))?;
    if issued.version != ISSUED_VERSION {
        return Err(refuse(format!(
            "its version is {}, not {ISSUED_VERSION}",
            issued.version
        )));
    }
    Ok(issued)
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

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn authority_issues_once_rotates_with_a_new_key_and_refuses_what_it_does_not_know() {
        let temp = tempfile::tempdir().unwrap();
        let dir: PathBuf = temp.path().join("pki");
        let begin = || {
            run(&PkiCommand::Init {
                dir: dir.clone(),
                days: 30,
            })
        };
        begin().unwrap();
        assert_eq!(begin().unwrap_err().exit, Exit::Conflict);
        issue_to(&dir, "gpu-1").unwrap();
        assert_eq!(issue_to(&dir, "gpu-1").unwrap_err().exit, Exit::Conflict);
        let token = read(&dir.join("token")).unwrap();
        assert!(token.trim().len() == 64 && mode(&dir.join("token")) == 0o600);
        for bad in ["", "../x", "a.b", "-x", "x-"] {
            assert_eq!(issue_to(&dir, bad).unwrap_err().exit, Exit::Usage, "{bad}");
        }
        let key = dir.join("gpu-1/node.key");
        let (before, ca) = (read(&key).unwrap(), read(&dir.join("ca.pem")).unwrap());
        assert_eq!(read(&dir.join("gpu-1/ca.pem")).unwrap(), ca);
        assert_eq!((mode(&key), mode(&dir.join("ca.key"))), (0o600, 0o600));
        assert_eq!(mode(&dir.join("gpu-1")), 0o700);
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

    #[test]
    fn revoked_node_is_on_the_list_of_every_folder_and_gets_a_certificate_only_by_name() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("pki");
        run(&PkiCommand::Init {
            dir: dir.clone(),
            days: 30,
        })
        .unwrap();
        issue_to(&dir, "gpu-1").unwrap();
        issue_to(&dir, "gpu-2").unwrap();
        let revoke = |name: &str| {
            run(&PkiCommand::Revoke {
                dir: dir.clone(),
                names: vec![name.into()],
            })
        };
        assert_eq!(revoke("gpu-3").unwrap_err().exit, Exit::NotFound);
        revoke("gpu-1").unwrap();
        let list = read(&dir.join("revoked.pem")).unwrap();
        for name in ["gpu-1", "gpu-2"] {
            assert_eq!(read(&dir.join(name).join("revoked.pem")).unwrap(), list);
        }
        let issued = read_issued(&dir).unwrap();
        assert_eq!(issued.nodes["gpu-1"].revoked, issued.nodes["gpu-1"].serials);
        assert!(issued.nodes["gpu-2"].revoked.is_empty());
        // Renewing everybody leaves it out; asked for by name it is told.
        let rotate = |names: Vec<String>| {
            run(&PkiCommand::Rotate {
                dir: dir.clone(),
                names,
                days: 9,
            })
        };
        rotate(Vec::new()).unwrap();
        assert_eq!(read_issued(&dir).unwrap().nodes["gpu-1"].serials.len(), 1);
        assert_eq!(rotate(vec!["gpu-1".into()]).unwrap_err().exit, Exit::Conflict);
        issue_to(&dir, "gpu-1").unwrap();
        assert_eq!(read_issued(&dir).unwrap().nodes["gpu-1"].serials.len(), 2);
    }
}
