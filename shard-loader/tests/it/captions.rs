//! Token ids against what open_clip gives the same captions; see tests/peers/captions.py.

use crate::support::goldens;
use argosy_shard_loader::Tokenizer;
use argosy_shard_loader::tokenize::END;
use std::io::BufRead;
use std::path::Path;
use std::process::{Command, Stdio};

/// Captions of which no difference is shown any more.
const SHOWN_MAX: usize = 12;

/// Compares `[text, ids]` lines; gives how many there were and what differs.
fn compare(lines: impl BufRead) -> (usize, Vec<String>) {
    let tokenizer = Tokenizer::new(77);
    let (mut compared, mut wrong) = (0, Vec::new());
    for line in lines.lines() {
        let line = line.expect("a line");
        let (text, expected): (String, Vec<i32>) = serde_json::from_str(&line).expect("[text, ids]");
        let mut row = vec![-1; 77];
        let length = usize::from(tokenizer.row(&text, &mut row));
        let (ids, padding) = row.split_at(expected.len());
        // Where OpenCLIP's argmax finds the end: the first of the largest ids.
        let pooled = expected.iter().position(|id| *id == END).expect("an end") + 1;
        compared += 1;
        if ids != expected || padding.iter().any(|id| *id != 0) || length != pooled {
            wrong.push(format!("{text:?}\n  ours {row:?}\n  open_clip {expected:?}"));
        }
    }
    (compared, wrong)
}

fn assert_none(compared: usize, wrong: &[String]) {
    let shown = wrong.iter().take(SHOWN_MAX).cloned().collect::<Vec<_>>().join("\n");
    assert!(wrong.is_empty(), "{} of {compared} differ:\n{shown}", wrong.len());
}

#[test]
fn tokens_of_golden_captions_equal_open_clip() {
    let file = std::fs::File::open(goldens().join("captions.jsonl")).expect("goldens");
    let (compared, wrong) = compare(std::io::BufReader::new(file));
    assert!(compared > 2000, "{compared} captions");
    assert_none(compared, &wrong);
}

/// Against a list made elsewhere, or by the peers' Python on the spot.
#[test]
#[ignore = "100,000 captions, 10 MB of fuzz and every character take the peer some minutes"]
fn tokens_of_a_hundred_thousand_captions_and_ten_megabytes_of_fuzz_equal_open_clip() {
    if let Ok(list) = std::env::var("ARGOSY_CAPTIONS") {
        let file = std::fs::File::open(&list).expect("the file that ARGOSY_CAPTIONS names");
        let (compared, wrong) = compare(std::io::BufReader::new(file));
        println!("{compared} captions of {list}");
        return assert_none(compared, &wrong);
    }
    let Ok(python) = std::env::var("ARGOSY_PEERS_PYTHON") else {
        println!("SKIP no ARGOSY_PEERS_PYTHON: a Python with open_clip_torch 3.3.0");
        return;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/peers/captions.py");
    let seed = 20_260_101;
    println!("SEED captions {seed}");
    let mut peer = Command::new(python)
        .arg(script)
        .args(["--seed", &seed.to_string(), "--every-character"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the peer starts");
    let (compared, wrong) = compare(std::io::BufReader::new(peer.stdout.take().expect("its output")));
    assert!(peer.wait().expect("it ends").success());
    assert!(compared > 300_000, "{compared} captions");
    assert_none(compared, &wrong);
}
