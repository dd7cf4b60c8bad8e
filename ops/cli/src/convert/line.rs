//! A command line of open_clip_train: the launcher's part, and its own arguments as argparse reads them.

use super::flags::{FLAGS, Flag, Takes, find};
use crate::fail::{Failure, Outcome};
use argosy_common::config::nearest;
use argosy_common::exit::Exit;

/// What was said.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// GPUs in all, where a launcher says so.
    pub(super) gpus: Option<u64>,
    /// Arguments in order with their words; of one that stands twice the last counts.
    pub(super) said: Vec<(&'static Flag, Vec<String>)>,
}

impl Line {
    pub(super) fn read(words: &[String]) -> Outcome<Self> {
        let begins = words.iter().position(|word| is_trainer(word));
        let (launcher, own) = match begins {
            Some(at) => (&words[..at], &words[at + 1..]),
            None if words.first().is_some_and(|word| word.starts_with("--")) => (&words[..0], words),
            None => {
                let message = "no `open_clip_train.main` or `main.py` is in the command line";
                return Err(usage(message.into()).help("say it whole, or only its arguments"));
            }
        };
        let mut line = Self {
            gpus: gpus(launcher),
            said: Vec::new(),
        };
        let mut own = own.iter().peekable();
        while let Some(word) = own.next() {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (word.as_str(), None),
            };
            let flag = find(name).ok_or_else(|| unknown(name))?;
            let mut values: Vec<String> = value.into_iter().collect();
            let wanted = match flag.takes {
                Takes::None => 0,
                Takes::One => 1,
                Takes::Many => usize::MAX,
            };
            while values.len() < wanted && values.len() < 64 {
                match own.next_if(|word| !is_flag(word)) {
                    Some(word) => values.push(word.clone()),
                    None => break,
                }
            }
            if flag.takes == Takes::One && values.is_empty() {
                return Err(usage(format!("{} has no value", flag.name)));
            }
            if flag.takes == Takes::None && !values.is_empty() {
                return Err(usage(format!("{} takes no value", flag.name)));
            }
            line.said.retain(|(other, _)| other.name != flag.name);
            line.said.push((flag, values));
        }
        Ok(line)
    }

    pub(super) fn words(&self, name: &str) -> Option<&[String]> {
        self.said
            .iter()
            .find(|(flag, _)| flag.name == name)
            .map(|(_, words)| words.as_slice())
    }

    pub(super) fn word(&self, name: &str) -> Option<&str> {
        self.words(name)?.first().map(String::as_str)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.words(name).is_some()
    }

    /// A number that argparse would have taken as one.
    pub(super) fn number<T: std::str::FromStr>(&self, name: &str) -> Outcome<Option<T>> {
        let read = |word: &str| {
            let what = || usage(format!("{name} {word}: a number is expected"));
            word.trim().parse().map_err(|_| what())
        };
        self.word(name).map(read).transpose()
    }
}

fn usage(message: String) -> Failure {
    Failure::new(Exit::Usage, message)
}

fn is_trainer(word: &str) -> bool {
    ["open_clip_train.main", "training.main"].contains(&word) || word.rsplit('/').next() == Some("main.py")
}

/// `-1` and `-1e-3` are values.
fn is_flag(word: &str) -> bool {
    word.starts_with("--") || (word.starts_with('-') && word[1..].parse::<f64>().is_err() && word.len() > 1)
}

fn unknown(name: &str) -> Failure {
    let names: Vec<&str> = FLAGS.iter().map(|flag| flag.name).collect();
    let failure = usage(format!("{name} is no argument of open_clip_train"));
    match nearest(name, &names) {
        Some(near) => failure.help(format!("did you mean {near}?")),
        None => failure,
    }
}

/// Processes that a launcher starts: torchrun's, or srun's tasks.
fn gpus(words: &[String]) -> Option<u64> {
    let value = |names: &[&str]| {
        words.iter().enumerate().find_map(|(at, word)| {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (word.as_str(), words.get(at + 1).map(String::as_str)),
            };
            // torchrun takes MIN:MAX nodes; the batch of a run that was begun with all of them is meant.
            let number = || value?.rsplit(':').next()?.parse::<u64>().ok();
            names.contains(&name).then(number).flatten()
        })
    };
    let each = value(&["--nproc_per_node", "--nproc-per-node", "--ntasks-per-node"]);
    let nodes = value(&["--nnodes", "--nodes", "-N"]);
    match (each, nodes, value(&["--ntasks", "-n"])) {
        (Some(each), nodes, _) => each.checked_mul(nodes.unwrap_or(1)),
        (None, _, tasks) => tasks,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Outcome<Line> {
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        Line::read(&words)
    }

    #[test]
    fn launchers_say_how_many_gpus_there_are() {
        for (text, gpus) in [
            ("torchrun --nproc_per_node 4 -m open_clip_train.main --lr 1", Some(4)),
            ("torchrun --nproc-per-node=8 --nnodes=2:3 -m training.main", Some(24)),
            (
                "srun -N 2 --ntasks-per-node=4 python -u src/open_clip_train/main.py",
                Some(8),
            ),
            ("srun -n 6 python main.py", Some(6)),
            ("python -m open_clip_train.main", None),
            ("--lr 1", None),
        ] {
            assert_eq!(line(text).unwrap().gpus, gpus, "{text}");
        }
        assert_eq!(line("python train.py --lr 1").unwrap_err().exit, Exit::Usage);
    }

    #[test]
    fn arguments_are_read_as_argparse_does() {
        let line = line("--lr=1e-3 --dataset-r --train-data a::b --image-mean 0.5 -0.1 0 --siglip --lr 2e-3").unwrap();
        assert_eq!(
            (line.word("--lr"), line.word("--train-data")),
            (Some("2e-3"), Some("a::b"))
        );
        assert_eq!(line.words("--image-mean").unwrap(), ["0.5", "-0.1", "0"]);
        assert!(line.has("--siglip") && !line.has("--trace"));
    }

    #[test]
    fn arguments_that_are_none_are_refused_with_the_nearest() {
        let failure = line("--train-dada x").unwrap_err();
        assert_eq!(
            (failure.exit, failure.help.as_deref()),
            (Exit::Usage, Some("did you mean --train-data?"))
        );
        for bad in ["--lr", "--siglip=3", "--b 1", "word"] {
            assert_eq!(line(bad).unwrap_err().exit, Exit::Usage, "{bad}");
        }
        assert!(line("--batch-size x").unwrap().number::<u64>("--batch-size").is_err());
    }
}
