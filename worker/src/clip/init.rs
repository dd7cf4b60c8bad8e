//! Initial weights from a seed: every process draws the same bits, tensor by tensor, whatever the order.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Distribution of a tensor's initial values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// All equal.
    Constant(f64),
    /// Normal around 0 with this standard deviation.
    Normal(f64),
    /// Uniform in `(-bound, bound)`.
    Uniform(f64),
}

impl Init {
    /// PyTorch's default of a linear or convolutional layer, `kaiming_uniform_(a=sqrt(5))` = U(1/sqrt(fan_in)); its
    /// bias has the same bound.
    #[must_use]
    pub fn fan_in(fan_in: i64) -> Self {
        Self::Uniform((fan_in as f64).powf(-0.5))
    }

    /// Fills `out` with values of the tensor `name` under `seed`.
    pub fn fill(self, seed: u64, name: &str, out: &mut [f32]) {
        let key = xxh3_64_with_seed(name.as_bytes(), seed);
        match self {
            Self::Constant(value) => out.fill(value as f32),
            Self::Uniform(bound) => {
                for (i, v) in out.iter_mut().enumerate() {
                    *v = ((2.0 * unit(key, i as u64) - 1.0) * bound) as f32;
                }
            }
            Self::Normal(std) => {
                for (i, pair) in out.chunks_mut(2).enumerate() {
                    let (a, b) = normal_pair(key, i as u64);
                    pair[0] = (a * std) as f32;
                    if let Some(second) = pair.get_mut(1) {
                        *second = (b * std) as f32;
                    }
                }
            }
        }
    }
}

/// SplitMix64's output function over a counter: no state, so any element can be drawn alone.
fn bits(key: u64, counter: u64) -> u64 {
    let mut z = key.wrapping_add(counter.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Uniform in (0, 1), never an end: 52 bits in the middle of their cells (53 would round the last one up to 1).
pub(super) fn unit(key: u64, counter: u64) -> f64 {
    ((bits(key, counter) >> 12) as f64 + 0.5) * (1.0 / (1u64 << 52) as f64)
}

/// Two independent standard normal values (Box and Muller, 1958).
fn normal_pair(key: u64, counter: u64) -> (f64, f64) {
    let radius = (-2.0 * unit(key, 2 * counter).ln()).sqrt();
    let (sin, cos) = (std::f64::consts::TAU * unit(key, 2 * counter + 1)).sin_cos();
    (radius * cos, radius * sin)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(init: Init, seed: u64, name: &str) -> Vec<f32> {
        let mut out = vec![0.0; 100_001];
        init.fill(seed, name, &mut out);
        out
    }

    fn moments(values: &[f32]) -> (f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
        (
            mean,
            (values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n).sqrt(),
        )
    }

    #[test]
    fn init_values_follow_their_distribution() {
        let (mean, std) = moments(&draw(Init::Normal(0.02), 7, "a"));
        assert!(mean.abs() < 3e-4 && (std - 0.02).abs() < 2e-4, "{mean} {std}");
        let uniform = draw(Init::Uniform(0.5), 7, "a");
        let (mean, std) = moments(&uniform);
        assert!(
            mean.abs() < 5e-3 && (std - 0.5 / 3f64.sqrt()).abs() < 2e-3,
            "{mean} {std}"
        );
        assert!(uniform.iter().all(|v| v.abs() <= 0.5));
    }

    #[test]
    fn init_same_seed_and_name_give_the_same_bits_others_do_not() {
        assert_eq!(draw(Init::Normal(1.0), 1, "a"), draw(Init::Normal(1.0), 1, "a"));
        assert_ne!(draw(Init::Normal(1.0), 1, "a"), draw(Init::Normal(1.0), 2, "a"));
        assert_ne!(draw(Init::Normal(1.0), 1, "a"), draw(Init::Normal(1.0), 1, "b"));
    }
}
