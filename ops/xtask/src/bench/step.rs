//! A training step on the CPU against OpenCLIP's: same model, batch, captions and threads.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Bench, Better, Bound, Measure, Session};

pub(crate) const FP32: Bench = Bench {
    name: "step-fp32",
    about: "A training step of ViT-B/32 in fp32, batches of 16 and 64",
    run: |session| large(session, "fp32"),
};

pub(crate) const BF16: Bench = Bench {
    name: "step-bf16",
    about: "The same under bf16 autocast",
    run: |session| large(session, "bf16"),
};

pub(crate) const SMALL: Bench = Bench {
    name: "step-small",
    about: "A training step of a small ViT, where overhead counts",
    run: small,
};

/// A batch, and the steps of either side that one round times.
struct Load {
    batch: u32,
    steps: u32,
}

/// How far loss (times `max(1, loss)`) and gradient norm (times itself) of the first step may lie apart. In fp32 rule P2 has
/// them; under autocast each of some hundred products rounds to eight bits, in another order on either side.
struct Near {
    loss: f64,
    grad_norm: f64,
}

impl Near {
    fn of(precision: &str) -> Self {
        match precision {
            "fp32" => Self {
                loss: 4e-6,
                grad_norm: 1e-4,
            },
            _ => Self {
                loss: 2e-2,
                grad_norm: 5e-2,
            },
        }
    }

    /// Refuses a race of two sides that do not compute the same.
    fn check(&self, ours: &Value, peer: &Value) -> Result<()> {
        let number = |value: &Value, key: &str| value[key].as_f64().with_context(|| format!("no {key} in the result"));
        let (loss, want) = (number(ours, "first_loss")?, number(peer, "loss")?);
        ensure!(
            (loss - want).abs() <= self.loss * want.abs().max(1.0),
            "the first loss is {loss}, OpenCLIP's on the same weights, pictures and ids {want}: no race"
        );
        let (norm, want) = (number(ours, "first_grad_norm")?, number(peer, "grad_norm")?);
        ensure!(
            (norm - want).abs() <= self.grad_norm * want,
            "the first gradient's norm is {norm}, OpenCLIP's on the same weights, pictures and ids {want}: no race"
        );
        Ok(())
    }
}

/// Width 192 and pictures of 64 px; a tower of twelve layers beside a text tower of the same width.
const SMALL_CONFIG: &str = r#"{
  "embed_dim": 192,
  "vision_cfg": {"image_size": 64, "layers": 12, "width": 192, "patch_size": 16},
  "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 192, "heads": 3, "layers": 6}
}
"#;

fn large(session: &mut Session<'_>, precision: &str) -> Result<()> {
    for load in [Load { batch: 16, steps: 3 }, Load { batch: 64, steps: 1 }] {
        let label = format!("ViT-B/32, {precision}, batch {}", load.batch);
        race(session, label, 1.5, &["--model", "ViT-B-32"], precision, &load)?;
    }
    close(session)
}

fn small(session: &mut Session<'_>) -> Result<()> {
    let config = session.workspace()?.join("small-192.json");
    fs::write(&config, SMALL_CONFIG).with_context(|| format!("cannot write {}", config.display()))?;
    let config = config.to_string_lossy().into_owned();
    let model = ["--config", &config, "--model", "small-192"];
    for batch in [16, 64] {
        let load = Load { batch, steps: 21 };
        race(
            session,
            format!("width 192, 64 px, fp32, batch {batch}"),
            2.0,
            &model,
            "fp32",
            &load,
        )?;
    }
    close(session)
}

fn close(session: &mut Session<'_>) -> Result<()> {
    session.note(
        "Forward, loss, backward and AdamW on random pictures and captions of 8 to 40 ids, two threads each; ours as a worker \
         makes them, from one report to the next, with gathers, checks and the step log. A round is the median of an odd \
         number of steps of one process after a first that does not count. Loss and gradient norm of ours before the first \
         update, on OpenCLIP's weights, pictures and ids, were those of OpenCLIP (in fp32 within 4e-6 and 1e-4, in bf16 within \
         2e-2 and 5e-2) in every round.",
    );
    Ok(())
}

fn race(
    session: &mut Session<'_>,
    label: String,
    bound: f64,
    model: &[&str],
    precision: &str,
    load: &Load,
) -> Result<()> {
    let example = session.build("argosy-worker", ["--example", "bench_step"])?;
    session.peers_python()?;
    let captions = captions(&session.workspace()?)?;
    let measure = Measure {
        label,
        unit: "samples/s",
        better: Better::Higher,
        bound: Some(Bound::AtLeast(bound)),
    };
    let with = |mut command: Command| {
        command
            .args(model)
            .args([
                "--batch",
                &load.batch.to_string(),
                "--precision",
                precision,
                "--threads",
                "2",
            ])
            .arg("--captions")
            .arg(&captions);
        command
    };
    let inputs = session.workspace()?.join("inputs");
    let first = session.json(with(session.peer("first_step.py")?).arg("--out").arg(&inputs))?;
    let near = Near::of(precision);
    let timed = |session: &Session<'_>, command: Command| {
        session.json(with(command).args(["--steps", &load.steps.to_string()]))
    };
    let rate = |value: &Value| {
        let rate = value["samples_per_second"].as_f64();
        rate.context("no samples_per_second in the result")
    };
    session.race(
        measure,
        "open_clip",
        |session| {
            let mut command = Command::new(&example);
            command.arg("--inputs").arg(&inputs);
            let value = timed(session, command)?;
            near.check(&value, &first)?;
            rate(&value)
        },
        |session| rate(&timed(session, session.peer("step.py")?)?),
    )
}

/// Captions whose ids number 8 to 40 evenly, the start and the end among them: words of one id each.
pub(super) fn captions(folder: &Path) -> Result<PathBuf> {
    const WORDS: [&str; 24] = [
        "street", "horse", "fish", "green", "dog", "tree", "ball", "small", "rain", "red", "house", "roof", "stone",
        "large", "beach", "wall", "river", "snow", "blue", "field", "plate", "bird", "door", "garden",
    ];
    let mut text = String::new();
    let mut state = 7u64;
    let mut draw = |below: usize| {
        // Knuth's multiplier; the high bits are the good ones.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for _ in 0..256 {
        let words: Vec<&str> = (0..6 + draw(33)).map(|_| WORDS[draw(WORDS.len())]).collect();
        text += &words.join(" ");
        text.push('\n');
    }
    let path = folder.join("captions.txt");
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn race_of_two_sides_that_compute_something_else_is_refused() {
        let peer = serde_json::json!({"loss": 2.5, "grad_norm": 10.0});
        let ours = |loss: f64, norm: f64| serde_json::json!({"first_loss": loss, "first_grad_norm": norm});
        for (precision, loss, norm) in [("fp32", 9e-6, 9e-4), ("bf16", 0.04, 0.4)] {
            let near = Near::of(precision);
            near.check(&ours(2.5 + loss, 10.0 - norm), &peer).unwrap();
            let said = near
                .check(&ours(2.5 + 2.0 * loss, 10.0), &peer)
                .unwrap_err()
                .to_string();
            assert!(said.contains("first loss") && said.contains("no race"), "{said}");
            let said = near
                .check(&ours(2.5, 10.0 + 2.0 * norm), &peer)
                .unwrap_err()
                .to_string();
            assert!(said.contains("norm"), "{said}");
        }
        assert!(
            Near::of("fp32")
                .check(&serde_json::json!({"first_loss": f64::NAN}), &peer)
                .is_err()
        );
    }

    #[test]
    fn captions_have_six_to_thirty_eight_words_and_are_always_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let text = fs::read_to_string(captions(dir.path()).unwrap()).unwrap();
        let words: Vec<usize> = text.lines().map(|line| line.split(' ').count()).collect();
        assert_eq!(
            (words.len(), words.iter().min(), words.iter().max()),
            (256, Some(&6), Some(&38))
        );
        let mean = words.iter().sum::<usize>() as f64 / 256.0;
        assert!((20.0..24.0).contains(&mean), "{mean}");
        assert_eq!(text, fs::read_to_string(captions(dir.path()).unwrap()).unwrap());
    }
}
