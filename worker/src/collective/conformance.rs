//! One suite for every collective.

use super::{AbortHandle, BLOCK_ELEMENTS, Collective, CollectiveError, local, ring::RingCollective};
use crate::peer::{Hello, PeerError, PeerServer, Place, Purpose, connect};
use argosy_common::ids::Generation;
use argosy_common::plan::generation_secret;
use argosy_rpc::frame::Fence;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

const FENCE: Fence = Fence {
    run: 1,
    generation: 2,
    plan: 3,
    step: 0,
};
const GENERATION: Generation = Generation(2);
/// A test that waits longer has hung.
const PATIENCE: Duration = Duration::from_secs(30);

type Members = Vec<(Box<dyn Collective>, AbortHandle)>;

fn local_members(size: usize) -> Members {
    let handles: Vec<AbortHandle> = (0..size).map(|_| AbortHandle::new()).collect();
    let boxed = local::connect(&handles)
        .into_iter()
        .map(|c| Box::new(c) as Box<dyn Collective>);
    boxed.zip(handles).collect()
}

fn ring_members(size: usize) -> Members {
    ring_members_fenced(&vec![FENCE; size])
}

/// The ring as between machines: every connection with certificates on both sides.
fn secured_members(size: usize) -> Members {
    let pki = crate::peer::testing::Pki::default();
    let place = |rank: usize| Place {
        tls: Some(pki.worker(&format!("gpu-{rank}"))),
        ..Place::default()
    };
    members_at((0..size).map(place).collect(), &vec![FENCE; size])
}

fn ring_members_fenced(fences: &[Fence]) -> Members {
    members_at(vec![Place::default(); fences.len()], fences)
}

fn members_at(places: Vec<Place>, fences: &[Fence]) -> Members {
    let size = fences.len();
    let servers: Vec<PeerServer> = places
        .into_iter()
        .map(|place| PeerServer::start_at(place, b"run".to_vec()).unwrap())
        .collect();
    let secret = generation_secret(b"run", GENERATION);
    let handles: Vec<AbortHandle> = (0..size).map(|_| AbortHandle::new()).collect();
    let join = |rank: usize| -> Box<dyn Collective> {
        let abort = handles[rank].clone();
        if size == 1 {
            return Box::new(RingCollective::alone(fences[0], abort));
        }
        let purpose = Purpose::Ring { from_rank: rank as u32 };
        let hello = Hello {
            generation: GENERATION,
            secret,
            purpose,
        };
        let next = connect(&servers[(rank + 1) % size].addr(), &hello, servers[rank].tls(), &abort).unwrap();
        let prev = servers[rank]
            .take_ring(GENERATION, ((rank + size - 1) % size) as u32, &abort)
            .unwrap();
        Box::new(RingCollective::new(rank, size, fences[rank], next, prev, abort).unwrap())
    };
    let join = &join;
    let rings: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..size).map(|rank| scope.spawn(move || join(rank))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    rings.into_iter().zip(handles).collect()
}

/// Runs `work` on every member on a thread of its own; results in rank order.
fn all<T: Send>(members: Members, work: impl Fn(Box<dyn Collective>) -> T + Sync) -> Vec<T> {
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> = members.into_iter().map(|(c, _)| scope.spawn(move || work(c))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

/// An implementation under test. Another one (NCCL, where there are devices) joins the suite by a line in [`KINDS`], with the
/// world sizes that the machine has devices for: tests ask for no others.
struct Kind {
    /// Members of a fresh generation, connected.
    members: fn(usize) -> Members,
    /// World sizes it can have here.
    sizes: &'static [usize],
}

const KINDS: [Kind; 3] = [
    Kind {
        members: local_members,
        sizes: &SIZES,
    },
    Kind {
        members: ring_members,
        sizes: &SIZES,
    },
    Kind {
        members: secured_members,
        sizes: &SIZES,
    },
];

/// Runs `check` with `size` members of every kind that can have so many.
fn for_each_group(size: usize, check: impl Fn(Members)) {
    let able = KINDS.iter().filter(|kind| kind.sizes.contains(&size));
    able.for_each(|kind| check((kind.members)(size)));
}

/// Runs `check` with the members of every kind in every world size.
fn for_each_world(check: impl Fn(usize, Members)) {
    for kind in &KINDS {
        kind.sizes.iter().for_each(|size| check(*size, (kind.members)(*size)));
    }
}

const SIZES: [usize; 4] = [1, 2, 3, 5];

#[test]
fn all_gather_of_ragged_blocks_lies_in_rank_order_everywhere() {
    for_each_world(|size, members| {
        // Two blocks are longer than a frame, one is empty.
        let lens: Vec<usize> = [3, 2_500_000, 0, 1, 1_100_000][..size].to_vec();
        let block = |rank: usize| -> Vec<u8> { (0..lens[rank]).map(|i| (i * 7 + rank * 31) as u8).collect() };
        let expected: Vec<u8> = (0..size).flat_map(block).collect();
        let got = all(members, |mut c| {
            let mut out = vec![0; lens.iter().sum()];
            c.all_gather(&block(c.rank()), &lens, &mut out).unwrap();
            out
        });
        assert!(got.iter().all(|g| *g == expected), "size {size}");
    });
}

#[test]
fn all_gather_of_nothing_is_nothing() {
    for_each_world(|size, members| {
        all(members, |mut c| c.all_gather(&[], &vec![0; size], &mut []).unwrap());
    });
}

#[test]
fn all_reduce_gives_the_sum_and_the_same_bits_everywhere() {
    const LENGTHS: [usize; 5] = [0, 1, 33, BLOCK_ELEMENTS * 3 + 5, BLOCK_ELEMENTS * 40];
    for_each_world(|size, members| {
        let value = |rank: usize, i: usize| ((i * 13 + rank * 7) % 1000) as f32 * 0.1 - 31.7;
        let got = all(members, |mut c| {
            LENGTHS.map(|len| {
                let mut values: Vec<f32> = (0..len).map(|i| value(c.rank(), i)).collect();
                c.all_reduce_sum(&mut values).unwrap();
                values
            })
        });
        let bits = |v: &Vec<f32>| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        for (at, len) in LENGTHS.into_iter().enumerate() {
            assert!(
                got.iter().all(|g| bits(&g[at]) == bits(&got[0][at])),
                "size {size}, {len} elements"
            );
            for (i, sum) in got[0][at].iter().enumerate() {
                let exact: f64 = (0..size).map(|r| f64::from(value(r, i))).sum();
                assert!(
                    (f64::from(*sum) - exact).abs() < 1e-3,
                    "size {size}, element {i} of {len}"
                );
            }
        }
    });
}

#[test]
fn halves_of_a_sum_leave_whole_blocks_at_their_owners_and_then_everywhere() {
    for_each_world(|size, members| {
        let len = BLOCK_ELEMENTS * 7 + 11;
        let value = |rank: usize, i: usize| ((i * 5 + rank * 3) % 64) as f32; // sums are exact in any order
        let expected: Vec<f32> = (0..len).map(|i| (0..size).map(|r| value(r, i)).sum()).collect();
        let got = all(members, |mut c| {
            let mut values: Vec<f32> = (0..len).map(|i| value(c.rank(), i)).collect();
            let own = c.reduce_scatter_sum(&mut values).unwrap();
            assert_eq!(values[own.clone()], expected[own.clone()], "size {size}");
            assert!(
                own.start.is_multiple_of(BLOCK_ELEMENTS) && (own.end == len || own.end.is_multiple_of(BLOCK_ELEMENTS))
            );
            for (i, value) in values.iter_mut().enumerate().filter(|(i, _)| !own.contains(i)) {
                *value = i as f32; // worthless
            }
            c.all_gather_chunks(&mut values).unwrap();
            (own, values)
        });
        let mut covered: Vec<_> = got.iter().flat_map(|(own, _)| own.clone()).collect();
        covered.sort_unstable();
        assert!(
            covered.into_iter().eq(0..len),
            "chunks are disjoint and cover all, size {size}"
        );
        assert!(got.iter().all(|(_, values)| *values == expected), "size {size}");
    });
}

#[test]
fn broadcast_gives_everybody_the_bytes_of_any_root() {
    for_each_world(|size, members| {
        let block = |root: usize| -> Vec<u8> { (0..1_200_000 * root + 1).map(|i| (i * 3 + root) as u8).collect() };
        let got = all(members, |mut c| {
            let from = |root: usize, c: &mut Box<dyn Collective>| {
                let mut bytes = if c.rank() == root {
                    block(root)
                } else {
                    vec![0; block(root).len()]
                };
                c.broadcast(root, &mut bytes).unwrap();
                bytes == block(root)
            };
            let all = (0..size).all(|root| from(root, &mut c));
            all && matches!(c.broadcast(size, &mut []), Err(CollectiveError::Mismatch(_)))
        });
        assert!(got.iter().all(|ok| *ok), "size {size}");
    });
}

#[test]
fn sentinel_counts_all_and_names_who_was_not_finite() {
    for_each_world(|size, members| {
        let bad = size - 1;
        let got = all(members, |mut c| {
            c.begin_step(4);
            let first = c.sentinel(true).unwrap();
            (first, c.sentinel(c.rank() != bad).unwrap())
        });
        for (first, second) in got {
            assert!(first.count == size && first.all_finite());
            assert_eq!((second.count, second.not_finite), (size, vec![bad]));
        }
    });
}

#[test]
fn abort_in_mid_transfer_ends_every_member_at_once() {
    for_each_group(3, |members| {
        let handles: Vec<AbortHandle> = members.iter().map(|(_, h)| h.clone()).collect();
        let (told, heard) = mpsc::channel();
        let (ended, ends) = mpsc::channel();
        let threads: Vec<_> = members
            .into_iter()
            .map(|(mut c, _)| {
                let (told, ended) = (told.clone(), ended.clone());
                thread::spawn(move || {
                    let mut values = vec![1.0; BLOCK_ELEMENTS * 64];
                    let mut rounds = 0u32;
                    let error = loop {
                        match c.all_reduce_sum(&mut values) {
                            Ok(()) => rounds += 1,
                            Err(error) => break error,
                        }
                        if rounds == 2 {
                            told.send(()).unwrap();
                        }
                    };
                    // Its end of the ring goes along: nobody shall wake because a neighbour is gone.
                    ended.send((error, c)).unwrap();
                })
            })
            .collect();
        for _ in 0..3 {
            heard.recv_timeout(PATIENCE).unwrap();
        }
        // How soon is the bench's (`cargo xtask bench ring`); here, that each ends by its own abort.
        handles.iter().for_each(AbortHandle::abort);
        let ended: Vec<_> = (0..3).map(|_| ends.recv_timeout(PATIENCE).unwrap()).collect();
        for (error, _) in &ended {
            assert!(
                matches!(error, CollectiveError::Aborted | CollectiveError::PeerLost { .. }),
                "{error}"
            );
        }
        threads.into_iter().for_each(|t| t.join().unwrap());
    });
}

#[test]
fn member_that_leaves_in_mid_transfer_ends_the_others() {
    for_each_group(3, |members| {
        let results = all(members, |mut c| {
            if c.rank() == 1 {
                return None; // dropped: its sockets close as those of a killed process do
            }
            let mut values = vec![1.0; BLOCK_ELEMENTS * 64];
            (0..3).find_map(|_| c.all_reduce_sum(&mut values).err())
        });
        assert!(
            matches!(results[0], Some(CollectiveError::PeerLost { .. })),
            "{:?}",
            results[0]
        );
        assert!(
            matches!(results[2], Some(CollectiveError::PeerLost { .. })),
            "{:?}",
            results[2]
        );
    });
}

#[test]
fn frame_of_another_step_is_refused() {
    for_each_group(2, |members| {
        let results = all(members, |mut c| {
            c.begin_step(if c.rank() == 0 { 5 } else { 6 });
            c.all_reduce_sum(&mut [1.0; 40_000]).err()
        });
        let refused = |r: &Option<CollectiveError>| matches!(r, Some(CollectiveError::Frame { error, .. }) if error.to_string().contains("another step"));
        assert!(results.iter().any(refused), "{results:?}");
        assert!(results.iter().all(Option::is_some), "nobody gets a sum: {results:?}");
    });
}

#[test]
fn frame_of_another_generation_plan_or_run_is_refused() {
    for stale in [
        Fence { generation: 1, ..FENCE },
        Fence { plan: 9, ..FENCE },
        Fence { run: 9, ..FENCE },
    ] {
        let results = all(ring_members_fenced(&[FENCE, stale]), |mut c| c.sentinel(true).err());
        assert!(
            results.iter().any(|r| matches!(r, Some(CollectiveError::Frame { .. }))),
            "{results:?}"
        );
        assert!(results.iter().all(Option::is_some), "{results:?}");
    }
}

#[test]
fn call_with_a_wrong_secret_or_for_a_closed_generation_is_refused() {
    let server = PeerServer::start(b"run".to_vec()).unwrap();
    let addr = server.addr();
    let purpose = Purpose::Ring { from_rank: 0 };
    let abort = AbortHandle::new();
    let call = |secret| {
        connect(
            &addr,
            &Hello {
                generation: GENERATION,
                secret,
                purpose,
            },
            None,
            &abort,
        )
    };
    assert!(matches!(
        call(generation_secret(b"run", Generation(1))),
        Err(PeerError::Refused { .. })
    ));
    assert!(matches!(
        call(generation_secret(b"other", GENERATION)),
        Err(PeerError::Refused { .. })
    ));
    assert!(call(generation_secret(b"run", GENERATION)).is_ok());
    server.close(GENERATION);
    assert!(matches!(
        call(generation_secret(b"run", GENERATION)),
        Err(PeerError::Refused { .. })
    ));
}

#[test]
fn waiting_for_a_peer_that_never_comes_ends_with_the_abort() {
    let server = PeerServer::start(b"run".to_vec()).unwrap();
    let abort = AbortHandle::new();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| server.take_ring(GENERATION, 1, &abort).err());
        let calling = scope.spawn(|| {
            let free = std::net::TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap();
            let hello = Hello {
                generation: GENERATION,
                secret: [0; 32],
                purpose: Purpose::Heal,
            };
            connect(&free.to_string(), &hello, None, &abort).err() // nobody listens there any more
        });
        abort.abort();
        assert!(matches!(waiting.join().unwrap(), Some(PeerError::Aborted)));
        assert!(matches!(calling.join().unwrap(), Some(PeerError::Aborted)));
    });
}
