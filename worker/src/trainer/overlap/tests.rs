use super::*;
use crate::clip::ModelConfig;
use crate::clip::locks::Locks;
use crate::collective::{Result as Collected, Sentinel, local};
use crate::engine::{RowsIn, TorchEngine, TorchOptions};
use std::collections::BTreeSet;

const CONTEXT: usize = 9;
const IMAGE: usize = 16;
/// More rows of the token table than captions reach.
const VOCABULARY: i32 = 96;

/// Twelve blocks of the flat order, so that blocks of the towers lie across the buckets' edges.
fn engine(locked_image: bool) -> TorchEngine {
    let text = format!(
        r#"{{"embed_dim": 16, "vision_cfg": {{"image_size": {IMAGE}, "layers": 3, "width": 64, "head_width": 32,
        "patch_size": 8}}, "text_cfg": {{"context_length": {CONTEXT}, "vocab_size": {VOCABULARY}, "width": 32, "heads": 2,
        "layers": 2}}}}"#
    );
    let (config, preprocess) = ModelConfig::from_json(&text).unwrap();
    let options = TorchOptions {
        seed: 4,
        locks: Locks {
            image: locked_image.then_some(0),
            ..Locks::default()
        },
        ..TorchOptions::default()
    };
    TorchEngine::new(&config, &preprocess, options).unwrap()
}

/// Everybody's log-sum-exps, and the rows of the token table that anybody reached.
struct Gathered {
    r: Vec<f32>,
    c: Vec<f32>,
    diag: Vec<f32>,
    union: Vec<u32>,
}

impl Gathered {
    fn view(&self) -> GatheredLse<'_> {
        GatheredLse {
            r: &self.r,
            c: &self.c,
            diag: &self.diag,
        }
    }
}

/// ENCODE to LOSS of a step whose row `i` belongs to the worker that `dealt` names; only BACKWARD is left.
fn begin(workers: &mut [TorchEngine], dealt: &[Vec<u32>]) -> Gathered {
    let total: usize = dealt.iter().map(Vec::len).sum();
    let (mut f, mut g) = (vec![0.0; total * 16], vec![0.0; total * 16]);
    let mut union = BTreeSet::new();
    for (worker, own) in workers.iter_mut().zip(dealt) {
        let bytes = IMAGE * IMAGE * 3;
        let pixel = |row: u32, k: usize| (row as usize * 53 + k * (row as usize + 3)) as u8;
        let pixels: Vec<u8> = own
            .iter()
            .flat_map(|row| (0..bytes).map(move |k| pixel(*row, k)))
            .collect();
        let lengths: Vec<u16> = own.iter().map(|row| 3 + (row % 6) as u16).collect();
        let mut tokens = Vec::new();
        for (row, len) in own.iter().zip(&lengths) {
            let id = |k: i32| 1 + (*row as i32 * 7 + k * 5) % 60;
            let mut ids: Vec<i32> = (0..i32::from(*len)).map(id).collect();
            ids[usize::from(*len) - 1] = VOCABULARY - 1;
            ids.resize(CONTEXT, 0);
            tokens.extend(ids);
        }
        let rows = RowsIn {
            rows: own.len(),
            pixels: &pixels,
            tokens: &tokens,
            lengths: &lengths,
        };
        let out = worker.encode(&rows, usize::MAX).unwrap();
        union.extend(worker.touched_rows().iter().copied());
        for (k, row) in own.iter().enumerate() {
            let (into, from) = (*row as usize * 16, k * 16);
            f[into..into + 16].copy_from_slice(&out.f[from..from + 16]);
            g[into..into + 16].copy_from_slice(&out.g[from..from + 16]);
        }
    }
    let mut all = Gathered {
        r: vec![0.0; total],
        c: vec![0.0; total],
        diag: vec![0.0; total],
        union: union.into_iter().collect(),
    };
    for (worker, own) in workers.iter_mut().zip(dealt) {
        let lse = worker.own_lse(own, total, &f, &g).unwrap();
        for (k, row) in own.iter().enumerate() {
            let row = *row as usize;
            (all.r[row], all.c[row], all.diag[row]) = (lse.r[k], lse.c[k], lse.diag[k]);
        }
    }
    all
}

/// What each worker keeps from step to step.
type Kept = (Vec<Vec<f32>>, Vec<f32>);

/// BACKWARD and REDUCE by all workers at once, each on a thread.
fn reduce(workers: &mut [TorchEngine], all: &Gathered, kept: &mut [Kept]) {
    let handles: Vec<AbortHandle> = workers.iter().map(|_| AbortHandle::new()).collect();
    let members = local::connect(&handles);
    std::thread::scope(|scope| {
        for (((engine, mut member), abort), (pieces, rows)) in workers.iter_mut().zip(members).zip(&handles).zip(kept) {
            scope.spawn(move || {
                let (_, finite, late) =
                    backward_and_reduce(engine, (&mut member, abort), &all.view(), BLOCK_ELEMENTS, pieces).unwrap();
                assert!(finite);
                reduce_rest(engine, &mut member, &all.union, late, rows).unwrap();
            });
        }
    });
}

/// Sums in rank order, as the collective of one process makes them.
fn plain_sum(workers: &mut [TorchEngine], all: &Gathered) -> Vec<f32> {
    let mut sum = vec![0.0f32; workers[0].state_elements()];
    for worker in workers {
        worker.loss_backward(&all.view()).unwrap();
        let own = worker.grads_flat().unwrap();
        sum.iter_mut().zip(own).for_each(|(sum, own)| *sum += *own);
    }
    sum
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn gradient_reduced_in_buckets_beside_the_way_back_is_the_plain_sum() {
    let deals: [Vec<Vec<u32>>; 3] = [
        vec![vec![0, 1, 5], vec![2, 3, 4, 6, 7]],
        vec![vec![3, 4], (0..3).collect(), (5..9).collect()],
        vec![vec![1, 2, 0], vec![], vec![3, 4, 5]],
    ];
    for locked in [false, true] {
        for dealt in &deals {
            let mut workers: Vec<TorchEngine> = dealt.iter().map(|_| engine(locked)).collect();
            let all = begin(&mut workers, dealt);
            let want = plain_sum(&mut workers, &all);
            // What the case is meant to hold.
            let table = workers[0].sparse_table().unwrap();
            let specs = workers[0].tensor_table();
            assert!(table.offset > 0 && all.union.len() < table.rows);
            let late = (table.offset + table.rows * table.width).next_multiple_of(BLOCK_ELEMENTS);
            let cut = buckets(&specs, late, BLOCK_ELEMENTS);
            let across = |edge: usize| specs.iter().any(|s| s.offset < edge && edge < s.offset + s.len);
            assert!(
                cut.len() > 8 && cut.iter().filter(|b| across(b.start)).count() > 3,
                "{cut:?}"
            );

            assert_eq!(bits(&begin(&mut workers, dealt).r), bits(&all.r), "the same step again");
            let mut kept = vec![Kept::default(); workers.len()];
            reduce(&mut workers, &all, &mut kept);
            for (rank, worker) in workers.iter_mut().enumerate() {
                let got = worker.grads_flat().unwrap();
                // Sums inside one worker may be split otherwise when others work beside it; a value that is missing or
                // counted twice is far off.
                let apart = |(a, b): (&f32, &f32)| (a - b).abs() > 1e-5 * b.abs().max(1e-2);
                let far = got.iter().zip(&want).position(apart);
                assert_eq!(
                    far.map(|at| (at, got[at], want[at])),
                    None,
                    "rank {rank} of {}, image tower locked: {locked}",
                    dealt.len()
                );
            }
        }
    }
}

#[test]
fn memory_of_pieces_stays_that_of_the_buckets_whoever_tells_of_them() {
    let dealt = [vec![0, 2], vec![1, 3, 4]];
    // Of a locked tower nobody tells; without the lock, of what belongs to no block.
    for locked in [true, false] {
        let mut workers = vec![engine(locked), engine(locked)];
        let mut kept = vec![Kept::default(); 2];
        for step in 0..20 {
            let all = begin(&mut workers, &dealt);
            reduce(&mut workers, &all, &mut kept);
            let table = workers[0].sparse_table().unwrap();
            let late = (table.offset + table.rows * table.width).next_multiple_of(BLOCK_ELEMENTS);
            let buckets = buckets(&workers[0].tensor_table(), late, BLOCK_ELEMENTS).len();
            for (pieces, _) in &kept {
                assert!(pieces.len() <= buckets, "step {step}: {} of {buckets}", pieces.len());
            }
        }
    }
}

#[test]
fn backward_of_an_aborted_generation_ends_before_the_towers_are_through() {
    let dealt = [(0..5).collect::<Vec<u32>>()];
    let mut workers = vec![engine(false)];
    let all = begin(&mut workers, &dealt);
    let abort = AbortHandle::new();
    let mut alone = local::connect(std::slice::from_ref(&abort)).remove(0);
    abort.abort();
    let spec = workers[0].tensor_table().pop().unwrap();
    let place = spec.offset..spec.offset + spec.len;
    assert!(spec.name.starts_with("visual."), "{}", spec.name);
    workers[0].grads_flat().unwrap()[place.clone()].fill(7.0);
    let halt = backward_and_reduce(
        &mut workers[0],
        (&mut alone, &abort),
        &all.view(),
        BLOCK_ELEMENTS,
        &mut Vec::new(),
    );
    assert!(matches!(halt, Err(Halt::Left(None))), "{halt:?}");
    let untouched = |engine: &mut TorchEngine| engine.grads_flat().unwrap()[place.clone()].iter().all(|g| *g == 7.0);
    assert!(untouched(&mut workers[0]), "the image tower went back all the same");
    // A lone worker, and one that works lane by lane, hears of it too.
    let all = begin(&mut workers, &dealt);
    let ended = workers[0].loss_backward_overlapped(&all.view(), &mut unless_aborted(&abort));
    assert!(matches!(ended, Err(EngineError::GivenUp)) && untouched(&mut workers[0]));
    // Nothing is lost: the step begins again and gives its gradient.
    let all = begin(&mut workers, &dealt);
    workers[0]
        .loss_backward_overlapped(&all.view(), &mut unless_aborted(&AbortHandle::new()))
        .unwrap();
    assert!(!untouched(&mut workers[0]));
}

/// Breaks at the first sum.
#[derive(Debug)]
struct Broken;

impl Collective for Broken {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        2
    }

    fn begin_step(&mut self, _step: u64) {}

    fn all_gather(&mut self, _mine: &[u8], _lens: &[usize], _out: &mut [u8]) -> Collected<()> {
        lost()
    }

    fn all_reduce_sum(&mut self, _values: &mut [f32]) -> Collected<()> {
        lost()
    }

    fn reduce_scatter_sum(&mut self, _values: &mut [f32]) -> Collected<Range<usize>> {
        lost()
    }

    fn all_gather_chunks(&mut self, _values: &mut [f32]) -> Collected<()> {
        lost()
    }

    fn broadcast(&mut self, _root: usize, _bytes: &mut [u8]) -> Collected<()> {
        lost()
    }

    fn sentinel(&mut self, _finite: bool) -> Collected<Sentinel> {
        lost()
    }
}

fn lost<T>() -> Collected<T> {
    let why = "it closed the connection".into();
    Err(CollectiveError::PeerLost { rank: 1, why })
}

#[test]
fn sum_that_fails_is_known_to_the_way_back_and_names_the_lost_link() {
    let (pieces, taken) = channel();
    let (summed, _sums) = channel();
    let failed = AtomicBool::new(false);
    pieces.send((0..2, vec![1.0, 2.0])).unwrap();
    // The sender is still there: it ends because of the error alone.
    let ended = sum_pieces(&mut Broken, &taken, &summed, &failed);
    assert!(matches!(ended, Err(CollectiveError::PeerLost { rank: 1, .. })));
    assert!(gives_up(&failed, &AbortHandle::new()));
    assert!(!gives_up(&AtomicBool::new(false), &AbortHandle::new()));

    let mut workers = vec![engine(false)];
    let all = begin(&mut workers, &[vec![0, 1, 2]]);
    let halt = backward_and_reduce(
        &mut workers[0],
        (&mut Broken, &AbortHandle::new()),
        &all.view(),
        BLOCK_ELEMENTS,
        &mut Vec::new(),
    );
    let Err(Halt::Left(Some(cause))) = &halt else {
        panic!("{halt:?}")
    };
    assert_eq!(cause.lost, Some(1), "{cause:?}");
}
