//! An etcd that asks who comes: certificates on both sides, users with passwords, and rights on a part of its keys.

use super::etcd::{Proxy, Servers, etcd_options};
use super::{elected, record, records};
use argosy_common::exit::Exit;
use argosy_common::node::Role;
use argosy_coordinator::store::{EtcdOptions, EtcdStore, EtcdTls, MetaStore, StoreError};
use argosy_pki::Authority;
use etcd_client::{Certificate, Client, ConnectOptions, Identity, Permission, PermissionType, TlsOptions};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

const DAY: Duration = Duration::from_secs(86_400);
const PASSWORD: &str = "canary-password-81f0";

/// What a client shows and whom it believes.
fn tls(authority: &Authority, role: Role) -> EtcdTls {
    let now = SystemTime::now();
    let made = authority.issue("head-1", role, now, now + DAY).unwrap();
    EtcdTls {
        ca: authority.certificate().into(),
        identity: Some((made.certificate, made.key)),
    }
}

async fn admin(url: &str, tls: &EtcdTls) -> Client {
    let (certificate, key) = tls.identity.clone().unwrap();
    let own = TlsOptions::new()
        .ca_certificate(Certificate::from_pem(&tls.ca))
        .identity(Identity::from_pem(certificate, key));
    loop {
        let options = ConnectOptions::new().with_tls(own.clone());
        if let Ok(mut client) = Client::connect([url], Some(options)).await
            && client.get("x", None).await.is_ok()
        {
            return client;
        }
        tokio::time::sleep(Duration::from_millis(20)).await; // between two tries of a server that begins
    }
}

/// Users `argosy`, who may use a run's keys, and `guest`, who may nothing.
async fn make_users(client: &mut Client) {
    client.user_add("root", "r", None).await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.role_add("runs").await.unwrap();
    let runs = Permission::new(PermissionType::Readwrite, "argosy/").with_prefix();
    client.role_grant_permission("runs", runs).await.unwrap();
    client.user_add("argosy", PASSWORD, None).await.unwrap();
    client.user_grant_role("argosy", "runs").await.unwrap();
    client.user_add("guest", PASSWORD, None).await.unwrap();
    client.auth_enable().await.unwrap();
}

struct Secured {
    _servers: Servers,
    _proxy: Proxy,
    url: String,
    authority: Authority,
}

impl Secured {
    async fn start() -> Self {
        let authority = Authority::new(30 * DAY).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let own = authority.issue("etcd-1", Role::Etcd, now, now + DAY).unwrap();
        for (file, text) in [
            ("ca.pem", authority.certificate()),
            ("node.pem", &own.certificate),
            ("node.key", &own.key),
        ] {
            std::fs::write(dir.path().join(file), text).unwrap();
        }
        let servers = Servers::start_in(
            dir,
            "unixs",
            1,
            &[
                "--cert-file",
                "node.pem",
                "--key-file",
                "node.key",
                "--trusted-ca-file",
                "ca.pem",
                "--client-cert-auth",
                "--client-cert-allowed-hostname",
                "coordinator.argosy",
            ],
        );
        let proxy = servers.proxy(0).await;
        let port = proxy.address.rsplit(':').next().unwrap().to_owned();
        let secured = Self {
            url: format!("https://localhost:{port}"),
            _servers: servers,
            _proxy: proxy,
            authority,
        };
        let head = tls(&secured.authority, Role::Coordinator);
        make_users(&mut admin(&secured.url, &head).await).await;
        secured
    }

    fn options(&self, user: Option<&str>) -> EtcdOptions {
        EtcdOptions {
            user: user.map(|name| (name.into(), PASSWORD.into())),
            tls: Some(tls(&self.authority, Role::Coordinator)),
            ..etcd_options(vec![self.url.clone()])
        }
    }
}

/// The error of the first thing that such a client asks for.
async fn refusal(options: EtcdOptions) -> StoreError {
    match EtcdStore::connect(options).await {
        Ok(store) => store.campaign("here").await.unwrap_err(),
        Err(error) => error,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_with_users_and_certificates_serves_whom_it_knows_and_denies_others_in_words() {
    let secured = Secured::start().await;
    let store: Arc<dyn MetaStore> = Arc::new(EtcdStore::connect(secured.options(Some("argosy"))).await.unwrap());
    let reign = elected(&store).await;
    for next in 1..=3 {
        assert_eq!(reign.append(next - 1, &record(next)).await.unwrap(), next);
        reign.renew().await.unwrap();
    }
    assert_eq!(store.records().await.unwrap(), records(3));

    let mut wrong = secured.options(Some("argosy"));
    wrong.user = Some(("argosy".into(), format!("{PASSWORD}-wrong")));
    for options in [wrong, secured.options(Some("guest")), secured.options(None)] {
        let denied = refusal(options).await;
        assert!(matches!(denied, StoreError::Denied { .. }), "{denied}");
        assert_eq!(denied.exit(), Exit::Denied);
        assert!(!format!("{denied} {denied:?}").contains("canary"), "{denied}");
    }
    assert!(!format!("{:?}", secured.options(Some("argosy"))).contains("canary"));

    // No certificate, a worker's, one of another authority, and an etcd that another authority has signed.
    let stranger = Authority::new(DAY).unwrap();
    let good = secured.authority.certificate().to_owned();
    let nobody = EtcdTls {
        ca: good.clone(),
        identity: None,
    };
    let foreign = EtcdTls {
        ca: good,
        ..tls(&stranger, Role::Coordinator)
    };
    let suspicious = EtcdTls {
        ca: stranger.certificate().into(),
        ..tls(&secured.authority, Role::Coordinator)
    };
    for tls in [nobody, tls(&secured.authority, Role::Worker), foreign, suspicious] {
        let refused = refusal(EtcdOptions {
            tls: Some(tls),
            ..secured.options(Some("argosy"))
        })
        .await;
        assert!(matches!(refused, StoreError::Unreachable { .. }), "{refused}");
    }
    reign.renew().await.unwrap();
    reign.resign().await.unwrap();
}
