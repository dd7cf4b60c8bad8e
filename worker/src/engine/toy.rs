//! An engine in small whole numbers: every sum is exact in f32, so any split of the rows over any workers must give the
//! same bits. Trainers and collectives are tested with it; it learns nothing.

use super::{
    ApplyHyper, ApplyOut, Encoded, Engine, EngineError, GatheredLse, LossOut, OwnLse, Result, RowsIn, TensorSpec,
    expect_len, hash_state_bytes,
};
use std::collections::BTreeMap;
use xxhash_rust::xxh3::xxh3_64_with_seed;

const DIM: usize = 4;
/// Values wrap here, far below 2^24 where f32 stops holding every whole number.
const WRAP: f32 = 65_521.0;
/// Rows up to which all sums stay exact: `V * 49 * DIM * 2 < 2^24`.
const ROWS_MAX: usize = 40_000;

/// Whole-number stand-in for a model. Its gradient depends on every row, on the order of the gathered features and on
/// every gathered log-sum-exp, so whoever mixes them up gets another state.
#[derive(Debug, Clone)]
pub struct ToyEngine {
    image_size: usize,
    context: usize,
    params: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
    applied: u64,
    grads: Vec<f32>,
    step: Option<ToyStep>,
    parked: BTreeMap<u32, ToyStep>,
    notices: Vec<String>,
}

#[derive(Debug, Clone, Default)]
struct ToyStep {
    digests: Vec<u64>,
    encoded: Encoded,
    own: Option<Vec<u32>>,
    valid_rows: usize,
}

impl ToyEngine {
    /// A toy with `elements` parameters (at least 1) drawn from `seed`.
    #[must_use]
    pub fn new(image_size: usize, context: usize, elements: usize, seed: u64) -> Self {
        let elements = elements.max(1);
        let params = (0..elements as u64)
            .map(|k| (xxh3_64_with_seed(&k.to_le_bytes(), seed) % 1000) as f32)
            .collect();
        Self {
            image_size,
            context,
            params,
            first: vec![0.0; elements],
            second: vec![0.0; elements],
            applied: 0,
            grads: vec![0.0; elements],
            step: None,
            parked: BTreeMap::new(),
            notices: Vec::new(),
        }
    }

    /// The same, with something to tell people.
    #[must_use]
    pub fn with_notice(mut self, sentence: &str) -> Self {
        self.notices.push(sentence.to_owned());
        self
    }

    fn check_rows(&self, rows: &RowsIn<'_>) -> Result<()> {
        expect_len(
            "pixels",
            rows.rows * self.image_size * self.image_size * 3,
            rows.pixels.len(),
        )?;
        expect_len("tokens", rows.rows * self.context, rows.tokens.len())?;
        expect_len("lengths", rows.rows, rows.lengths.len())
    }

    fn image_digests(&self, pixels: &[u8]) -> Vec<u64> {
        let stride = (self.image_size * self.image_size * 3).max(1);
        pixels.chunks(stride).map(|row| xxh3_64_with_seed(row, 1)).collect()
    }

    fn text_digests(&self, tokens: &[i32]) -> Vec<u64> {
        let digest = |row: &[i32]| {
            let bytes: Vec<u8> = row.iter().flat_map(|t| t.to_le_bytes()).collect();
            xxh3_64_with_seed(&bytes, 2)
        };
        tokens.chunks(self.context.max(1)).map(digest).collect()
    }
}

/// `DIM` whole numbers in 0..8 per digest.
fn features(digests: &[u64]) -> Vec<f32> {
    digests
        .iter()
        .flat_map(|d| (0..DIM).map(move |k| ((d >> (3 * k)) & 7) as f32))
        .collect()
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

impl Engine for ToyEngine {
    fn feature_dim(&self) -> usize {
        DIM
    }

    fn image_size(&self) -> usize {
        self.image_size
    }

    fn context_length(&self) -> usize {
        self.context
    }

    fn take_notices(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notices)
    }

    fn logit_scale(&self) -> f64 {
        1.0
    }

    fn encode(&mut self, rows: &RowsIn<'_>, _micro_rows: usize) -> Result<Encoded> {
        self.step = None;
        self.check_rows(rows)?;
        let (images, texts) = (self.image_digests(rows.pixels), self.text_digests(rows.tokens));
        let encoded = Encoded {
            dim: DIM,
            f: features(&images),
            g: features(&texts),
        };
        let digests = images.iter().zip(&texts).map(|(a, b)| a ^ b.rotate_left(32)).collect();
        self.step = Some(ToyStep {
            digests,
            encoded: encoded.clone(),
            own: None,
            valid_rows: 0,
        });
        Ok(encoded)
    }

    fn own_lse(&mut self, own: &[u32], valid_rows: usize, f_all: &[f32], g_all: &[f32]) -> Result<OwnLse> {
        expect_len("f_all", valid_rows * DIM, f_all.len())?;
        expect_len("g_all", valid_rows * DIM, g_all.len())?;
        let step = self
            .step
            .as_mut()
            .ok_or_else(|| EngineError::Protocol("own_lse before encode".into()))?;
        expect_len("own", step.digests.len(), own.len())?;
        if valid_rows > ROWS_MAX {
            return Err(EngineError::Protocol(format!(
                "the toy takes at most {ROWS_MAX} rows, got {valid_rows}"
            )));
        }
        let mut out = OwnLse::default();
        for (k, &i) in own.iter().enumerate() {
            let at = i as usize * DIM..(i as usize + 1) * DIM;
            let (Some(f), Some(g)) = (f_all.get(at.clone()), g_all.get(at)) else {
                return Err(EngineError::Protocol(format!(
                    "own row {i} lies beyond {valid_rows} rows"
                )));
            };
            let mine = k * DIM..(k + 1) * DIM;
            if f != &step.encoded.f[mine.clone()] || g != &step.encoded.g[mine] {
                return Err(EngineError::Protocol(format!(
                    "row {i} of the gathered features is not own row {k}"
                )));
            }
            out.r.push(g_all.chunks(DIM).map(|g| dot(f, g)).sum());
            out.c.push(f_all.chunks(DIM).map(|f| dot(f, g)).sum());
            out.diag.push(dot(f, g));
        }
        step.own = Some(own.to_vec());
        step.valid_rows = valid_rows;
        Ok(out)
    }

    fn loss_backward(&mut self, all: &GatheredLse<'_>) -> Result<LossOut> {
        let step = self
            .step
            .as_ref()
            .ok_or_else(|| EngineError::Protocol("loss_backward before encode".into()))?;
        let own = step
            .own
            .as_ref()
            .ok_or_else(|| EngineError::Protocol("loss_backward before own_lse".into()))?;
        let rows = step.valid_rows;
        for (what, v) in [("r", all.r), ("c", all.c), ("diag", all.diag)] {
            expect_len(what, rows, v.len())?;
        }
        // A digest of all gathered values, the same on every worker; mixes into the gradient what a worker was told.
        let told: u64 = all
            .r
            .iter()
            .chain(all.c)
            .chain(all.diag)
            .zip(1u64..)
            .fold(0, |h, (v, k)| {
                h.wrapping_add(
                    (u64::from(v.to_bits()) ^ k)
                        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                        .rotate_left(17),
                )
            });
        self.grads.fill(0.0);
        for (&digest, &i) in step.digests.iter().zip(own) {
            let seed = digest ^ told ^ u64::from(all.r[i as usize].to_bits());
            for (k, grad) in self.grads.iter_mut().enumerate() {
                *grad += (xxh3_64_with_seed(&(k as u64).to_le_bytes(), seed) % 8) as f32;
            }
        }
        let sum: f64 = (0..rows)
            .map(|i| f64::from(all.r[i] + all.c[i]) - 2.0 * f64::from(all.diag[i]))
            .sum();
        let loss = sum / (2.0 * rows.max(1) as f64) / (1.0 + self.applied as f64);
        Ok(LossOut { loss })
    }

    fn park(&mut self, lane: u32) -> Result<()> {
        let step = self.step.take();
        let step = step.ok_or_else(|| EngineError::Protocol(format!("no step to put aside for lane {lane}")))?;
        self.parked.insert(lane, step);
        Ok(())
    }

    fn resume(&mut self, lane: u32) -> Result<()> {
        let step = self.parked.remove(&lane);
        self.step = Some(step.ok_or_else(|| EngineError::Protocol(format!("nothing was put aside for lane {lane}")))?);
        Ok(())
    }

    fn forget_parked(&mut self) {
        self.parked.clear();
    }

    fn grads_flat(&mut self) -> Result<&mut [f32]> {
        Ok(&mut self.grads)
    }

    fn apply(&mut self, hyper: &ApplyHyper) -> Result<ApplyOut> {
        let norm = self
            .grads
            .iter()
            .map(|g| f64::from(*g) * f64::from(*g))
            .sum::<f64>()
            .sqrt();
        // The rate takes part as a small whole number, so a schedule that differs between workers shows.
        let rate = ((hyper.lr * 1e6).round() as i64).rem_euclid(5) as f32;
        for k in 0..self.params.len() {
            let grad = self.grads[k] % WRAP;
            self.first[k] = (3.0 * self.first[k] + grad) % WRAP;
            self.second[k] = (5.0 * self.second[k] + grad + 1.0) % WRAP;
            self.params[k] = (self.params[k] + self.first[k] + self.second[k] + rate) % WRAP;
        }
        self.applied += 1;
        self.step = None;
        Ok(ApplyOut {
            grad_norm: norm,
            logit_scale: 1.0,
        })
    }

    fn tensor_table(&self) -> Vec<TensorSpec> {
        let len = self.params.len();
        vec![TensorSpec {
            name: "toy".into(),
            shape: vec![len as i64],
            offset: 0,
            len,
        }]
    }

    fn state_elements(&self) -> usize {
        self.params.len()
    }

    fn applied_steps(&self) -> u64 {
        self.applied
    }

    fn export_state(&self, out: &mut Vec<u8>) {
        out.clear();
        for array in [&self.params, &self.first, &self.second] {
            out.extend(array.iter().flat_map(|v| v.to_le_bytes()));
        }
        out.extend(self.applied.to_le_bytes());
    }

    fn import_state(&mut self, bytes: &[u8], expected_hash: Option<u64>) -> Result<()> {
        expect_len("state bytes", self.state_len(), bytes.len())?;
        if expected_hash.is_some_and(|h| h != hash_state_bytes(bytes)) {
            return Err(EngineError::State(
                "the state's hash differs from the one announced; fetch it again".into(),
            ));
        }
        let len = self.params.len();
        let (floats, count) = bytes.split_at(12 * len);
        let values: Vec<f32> = floats.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        self.params.copy_from_slice(&values[..len]);
        self.first.copy_from_slice(&values[len..2 * len]);
        self.second.copy_from_slice(&values[2 * len..]);
        self.applied = count.as_chunks().0.first().map_or(0, |b| u64::from_le_bytes(*b));
        self.step = None;
        Ok(())
    }

    fn state_hash(&self) -> u64 {
        let mut bytes = Vec::with_capacity(self.state_len());
        self.export_state(&mut bytes);
        hash_state_bytes(&bytes)
    }

    fn set_params(&mut self, params: &[f32]) -> Result<()> {
        expect_len("parameters", self.params.len(), params.len())?;
        self.params.copy_from_slice(params);
        self.first.fill(0.0);
        self.second.fill(0.0);
        self.applied = 0;
        Ok(())
    }

    fn encode_images_eval(&mut self, rows: usize, pixels: &[u8], _micro_rows: usize) -> Result<Vec<f32>> {
        expect_len("pixels", rows * self.image_size * self.image_size * 3, pixels.len())?;
        Ok(features(&self.image_digests(pixels)))
    }

    fn encode_text_eval(
        &mut self,
        rows: usize,
        tokens: &[i32],
        lengths: &[u16],
        _micro_rows: usize,
    ) -> Result<Vec<f32>> {
        expect_len("tokens", rows * self.context, tokens.len())?;
        expect_len("lengths", rows, lengths.len())?;
        Ok(features(&self.text_digests(tokens)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYPER: ApplyHyper = ApplyHyper {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.98,
        eps: 1e-6,
        weight_decay: 0.2,
        clip_norm: None,
        ema_decay: None,
    };

    /// One step over 7 rows owned by the given workers; returns the hash of every worker's state.
    fn step(owners: &[Vec<u32>], swap_lse: bool) -> Vec<u64> {
        let (rows, ctx, px) = (7usize, 3usize, 12usize);
        let pixels: Vec<u8> = (0..rows * px).map(|k| (k * 37 % 251) as u8).collect();
        let tokens: Vec<i32> = (0..rows * ctx).map(|k| (k * 11 % 97) as i32).collect();
        let mut engines: Vec<ToyEngine> = owners.iter().map(|_| ToyEngine::new(2, ctx, 33, 5)).collect();
        let (mut f, mut g) = (vec![0.0; rows * DIM], vec![0.0; rows * DIM]);
        for (engine, own) in engines.iter_mut().zip(owners) {
            let pick = |k: &u32| *k as usize;
            let my_pixels: Vec<u8> = own
                .iter()
                .map(pick)
                .flat_map(|k| pixels[k * px..][..px].to_vec())
                .collect();
            let my_tokens: Vec<i32> = own
                .iter()
                .map(pick)
                .flat_map(|k| tokens[k * ctx..][..ctx].to_vec())
                .collect();
            let lengths = vec![3u16; own.len()];
            let out = engine
                .encode(
                    &RowsIn {
                        rows: own.len(),
                        pixels: &my_pixels,
                        tokens: &my_tokens,
                        lengths: &lengths,
                    },
                    usize::MAX,
                )
                .unwrap();
            for (k, i) in own.iter().map(pick).enumerate() {
                f[i * DIM..][..DIM].copy_from_slice(&out.f[k * DIM..][..DIM]);
                g[i * DIM..][..DIM].copy_from_slice(&out.g[k * DIM..][..DIM]);
            }
        }
        let (mut r, mut c, mut diag) = (vec![0.0; rows], vec![0.0; rows], vec![0.0; rows]);
        for (engine, own) in engines.iter_mut().zip(owners) {
            let lse = engine.own_lse(own, rows, &f, &g).unwrap();
            for (k, &i) in own.iter().enumerate() {
                (r[i as usize], c[i as usize], diag[i as usize]) = (lse.r[k], lse.c[k], lse.diag[k]);
            }
        }
        if swap_lse {
            r.swap(0, 1);
        }
        let mut sum = vec![0.0f32; 33];
        for engine in &mut engines {
            engine
                .loss_backward(&GatheredLse {
                    r: &r,
                    c: &c,
                    diag: &diag,
                })
                .unwrap();
            engine
                .grads_flat()
                .unwrap()
                .iter()
                .zip(&mut sum)
                .for_each(|(g, s)| *s += g);
        }
        let apply = |engine: &mut ToyEngine| {
            engine.grads_flat().unwrap().copy_from_slice(&sum);
            engine.apply(&HYPER).unwrap();
            engine.state_hash()
        };
        engines.iter_mut().map(apply).collect()
    }

    #[test]
    fn toy_any_split_of_rows_gives_the_same_bits() {
        let one = step(&[(0..7).collect()], false)[0];
        for owners in [
            vec![vec![0, 1, 2], vec![3, 4, 5, 6]],
            vec![vec![6], vec![], vec![0, 2, 4], vec![1, 3, 5]],
        ] {
            assert!(step(&owners, false).iter().all(|h| *h == one));
        }
        assert_ne!(
            step(&[(0..7).collect()], true)[0],
            one,
            "swapped log-sum-exps must show"
        );
    }

    #[test]
    fn toy_state_round_trip_keeps_the_hash_and_refuses_doctored_bytes() {
        let (mut a, mut b) = (ToyEngine::new(2, 3, 9, 1), ToyEngine::new(2, 3, 9, 2));
        a.grads_flat().unwrap().fill(3.0);
        a.apply(&HYPER).unwrap();
        let mut bytes = Vec::new();
        a.export_state(&mut bytes);
        assert_eq!(bytes.len(), a.state_len());
        let before = b.state_hash();
        bytes[0] ^= 1;
        assert!(b.import_state(&bytes, Some(a.state_hash())).is_err());
        assert_eq!(b.state_hash(), before);
        bytes[0] ^= 1;
        b.import_state(&bytes, Some(a.state_hash())).unwrap();
        assert_eq!((b.state_hash(), b.applied_steps()), (a.state_hash(), 1));
    }
}
