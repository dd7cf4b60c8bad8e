//! Tokenizers from files, SigLIP's canonical captions and CLIPA's masks, against what open_clip's own classes gave; see
//! tests/peers/tokenizers.py.

use crate::support::goldens;
use argosy_common::rng::{Draws, Purpose};
use argosy_shard_loader::tokenize::{Choose, FileTokenizer, Mask, Special, masked};
use argosy_shard_loader::{Clean, Tokenizer};
use serde_json::Value;

fn golden() -> Value {
    let text = std::fs::read_to_string(goldens().join("tokenizers/ids.json")).expect("goldens");
    serde_json::from_str(&text).expect("JSON")
}

fn ids(value: &Value) -> Vec<i32> {
    let list = value.as_array().expect("a list");
    list.iter().map(|id| id.as_i64().expect("an id") as i32).collect()
}

fn texts(golden: &Value) -> Vec<String> {
    let list = golden["captions"].as_array().expect("captions");
    list.iter()
        .map(|text| text.as_str().expect("text").to_owned())
        .collect()
}

fn context(case: &Value) -> usize {
    case["context"].as_u64().expect("a length") as usize
}

/// Compares rows with the golden's and what the length must be: up to the first of the largest ids.
fn compare(tokenizer: &Tokenizer, golden: &Value, rows: &Value, what: &str) {
    for (text, row) in texts(golden).iter().zip(rows.as_array().expect("rows")) {
        let want = ids(row);
        let mut got = vec![-1; tokenizer.context_length()];
        let length = usize::from(tokenizer.row(text, &mut got));
        assert_eq!(got, want, "{what}: {text:?}");
        assert_eq!(
            Some(length - 1),
            want.iter().position(|id| want.iter().all(|other| other <= id)),
            "{text:?}"
        );
        assert!(got.iter().all(|id| (*id as u32) < tokenizer.vocabulary()));
    }
}

#[test]
fn tokens_by_a_file_equal_those_of_open_clips_hf_tokenizer() {
    let golden = golden();
    let cases = golden["files"].as_array().expect("cases");
    assert_eq!(cases.len(), 10);
    for case in cases {
        let clean = match case["clean"].as_str() {
            Some("lower") => Clean::Lower,
            Some("canonicalize") => Clean::Canonicalize,
            _ => Clean::Whitespace,
        };
        let special = match (case["strip_sep_token"].as_bool(), case["tokenizer_mode"].as_str()) {
            (Some(true), _) => Special::WithoutSeparators,
            (_, Some("clips")) => Special::Clips,
            _ => Special::Own,
        };
        let folder = case["folder"].as_str().expect("a folder");
        let file = goldens().join("tokenizers").join(folder).join("tokenizer.json");
        let tokenizer = FileTokenizer::open(&file, context(case), clean, special).expect("a tokenizer");
        compare(
            &Tokenizer::of_file(tokenizer),
            &golden,
            &case["ids"],
            &format!("{folder} {clean:?} {special:?}"),
        );
    }
}

#[test]
fn tokens_of_canonical_captions_equal_open_clips() {
    let golden = golden();
    let case = &golden["canonical"];
    let tokenizer = Tokenizer::clip(context(case), Clean::Canonicalize, None);
    compare(&tokenizer, &golden, &case["ids"], "canonicalize");
}

/// Chooses what the golden's run drew.
struct Drawn<'a>(&'a Value);

impl Choose for Drawn<'_> {
    fn start(&mut self, choices: usize) -> usize {
        let start = self.0.as_u64().expect("a start") as usize;
        assert!(start < choices, "{start} of {choices}");
        start
    }

    fn order(&mut self, n: usize) -> Vec<usize> {
        let order: Vec<usize> = ids(self.0).iter().map(|at| *at as usize).collect();
        assert_eq!(order.len(), n);
        order
    }
}

#[test]
fn masks_keep_what_open_clips_keep_when_the_same_is_drawn() {
    let golden = golden();
    let whole = Tokenizer::new(512);
    for case in golden["masks"].as_array().expect("cases") {
        let mask = Mask::by_name(case["reduction"].as_str().expect("a name")).expect("a mask");
        let context = context(case);
        let (mut cut, tokenizer) = (0, Tokenizer::clip(context, Clean::Lower, Some(mask)));
        for (text, row) in texts(&golden).iter().zip(case["rows"].as_array().expect("rows")) {
            let mut all = vec![0; 512];
            let end = usize::from(whole.row(text, &mut all));
            // A golden caption has an end inside; what is between the outer two counts.
            let last = all.iter().rposition(|id| *id != 0).unwrap_or(end - 1);
            let want = ids(&row["ids"]);
            let kept = masked(&all[1..last], context - 2, mask, &mut Drawn(&row["drawn"]));
            let mut got = [&all[..1], &kept, &all[last..=last]].concat();
            got.resize(context, 0);
            assert_eq!(got, want, "{mask:?} {text:?}");
            cut += usize::from(!row["drawn"].is_null());
            // Drawn by ourselves: the same number of ids, all from the caption, and the same ones each time.
            let draws = || Draws::new(3, Purpose::TokenMask, 1, 9);
            let (mut own, mut again) = (vec![-1; context], vec![-1; context]);
            tokenizer.row_drawn(text, draws, &mut own);
            tokenizer.row_drawn(text, draws, &mut again);
            assert!(own == again && own.iter().all(|id| *id == 0 || all.contains(id)));
            assert_eq!(
                own.iter().filter(|id| **id != 0).count(),
                want.iter().filter(|id| **id != 0).count()
            );
        }
        assert!(cut > 40, "{cut} captions were too long");
    }
}

#[test]
fn tokenizer_file_that_cannot_be_used_is_named_with_the_reason() {
    let folder = tempfile::tempdir().expect("a folder");
    let open = |file: &std::path::Path, context, special| {
        let error = FileTokenizer::open(file, context, Clean::Whitespace, special).expect_err("refused");
        error.to_string()
    };
    let broken = folder.path().join("tokenizer.json");
    std::fs::write(&broken, "{\"version\": 1").expect("written");
    assert!(open(&broken, 8, Special::Own).contains("tokenizer.json"));
    assert!(open(&folder.path().join("none.json"), 8, Special::Own).contains("none.json"));
    let good = goldens().join("tokenizers/wordpiece/tokenizer.json");
    assert!(open(&good, 2, Special::Own).contains("2 ids around every text"));
    std::fs::copy(&good, &broken).expect("copied");
    assert!(open(&broken, 8, Special::Own).contains("pad_token"));
    std::fs::write(
        folder.path().join("tokenizer_config.json"),
        r#"{"pad_token": {"content": "[PAD]"}}"#,
    )
    .expect("written");
    FileTokenizer::open(&broken, 8, Clean::Whitespace, Special::Own).expect("a tokenizer");
    assert!(open(&broken, 8, Special::Clips).contains("bos_token"));
}
