//! Choices of a first job: OpenCLIP's recipe for CC3M and CC12M (batch 1024, lr 1e-3, wd 0.1, 30 epochs), scaled down where
//! the data is small.

use super::look::Look;
use crate::out;
use std::fmt::Write as _;

/// A pass should have so many steps at least, or the schedule has nothing to work with.
const STEPS_OF_PASS: u64 = 64;
const BATCH_MIN: u64 = 32;
const BATCH_MAX: u64 = 1024;
const EPOCHS: u64 = 30;
const WARMUP_MAX: u64 = 2000;
/// A checkpoint about so often.
const CHECKPOINT_S: f64 = 600.0;

/// What `argosy-worker measure` says, as far as it is used.
#[derive(Debug, serde::Deserialize)]
pub(super) struct Measured {
    pub(super) images_per_second: f64,
    pub(super) parameters: u64,
    pub(super) image_size: u32,
}

/// How fast all workers together are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Speed {
    Measured {
        images_per_second: f64,
        parameters: u64,
        image_size: u32,
    },
    Unknown,
}

/// What the job will say.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Choice {
    model: String,
    workers: u32,
    speed: Speed,
    batch: u64,
    warmup: u64,
    every_samples: u64,
    positions: u64,
}

impl Choice {
    pub(super) fn new(look: &Look, model: String, workers: u32, speed: Speed) -> Self {
        let wanted = (look.rows / STEPS_OF_PASS).clamp(BATCH_MIN, BATCH_MAX);
        let batch = 1 << wanted.ilog2();
        let positions = look.rows * EPOCHS;
        let steps = positions.div_ceil(batch);
        let between = match speed {
            Speed::Measured { images_per_second, .. } => (images_per_second * CHECKPOINT_S) as u64,
            Speed::Unknown => look.rows,
        };
        Self {
            warmup: (steps / 20).clamp(1, WARMUP_MAX),
            // Whole steps, and some checkpoints even in a short run.
            every_samples: between.min(positions / 4).div_ceil(batch).max(1) * batch,
            model,
            workers,
            speed,
            batch,
            positions,
        }
    }

    /// The time that training takes, in words, and where the number comes from.
    fn estimate(&self) -> String {
        match self.speed {
            Speed::Measured { images_per_second, .. } => format!(
                "about {} for {EPOCHS} epochs at {images_per_second:.0} images/s on {} here (measured on this machine just \
                 now, without reading data)",
                out::duration(self.positions as f64 / images_per_second.max(1e-9)),
                workers(self.workers)
            ),
            Speed::Unknown => "unknown: argosy-worker is not here to be measured".to_owned(),
        }
    }

    /// For people.
    pub(super) fn lines(&self, look: &Look) -> Vec<String> {
        let mut lines = vec![
            format!("model  {}{}", self.model, self.model_facts()),
            format!("time   {}", self.estimate()),
        ];
        if look.rows < 10_000 {
            lines
                .push("note:  so few samples teach a model little of the world; good for trying things out".to_owned());
        }
        lines
    }

    fn model_facts(&self) -> String {
        match self.speed {
            Speed::Measured {
                parameters, image_size, ..
            } => format!(": {} parameters, pictures of {image_size} px", out::count(parameters)),
            Speed::Unknown => String::new(),
        }
    }

    /// The job file.
    pub(super) fn job(&self, name: &str, shards: &str, look: &Look) -> String {
        let about = if look.counted { "" } else { "about " };
        let plain = |c: char| {
            if c.is_ascii_alphanumeric() || "-_.".contains(c) {
                c
            } else {
                '-'
            }
        };
        let name: String = name.trim_start_matches('.').chars().map(plain).take(100).collect();
        let name = if name.is_empty() { "job".to_owned() } else { name };
        let mut job = String::new();
        // Writing to a string cannot fail.
        let _ = write!(
            job,
            "# Made by `argosy init`. Keys that are left out have defaults; names are OpenCLIP's where it has one.\n\
             # {about}{} samples in {} shards, {}. Training takes {}.\n\
             version = 1\nname = {}\nseed = 0\n\n",
            out::count(look.rows),
            look.shards,
            out::bytes(look.bytes),
            self.estimate(),
            quoted(&name)
        );
        let _ = write!(
            job,
            "[model]\nname = {} # built in{}; or config = \"model.json\" in OpenCLIP's schema\n\n\
             [data]\nsources = [{{ name = \"pairs\", shards = {} }}]\n{}{}\n",
            quoted(&self.model),
            self.model_facts().trim_start_matches(':').replace(": ", ", "),
            quoted(shards),
            image_key(look),
            text_key(look)
        );
        let _ = write!(
            job,
            "[train]\nglobal_batch = {} # rows of one step over all workers; it never changes with their number\n\
             epochs = {EPOCHS}\nlr = 1e-3 # the peak, after the warm-up\nwd = 0.1\n\
             warmup = {} # steps, a twentieth of all\nlr_scheduler = \"cosine\"\n\n\
             [workers]\nmin = 1 # below this many the run waits\ntarget = {}\nmax = {}\n\n\
             [checkpoint]\nevery_samples = {} # {}\nkeep_last = 3\n",
            self.batch,
            self.warmup,
            self.workers,
            self.workers.max(4),
            self.every_samples,
            self.checkpoint_words()
        );
        let classes = if look.classes > 1 {
            format!(" ({} classes were seen in .cls members)", look.classes)
        } else {
            String::new()
        };
        let _ = write!(
            job,
            "\n# Zero-shot accuracy over time: labelled shards{classes}, a file with the names of the classes and one with prompts.\n\
             # [[evaluation.sets]]\n# name = \"pets\"\n# data = \"pets/\"\n# classes = \"classes.txt\"\n# templates = \"templates.txt\"\n"
        );
        job
    }

    fn checkpoint_words(&self) -> String {
        match self.speed {
            Speed::Measured { images_per_second, .. } => {
                let every = self.every_samples as f64 / images_per_second.max(1e-9);
                format!("about every {}", out::duration(every))
            }
            Speed::Unknown => "once a pass or more".to_owned(),
        }
    }
}

fn workers(count: u32) -> String {
    format!("{count} worker{}", if count == 1 { "" } else { "s" })
}

/// A TOML string.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// Says which suffixes there are, where it is not the usual ones.
fn image_key(look: &Look) -> String {
    let found = |s: &&str| look.suffixes.contains_key(*s);
    let found: Vec<&str> = ["jpg", "png", "jpeg", "webp"]
        .iter()
        .filter(|s| found(s))
        .copied()
        .collect();
    format!("image_key = {} # suffixes seen\n", quoted(&found.join(";")))
}

fn text_key(look: &Look) -> String {
    format!("text_key = {}\n", quoted(&look.text_key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use argosy_common::config::Job;

    fn look(rows: u64) -> Look {
        Look {
            shards: 3,
            bytes: 1 << 30,
            rows,
            seen: 100,
            suffixes: [("jpg".to_owned(), 100), ("txt".to_owned(), 100)].into(),
            edges: vec![256],
            text_key: "txt".into(),
            ..Look::default()
        }
    }

    fn speed(images_per_second: f64) -> Speed {
        Speed::Measured {
            images_per_second,
            parameters: 63_100_000,
            image_size: 224,
        }
    }

    #[test]
    fn job_that_is_written_is_one_that_is_read_whatever_the_data() {
        for (rows, speed, name, shards) in [
            (3, Speed::Unknown, "..", "/a"),
            (2_905_954, speed(3000.0), "cc 3m \"x\"", "s3://b/{0..9}.tar"),
            (400_000_000, speed(1e5), "laion", r"C:\odd 'path"),
        ] {
            let look = look(rows);
            let choice = Choice::new(&look, look.model().into(), 2, speed);
            let text = choice.job(name, shards, &look);
            let job = Job::from_toml("j", &text).unwrap_or_else(|e| panic!("{e}\n{text}"));
            assert_eq!(
                (job.data.sources[0].shards.as_str(), job.train.epochs),
                (shards, EPOCHS)
            );
            assert!(
                job.checkpoint
                    .every_samples
                    .is_multiple_of(u64::from(job.train.global_batch))
            );
            assert!(u64::from(job.train.global_batch) <= rows.max(BATCH_MIN));
        }
    }

    #[test]
    fn estimate_says_where_it_comes_from() {
        let look = look(1_000_000);
        let choice = Choice::new(&look, "ViT-B-32".into(), 2, speed(1000.0));
        let text = choice.lines(&look).join("\n");
        assert!(text.contains("8 h 20 min") && text.contains("measured"), "{text}");
        let unknown = Choice::new(&look, "ViT-B-32".into(), 2, Speed::Unknown);
        assert!(unknown.estimate().contains("unknown"));
    }
}
