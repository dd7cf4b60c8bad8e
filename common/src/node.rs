//! What a machine may be, as certificates say it.

/// Name in every coordinator's certificate.
pub const COORDINATOR_NAME: &str = "coordinator.argosy";
/// Name in every worker's certificate.
pub const WORKER_NAME: &str = "worker.argosy";

/// Name in the certificate of every member of an etcd cluster.
pub const ETCD_NAME: &str = "etcd.argosy";

/// What a node may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Plans.
    Coordinator,
    /// Trains.
    Worker,
    /// Keeps records, and is none of ours: its certificate names its host.
    Etcd,
}

impl Role {
    /// The DNS name that stands for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Coordinator => COORDINATOR_NAME,
            Self::Worker => WORKER_NAME,
            Self::Etcd => ETCD_NAME,
        }
    }
}
