//! Heals over real sockets: from all who hold the state, whatever some of them do. Twin in the simulator: `heal-source-dies`.

use super::{PeerError, PeerServer, Snapshot, Wanted, fetch};
use crate::collective::AbortHandle;
use crate::engine::{StateRead, hash_state_bytes};
use argosy_common::ids::{Generation, StateName};
use argosy_common::plan::generation_secret;
use argosy_rpc::frame::Fence;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

const RUN_SECRET: &[u8] = b"secret of the run";
const GENERATION: Generation = Generation(3);
/// Some slices, the last one cut.
const BYTES: usize = (50 << 20) + 17;
const FENCE: Fence = Fence {
    run: 1,
    generation: GENERATION.0,
    plan: 2,
    step: 4,
};

fn state() -> Vec<u8> {
    (0..BYTES as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

/// A state whose holder does something when it is read for the `when`th time.
struct Watched {
    bytes: Vec<u8>,
    reads: AtomicUsize,
    when: usize,
    then: Box<dyn Fn() + Send>,
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watched").finish_non_exhaustive()
    }
}

impl StateRead for Watched {
    fn read(&self, at: usize, out: &mut [u8]) {
        out.copy_from_slice(&self.bytes[at..at + out.len()]);
        if self.reads.fetch_add(1, Ordering::SeqCst) + 1 == self.when {
            (self.then)();
        }
    }
}

/// A holder of `bytes` that announces `hash`; when its `when`th piece is read, it does `then`.
fn holder_that(bytes: &[u8], hash: u64, when: usize, then: impl Fn(&PeerServer) + Send + 'static) -> Arc<PeerServer> {
    let server = Arc::new(PeerServer::start(RUN_SECRET.to_vec()).unwrap());
    let theirs = Arc::downgrade(&server);
    let state = Watched {
        bytes: bytes.to_vec(),
        reads: AtomicUsize::new(0),
        when,
        then: Box::new(move || {
            if let Some(server) = theirs.upgrade() {
                then(&server);
            }
        }),
    };
    let snapshot = Snapshot {
        fence: FENCE,
        name: StateName::INITIAL,
        state: Mutex::new(Box::new(state)),
        bytes: bytes.len(),
        hash,
        log: b"lines\n".to_vec(),
    };
    server.post(GENERATION, Arc::new(snapshot));
    server
}

fn holder(bytes: &[u8]) -> Arc<PeerServer> {
    holder_that(bytes, hash_state_bytes(bytes), usize::MAX, |_| {})
}

fn heal(holders: &[String], abort: &AbortHandle) -> Result<super::Fetched, PeerError> {
    let wanted = Wanted {
        holders,
        fence: FENCE,
        secret: generation_secret(RUN_SECRET, GENERATION),
        tls: None,
        bytes: BYTES,
    };
    fetch(wanted, abort)
}

fn addresses(servers: &[Arc<PeerServer>]) -> Vec<String> {
    servers.iter().map(|s| s.addr()).collect()
}

#[test]
fn heal_from_three_holders_brings_the_state_in_slices_of_all_with_one_log() {
    let state = state();
    let holders = [holder(&state), holder(&state), holder(&state)];
    let fetched = heal(&addresses(&holders), &AbortHandle::new()).unwrap();
    assert!(fetched.bytes == state, "the bytes differ");
    assert_eq!(
        (fetched.hash, &fetched.log[..]),
        (hash_state_bytes(&state), &b"lines\n"[..])
    );
    // On one processor a holder may come too late for any slice; mostly all give some.
    assert!(
        !fetched.from.is_empty() && fetched.from.iter().all(|i| *i < 3),
        "{:?}",
        fetched.from
    );
}

#[test]
fn heal_whose_first_source_goes_away_on_the_way_is_ended_by_the_other() {
    let state = state();
    // It withdraws its state in the middle of its first slice, as one that trains on or dies does.
    let leaving = holder_that(&state, hash_state_bytes(&state), 3, PeerServer::withdraw);
    let (alone, abort) = (addresses(std::slice::from_ref(&leaving)), AbortHandle::new());
    let failed = heal(&alone, &abort).unwrap_err();
    assert!(matches!(failed, PeerError::Lost { .. }), "{failed}");
    let leaving = holder_that(&state, hash_state_bytes(&state), 3, PeerServer::withdraw);
    let holders = [leaving, holder(&state)];
    let fetched = heal(&addresses(&holders), &abort).unwrap();
    assert!(fetched.bytes == state, "the bytes differ");
    assert!(fetched.from.contains(&1), "{:?}", fetched.from);
}

#[test]
fn holders_that_announce_different_states_of_one_name_end_the_heal() {
    let state = state();
    let mut other = state.clone();
    other[BYTES / 2] ^= 1;
    let holders = [holder(&state), holder(&other)];
    let failed = heal(&addresses(&holders), &AbortHandle::new());
    // Whoever answers first is believed until the other one does, unless everything has come by then.
    match failed {
        Err(PeerError::State { why, .. }) => assert!(why.contains("both have one name"), "{why}"),
        Ok(fetched) => assert!(fetched.from.len() == 1, "a mixture: {:?}", fetched.from),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn state_that_is_not_what_was_announced_is_not_taken() {
    let state = state();
    let liar = holder_that(&state, hash_state_bytes(&state) ^ 1, usize::MAX, |_| {});
    let failed = heal(&addresses(&[liar]), &AbortHandle::new()).unwrap_err();
    assert!(
        failed.to_string().contains("differs from the one announced"),
        "{failed}"
    );
    let short = holder(&state[1..]);
    let failed = heal(&addresses(&[short]), &AbortHandle::new()).unwrap_err();
    assert!(
        failed.to_string().contains(&format!("this model's has {BYTES}")),
        "{failed}"
    );
}

#[test]
fn heal_from_nobody_who_answers_ends_with_the_generation() {
    let gone = holder(b"");
    let addr = addresses(&[gone]); // nobody listens there any more
    let abort = AbortHandle::new();
    std::thread::scope(|scope| {
        let healing = scope.spawn(|| heal(&addr, &abort));
        abort.abort();
        assert!(matches!(healing.join().unwrap(), Err(PeerError::Aborted)));
    });
}
