//! A training step on the CPU against OpenCLIP's: same model, batch, captions and threads.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

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

/// A batch, and the steps of each side that one round times.
struct Load {
    batch: u32,
    ours: u32,
    peer: u32,
}

/// Width 192 and pictures of 64 px; a tower of twelve layers beside a text tower of the same width.
const SMALL_CONFIG: &str = r#"{
  "embed_dim": 192,
  "vision_cfg": {"image_size": 64, "layers": 12, "width": 192, "patch_size": 16},
  "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 192, "heads": 3, "layers": 6}
}
"#;

fn large(session: &mut Session<'_>, precision: &str) -> Result<()> {
    for load in [
        Load {
            batch: 16,
            ours: 4,
            peer: 3,
        },
        Load {
            batch: 64,
            ours: 2,
            peer: 1,
        },
    ] {
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
        let load = Load {
            batch,
            ours: 20,
            peer: 20,
        };
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
        "Forward, loss, backward and AdamW on random pictures and captions of 8 to 40 ids, two threads each; a round is the \
         median step of one process after a first that does not count. That both sides compute the same is `argosy parity`'s.",
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
    let rate = |session: &Session<'_>, mut command: Command, steps: u32| {
        command
            .args(model)
            .args(["--batch", &load.batch.to_string(), "--steps", &steps.to_string()])
            .args(["--precision", precision, "--threads", "2", "--captions"])
            .arg(&captions);
        let value = session.json(&mut command)?;
        value["samples_per_second"]
            .as_f64()
            .context("no samples_per_second in the result")
    };
    session.race(
        measure,
        "open_clip",
        |session| rate(session, Command::new(&example), load.ours),
        |session| rate(session, session.peer("step.py")?, load.peer),
    )
}

/// Captions whose ids number 8 to 40 evenly, the start and the end among them: words of one id each.
fn captions(folder: &Path) -> Result<PathBuf> {
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
