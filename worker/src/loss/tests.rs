use super::*;
use tch::Device;

struct Case {
    f: Tensor,
    g: Tensor,
    scale: f64,
}

/// Normalised features from a fixed formula; with `twins` every third row repeats the one before it.
fn case(rows: i64, dim: i64, scale: f64, twins: bool) -> Case {
    let base = Tensor::arange(rows * dim, (Kind::Double, Device::Cpu)).view([rows, dim]);
    let make = |k: f64| {
        let x = (&base * k).sin() + (&base * (k * 0.37)).cos() * 0.5;
        let x = if twins {
            let index: Vec<i64> = (0..rows).map(|i| if i % 3 == 2 { i - 1 } else { i }).collect();
            x.index_select(0, &Tensor::from_slice(&index))
        } else {
            x
        };
        let norm = x.norm_scalaropt_dim(2.0, [-1i64].as_slice(), true);
        x / norm
    };
    Case {
        f: make(1.7).to_kind(Kind::Float),
        g: make(2.9).to_kind(Kind::Float),
        scale,
    }
}

/// Loss and gradients by plain autograd in double precision: both cross-entropies over the full matrix.
fn plain(case: &Case) -> (f64, Tensor, Tensor, f64) {
    let leaf = |x: &Tensor| x.to_kind(Kind::Double).detach().set_requires_grad(true);
    let (f, g) = (leaf(&case.f), leaf(&case.g));
    let log_scale = Tensor::from(case.scale.ln()).set_requires_grad(true);
    let logits = f.matmul(&g.transpose(0, 1)) * log_scale.exp();
    // tch's own cross-entropy would go through single precision.
    let entropy = |dim: i64| (logits.logsumexp([dim].as_slice(), false) - logits.diagonal(0, 0, 1)).mean(Kind::Double);
    let loss = (entropy(1) + entropy(0)) / 2.0;
    loss.backward();
    (
        loss.double_value(&[]),
        f.grad(),
        g.grad(),
        log_scale.grad().double_value(&[]),
    )
}

/// The same by tiles, rows dealt to owners.
fn tiled(case: &Case, owners: &[Vec<u32>], edge: usize, keep: bool) -> (f64, Tensor, Tensor, f64) {
    let rows = case.f.size()[0];
    let zeros = || Tensor::zeros([rows], (Kind::Float, Device::Cpu));
    let (mut r, mut c, mut diag) = (zeros(), zeros(), zeros());
    let mut all = Vec::new();
    for own in owners {
        let (mut state, lse) = OwnRows::begin(&case.f, &case.g, own, case.scale, edge).unwrap();
        if !keep {
            state.tiles.iter_mut().for_each(|t| t.logits = None);
        }
        let index = Tensor::from_slice(&own.iter().map(|i| i64::from(*i)).collect::<Vec<_>>());
        for (into, part) in [(&mut r, &lse.r), (&mut c, &lse.c), (&mut diag, &lse.diag)] {
            let _ = into.index_copy_(0, &index, part);
        }
        all.push((state, index));
    }
    let (mut d_f, mut d_g, mut d_s) = (case.f.zeros_like(), case.g.zeros_like(), 0.0);
    for (mut state, index) in all {
        let grads = state.finish(&r, &c, &diag).unwrap();
        let _ = d_f.index_copy_(0, &index, &grads.d_f);
        let _ = d_g.index_copy_(0, &index, &grads.d_g);
        d_s += grads.d_log_scale;
    }
    let host = |x: &Tensor| Vec::<f32>::try_from(x).unwrap();
    (value(&host(&r), &host(&c)), d_f, d_g, d_s)
}

/// Largest error relative to the size of what is compared: loss, dF, dG, d ln s.
fn worst(case: &Case, owners: &[Vec<u32>], edge: usize, keep: bool) -> f64 {
    let (want, got) = (plain(case), tiled(case, owners, edge, keep));
    let rel = |a: &Tensor, b: &Tensor| {
        let diff = (a.to_kind(Kind::Double) - b).abs().max().double_value(&[]);
        diff / b.abs().max().double_value(&[]).max(1e-6)
    };
    let scalar = |a: f64, b: f64| (a - b).abs() / b.abs().max(1e-2);
    [
        scalar(got.0, want.0),
        rel(&got.1, &want.1),
        rel(&got.2, &want.2),
        scalar(got.3, want.3),
    ]
    .into_iter()
    .fold(0.0, f64::max)
}

fn all_of(rows: u32) -> Vec<Vec<u32>> {
    vec![(0..rows).collect()]
}

#[test]
fn loss_tiles_of_any_edge_equal_plain_autograd() {
    for (rows, edge) in [(12u32, 100), (13, 5), (7, 1), (32, 8), (2, 2)] {
        for keep in [true, false] {
            let error = worst(&case(i64::from(rows), 16, 14.3, false), &all_of(rows), edge, keep);
            assert!(error < 2e-5, "rows {rows} edge {edge} keep {keep}: {error}");
        }
    }
}

#[test]
fn loss_uneven_owners_sum_to_the_whole() {
    let case = case(17, 8, 14.3, false);
    let owners = [
        vec![3, 4, 5],
        vec![],
        vec![0, 1, 2, 9, 10, 11, 12, 13],
        vec![6, 7, 8, 14, 15],
        vec![16],
    ];
    for edge in [3, 64] {
        let error = worst(&case, &owners, edge, true);
        assert!(error < 2e-5, "edge {edge}: {error}");
    }
}

#[test]
fn loss_at_the_clamped_scale_and_with_duplicate_rows_stays_exact() {
    let error = worst(
        &case(18, 8, 100.0, true),
        &[vec![0, 1, 2, 3], (4..18).collect()],
        5,
        true,
    );
    assert!(error < 1e-4, "{error}");
    let error = worst(&case(18, 8, 1.0, true), &all_of(18), 5, true);
    assert!(error < 2e-5, "{error}");
}

/// Each text is its image with a little of something else: what trained towers give.
fn learned(rows: i64, dim: i64, scale: f64, noise: f64) -> Case {
    let Case { f, g, scale } = case(rows, dim, scale, false);
    let g = &f + g * noise;
    let norm = g.norm_scalaropt_dim(2.0, [-1i64].as_slice(), true);
    Case { f, g: g / norm, scale }
}

/// As `worst` without floors, however small loss and gradient are: loss, dF, dG, d ln s.
fn relative(case: &Case, owners: &[Vec<u32>], edge: usize) -> [f64; 4] {
    let (want, got) = (plain(case), tiled(case, owners, edge, true));
    let norm = |x: &Tensor| x.norm().double_value(&[]);
    let rel = |a: &Tensor, b: &Tensor| norm(&(a.to_kind(Kind::Double) - b)) / norm(b);
    let scalar = |a: f64, b: f64| ((a - b) / b).abs();
    [
        scalar(got.0, want.0),
        rel(&got.1, &want.1),
        rel(&got.2, &want.2),
        scalar(got.3, want.3),
    ]
}

#[test]
fn loss_of_learned_rows_at_the_clamped_scale_keeps_the_gradients_digits() {
    for (rows, dim, noise) in [(8u32, 16, 0.05), (32, 16, 0.1), (18, 8, 0.1)] {
        let case = learned(i64::from(rows), dim, 100.0, noise);
        for (owners, edge) in [
            (all_of(rows), 100),
            (vec![vec![1], vec![], vec![0], (2..rows).collect()], 5),
        ] {
            let errors = relative(&case, &owners, edge);
            let loss = plain(&case).0;
            assert!(loss < 0.05, "rows {rows}: {loss} is not learned");
            assert!(
                errors.iter().all(|e| *e < 1e-4),
                "rows {rows} edge {edge} loss {loss:e}: {errors:?}"
            );
        }
    }
}

#[test]
fn loss_of_few_alike_or_doubled_rows_keeps_the_gradients_digits() {
    for (rows, scale, noise) in [
        (2u32, 14.3, 0.1),
        (8, 14.3, 0.1),
        (8, 1.0, 0.1),
        (64, 14.3, 0.1),
        (9, 100.0, 3.0),
    ] {
        let mut case = learned(i64::from(rows), 16, scale, noise);
        for doubled in [false, true] {
            if doubled {
                let index: Vec<i64> = (0..i64::from(rows)).map(|i| i - i % 2).collect();
                case.g = case.g.index_select(0, &Tensor::from_slice(&index));
            }
            let errors = relative(&case, &[vec![0], (1..rows).collect()], 3);
            assert!(
                errors.iter().all(|e| *e < 2e-5),
                "rows {rows} scale {scale} doubled {doubled}: {errors:?}"
            );
        }
    }
}

#[test]
fn loss_single_row_is_zero_with_zero_gradient() {
    let got = tiled(&case(1, 4, 14.3, false), &all_of(1), 8, true);
    assert!(got.0.abs() < 1e-6 && got.3.abs() < 1e-5, "{got:?}");
    assert!(got.1.abs().max().double_value(&[]) < 1e-5);
}

#[test]
fn loss_planted_wrong_formulas_are_caught_by_the_comparison() {
    let case = case(12, 16, 14.3, false);
    let want = plain(&case);
    let got = tiled(&case, &[vec![0, 1, 2], (3..12).collect()], 100, true);
    let far = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]) / b.abs().max().double_value(&[]) > 1e-2;
    assert!(!far(&got.1.to_kind(Kind::Double), &want.1));
    // Without the half: twice the attraction's counterweight. Mean of means: each owner divided by its own rows.
    assert!(far(&(got.1.to_kind(Kind::Double) * 2.0), &want.1));
    let mean_of_means = got.1.to_kind(Kind::Double);
    let _ = mean_of_means.narrow(0, 0, 3).f_mul_scalar_(12.0 / 3.0 / 2.0).unwrap();
    let _ = mean_of_means.narrow(0, 3, 9).f_mul_scalar_(12.0 / 9.0 / 2.0).unwrap();
    assert!(far(&mean_of_means, &want.1));
}

#[test]
fn loss_own_row_doubled_or_beyond_is_refused() {
    let case = case(4, 4, 1.0, false);
    for own in [vec![1, 1], vec![4]] {
        assert!(OwnRows::begin(&case.f, &case.g, &own, 1.0, 8).is_err());
    }
}

/// Sigmoid loss and gradients by plain autograd in double precision (`SigLipLoss`): loss, dF, dG, d ln s, d b.
fn plain_sigmoid(case: &Case, bias: f64) -> (f64, Tensor, Tensor, f64, f64) {
    let leaf = |x: &Tensor| x.to_kind(Kind::Double).detach().set_requires_grad(true);
    let (f, g) = (leaf(&case.f), leaf(&case.g));
    let log_scale = Tensor::from(case.scale.ln()).set_requires_grad(true);
    let shift = Tensor::from(bias).set_requires_grad(true);
    let rows = f.size()[0];
    let signs = Tensor::eye(rows, (Kind::Double, Device::Cpu)) * 2.0 - 1.0;
    let logits = f.matmul(&g.transpose(0, 1)) * log_scale.exp() + &shift;
    let loss = (signs * logits).log_sigmoid().sum(Kind::Double) / (-rows as f64);
    loss.backward();
    let scalar = |x: &Tensor| x.double_value(&[]);
    (
        scalar(&loss),
        f.grad(),
        g.grad(),
        scalar(&log_scale.grad()),
        scalar(&shift.grad()),
    )
}

/// How far single precision may be off the double one, relative: a logit is as large as the scale, so its rounding is some units
/// in the last place of that; the exponential turns it into as much of a weight, and sums of `V` weights share it. The formulas
/// themselves are held to a millionth in double precision below.
fn single_precision(scale: f64) -> f64 {
    2e-6 + 6.0 * scale * f64::from(f32::EPSILON)
}

/// The sigmoid loss by tiles in single precision, rows dealt to owners: loss, dF, dG, d ln s, d b.
fn tiled_sigmoid(case: &Case, bias: f64, owners: &[Vec<u32>], edge: usize) -> (f64, Tensor, Tensor, f64, f64) {
    let (d_f, d_g) = (case.f.zeros_like(), case.g.zeros_like());
    let (mut loss, mut d_s, mut d_b) = (0.0, 0.0, 0.0);
    for own in owners {
        let index = Tensor::from_slice(&own.iter().map(|i| i64::from(*i)).collect::<Vec<_>>());
        let done = sigmoid(&case.f, &case.g, own, case.scale, bias, edge).unwrap();
        for (into, part) in [(&d_f, &done.grads.d_f), (&d_g, &done.grads.d_g)] {
            let _ = into.shallow_clone().index_copy_(0, &index, part);
        }
        loss += done.rows.sum(Kind::Double).double_value(&[]) / case.f.size()[0] as f64;
        d_s += done.grads.d_log_scale;
        d_b += done.d_bias;
    }
    (loss, d_f, d_g, d_s, d_b)
}

#[test]
fn sigmoid_loss_in_single_precision_has_autograds_gradient_to_its_rounding() {
    let owners = [vec![3, 4, 5], vec![], (0..3).collect(), (6..17).collect()];
    for (made, bias) in [
        (case(17, 16, 10.0, false), -10.0),
        (case(17, 16, 14.3, true), -3.0),
        (case(17, 8, 100.0, false), -10.0),
        (learned(17, 16, 10.0, 0.1), -10.0),
        (learned(17, 16, 100.0, 0.1), -20.0),
        (case(17, 8, 1.0, false), 0.0),
    ] {
        for edge in [3, 64] {
            let (want, got) = (plain_sigmoid(&made, bias), tiled_sigmoid(&made, bias, &owners, edge));
            let scalar = |a: f64, b: f64| (a - b).abs() / b.abs();
            let tensor = |a: &Tensor, b: &Tensor| close(&a.to_kind(Kind::Double), b, 0.0);
            let errors = [
                scalar(got.0, want.0),
                tensor(&got.1, &want.1),
                tensor(&got.2, &want.2),
                scalar(got.3, want.3),
                scalar(got.4, want.4),
            ];
            let bound = single_precision(made.scale);
            assert!(
                errors.iter().all(|e| *e < bound),
                "scale {}, edge {edge}: {errors:?}, {bound:e} allowed",
                made.scale
            );
        }
    }
}

/// Small numbers from a counter: reproducible shapes for the properties below.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

/// A case in double precision with rows dealt at random; every third is learned, every third has twins.
fn rolled(dice: &mut Dice) -> (Case, Vec<Vec<u32>>, usize) {
    let (rows, dim) = (1 + dice.roll(24) as i64, 2 + dice.roll(20) as i64);
    let scale = [1.0, 14.3, 100.0][dice.roll(3) as usize];
    let made = match dice.roll(3) {
        0 => learned(rows, dim, scale, 0.3),
        1 => case(rows, dim, scale, true),
        _ => case(rows, dim, scale, false),
    };
    let double = |x: &Tensor| {
        let x = x.to_kind(Kind::Double);
        let norm = x.norm_scalaropt_dim(2.0, [-1i64].as_slice(), true);
        x / norm
    };
    let case = Case {
        f: double(&made.f),
        g: double(&made.g),
        scale,
    };
    let mut owners = vec![Vec::new(); 1 + dice.roll(4) as usize];
    for row in 0..rows as u32 {
        let owner = dice.roll(owners.len() as u64) as usize;
        owners[owner].push(row);
    }
    (case, owners, 1 + dice.roll(30) as usize)
}

/// `|a - b|` over `|b|` with a floor for what is zero but for rounding.
fn close(a: &Tensor, b: &Tensor, floor: f64) -> f64 {
    let norm = |x: &Tensor| x.norm().double_value(&[]);
    norm(&(a - b)) / norm(b).max(floor)
}

#[test]
fn loss_of_any_shape_owners_and_tiles_has_autograds_gradient_to_a_millionth() {
    let mut dice = Dice(4);
    for round in 0..200 {
        let (case, owners, edge) = rolled(&mut dice);
        let rows = case.f.size()[0];
        let (softmax, sigmoid_want) = (plain(&case), plain_sigmoid(&case, -3.0));
        let vector = || Tensor::zeros([rows], (Kind::Double, Device::Cpu));
        let (r, c, diag) = (vector(), vector(), vector());
        let (d_f, d_g, mut d_s) = (case.f.zeros_like(), case.g.zeros_like(), 0.0);
        let (s_f, s_g, mut s_s, mut s_b, mut s_loss) = (case.f.zeros_like(), case.g.zeros_like(), 0.0, 0.0, 0.0);
        let mut begun = Vec::new();
        for own in &owners {
            let index = Tensor::from_slice(&own.iter().map(|i| i64::from(*i)).collect::<Vec<_>>());
            let put = |into: &Tensor, part: &Tensor| drop(into.shallow_clone().index_copy_(0, &index, part));
            let (state, lse) = OwnRows::begin(&case.f, &case.g, own, case.scale, edge).unwrap();
            put(&r, &lse.r);
            put(&c, &lse.c);
            put(&diag, &lse.diag);
            let done = sigmoid(&case.f, &case.g, own, case.scale, -3.0, edge).unwrap();
            put(&s_f, &done.grads.d_f);
            put(&s_g, &done.grads.d_g);
            s_s += done.grads.d_log_scale;
            s_b += done.d_bias;
            s_loss += done.rows.sum(Kind::Double).double_value(&[]) / rows as f64;
            begun.push((state, index));
        }
        for (mut state, index) in begun {
            let grads = state.finish(&r, &c, &diag).unwrap();
            let put = |into: &Tensor, part: &Tensor| drop(into.shallow_clone().index_copy_(0, &index, part));
            put(&d_f, &grads.d_f);
            put(&d_g, &grads.d_g);
            d_s += grads.d_log_scale;
        }
        let what = format!(
            "SEED loss 4 round {round}: {rows} rows, edge {edge}, scale {}",
            case.scale
        );
        let loss = (&r + &c).sum(Kind::Double).double_value(&[]) / (2.0 * rows as f64);
        // A batch of one row, or of twins alone, has gradients that are zero but for rounding.
        let floor = 1e-6;
        for (name, error) in [
            ("loss", (loss - softmax.0).abs() / softmax.0.max(floor)),
            ("dF", close(&d_f, &softmax.1, floor)),
            ("dG", close(&d_g, &softmax.2, floor)),
            ("d ln s", (d_s - softmax.3).abs() / softmax.3.abs().max(floor)),
            (
                "sigmoid loss",
                (s_loss - sigmoid_want.0).abs() / sigmoid_want.0.max(floor),
            ),
            ("sigmoid dF", close(&s_f, &sigmoid_want.1, floor)),
            ("sigmoid dG", close(&s_g, &sigmoid_want.2, floor)),
            (
                "sigmoid d ln s",
                (s_s - sigmoid_want.3).abs() / sigmoid_want.3.abs().max(floor),
            ),
            (
                "sigmoid d b",
                (s_b - sigmoid_want.4).abs() / sigmoid_want.4.abs().max(floor),
            ),
        ] {
            assert!(error < 1e-6, "{what}: {name} is {error:e} off");
        }
    }
}

#[test]
fn loss_of_no_rows_at_all_is_nothing() {
    let empty = Tensor::zeros([0, 4], (Kind::Float, Device::Cpu));
    let (mut state, lse) = OwnRows::begin(&empty, &empty, &[], 1.0, 8).unwrap();
    assert_eq!(lse.r.numel(), 0);
    let grads = state.finish(&lse.r, &lse.c, &lse.diag).unwrap();
    assert_eq!((grads.d_f.numel(), grads.d_log_scale), (0, 0.0));
}

#[test]
#[ignore = "computes a batch of 32768 rows: about a minute on two cores"]
fn loss_of_32768_rows_needs_less_than_a_twentieth_of_the_matrix() {
    argosy_torch_ext::pool_install();
    let rows = 32_768u32;
    let random = || {
        let x = Tensor::randn([i64::from(rows), 512], (Kind::Float, Device::Cpu));
        let norm = x.norm_scalaropt_dim(2.0, [-1i64].as_slice(), true);
        x / norm
    };
    let (f, g) = (random(), random());
    let own: Vec<u32> = (0..rows).collect();
    let (before, _) = argosy_torch_ext::pool_stats(true);
    let (mut state, lse) = OwnRows::begin(&f, &g, &own, 14.3, 1024).unwrap();
    state.finish(&lse.r, &lse.c, &lse.diag).unwrap();
    let extra = argosy_torch_ext::pool_stats(false).1 - before;
    assert!(extra < 215_000_000, "{extra} bytes beside the features");
}
