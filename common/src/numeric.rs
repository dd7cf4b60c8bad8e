//! Numeric class: what must be equal for two processes to compute the same bits (rule N2).
//!
//! Travels in the hello as words `key=value`, so that a refusal can name the word that differs.

use crate::config::{Precision, TrainConfig};
use std::fmt;

/// Device, its architecture, libtorch's build, processor capability, threads inside one operation, precision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NumericClass {
    words: Vec<(String, String)>,
}

/// Threads of one tensor operation.
pub const THREADS: &str = "threads";
/// Precision of towers and gradients.
pub const PRECISION: &str = "precision";
/// Where the towers run: `cpu`, or the GPU's architecture and name.
pub const DEVICE: &str = "device";
/// In a hello: the GPU that the process could use.
pub const GPU: &str = "gpu";

impl NumericClass {
    /// A class of these words.
    #[must_use]
    pub fn new<const N: usize>(words: [(&str, String); N]) -> Self {
        // A space would end the word early.
        let word = |(key, value): (&str, String)| (key.to_owned(), value.replace(char::is_whitespace, "_"));
        Self {
            words: words.into_iter().map(word).collect(),
        }
    }

    /// Reads a hello's text; a word without `=` is a key without value.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let word = |w: &str| {
            let (key, value) = w.split_once('=').unwrap_or((w, ""));
            (key.to_owned(), value.to_owned())
        };
        Self {
            words: text.split_whitespace().map(word).collect(),
        }
    }

    /// Sets one word: what the coordinator tells a worker replaces what the worker would do by itself.
    #[must_use]
    pub fn told(mut self, key: &str, value: String) -> Self {
        match self.words.iter_mut().find(|(k, _)| k == key) {
            Some((_, old)) => *old = value,
            None => self.words.push((key.to_owned(), value)),
        }
        self
    }

    /// What a worker that said hello so will be of in a run with these settings: the GPU counts only where the towers run on it,
    /// and `auto` means the one it could use.
    #[must_use]
    pub fn in_run(mut self, train: &TrainConfig) -> Self {
        let gpu = self.get(GPU).unwrap_or("none").to_owned();
        self.words.retain(|(key, _)| key != GPU);
        let device = match train.device.as_str() {
            "cpu" => "cpu".into(),
            // It takes the GPU that the process could use, else the CPU.
            "auto" if gpu == "none" => "cpu".into(),
            _ => gpu,
        };
        let precision = match train.precision {
            Precision::Fp32 => "fp32",
            Precision::AmpBf16 => "amp_bf16",
            Precision::Bf16 => "bf16",
            Precision::PureBf16 => "pure_bf16",
        };
        self.told(DEVICE, device).told(PRECISION, precision.into())
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.words.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// The first word in which `other` differs, in a sentence's part: `threads 4, this run has 2`.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Option<String> {
        let keys = self.words.iter().chain(&other.words).map(|(key, _)| key.as_str());
        keys.into_iter().find(|key| self.get(key) != other.get(key)).map(|key| {
            let say = |class: &Self| class.get(key).unwrap_or("none").to_owned();
            format!("{key} {}, this run has {}", say(other), say(self))
        })
    }
}

impl fmt::Display for NumericClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (key, value)) in self.words.iter().enumerate() {
            let space = if at == 0 { "" } else { " " };
            write!(f, "{space}{key}={value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(threads: &str) -> NumericClass {
        NumericClass::new([
            ("device", "cpu".into()),
            ("libtorch", "2.11.0 x".into()),
            (THREADS, threads.into()),
        ])
    }

    #[test]
    fn numeric_class_in_a_run_has_its_precision_and_the_gpu_only_where_it_is_used() {
        let hello = NumericClass::parse("capability=AVX2 gpu=sm_90_H100");
        let train = |device: &str, precision| TrainConfig {
            device: device.into(),
            precision,
            ..TrainConfig::default()
        };
        let class = |device: &str, precision| hello.clone().in_run(&train(device, precision)).to_string();
        assert_eq!(
            class("cpu", Precision::Fp32),
            "capability=AVX2 device=cpu precision=fp32"
        );
        assert_eq!(
            class("cuda:0", Precision::AmpBf16),
            "capability=AVX2 device=sm_90_H100 precision=amp_bf16"
        );
        assert_eq!(
            class("auto", Precision::Fp32),
            "capability=AVX2 device=sm_90_H100 precision=fp32"
        );
        let bare = NumericClass::parse("capability=AVX2 gpu=none");
        assert_eq!(
            bare.clone().in_run(&train("auto", Precision::Fp32)).to_string(),
            class("cpu", Precision::Fp32)
        );
        let none = bare.in_run(&train("cpu", Precision::Fp32));
        assert_eq!(
            none.difference(&hello.clone().in_run(&train("cpu", Precision::Fp32))),
            None
        );
    }

    #[test]
    fn numeric_class_survives_its_text_and_names_what_differs() {
        let two = class("2");
        assert_eq!(NumericClass::parse(&two.to_string()), two);
        assert_eq!(two.difference(&class("2")), None);
        assert_eq!(
            two.difference(&class("4")).as_deref(),
            Some("threads 4, this run has 2")
        );
        assert_eq!(two.difference(&class("4").told(THREADS, "2".into())), None);
        let more = two.clone().told(PRECISION, "bf16".into());
        assert_eq!(
            two.difference(&more).as_deref(),
            Some("precision bf16, this run has none")
        );
    }
}
