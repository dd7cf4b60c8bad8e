//! A contact sheet: captions with the pictures nearest to them, and pictures with their nearest captions.

use super::Failure;
use super::source::{Loaded, ModelArgs, load_engine};
use crate::engine::{Engine, EngineError};
use argosy_common::exit::Exit;
use argosy_shard_loader::eval::EvalConfig;
use argosy_shard_loader::{DataError, EvalReader, Tokenizer, thumbnail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};

/// Largest edge of a thumbnail in pixels.
const THUMBNAIL_EDGE: usize = 96;

/// What is put on the sheet.
#[derive(Clone, Debug, clap::Args)]
pub struct SheetArgs {
    /// Run folder, manifest.json, or folder with open_clip_config.json and open_clip_model.safetensors
    #[arg(long, value_name = "PATH")]
    pub checkpoint: PathBuf,
    #[command(flatten)]
    pub how: ModelArgs,
    /// Shards of pictures with captions
    #[arg(long, value_name = "SHARDS")]
    pub data: String,
    /// Samples to choose among: the first so many of the shards
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(2..=65_536))]
    pub pool: u32,
    /// Captions, and pictures, that are asked about
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub shown: u32,
    /// Answers to each
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub nearest: u32,
    /// Picture suffixes, in order of preference
    #[arg(long, default_value = "jpg;png;jpeg;webp")]
    pub image_key: String,
    /// Caption suffixes
    #[arg(long, default_value = "txt")]
    pub text_key: String,
    /// Pictures with more pixels are left out
    #[arg(long, default_value_t = 25_000_000)]
    pub max_image_pixels: u64,
    /// Rows that go through a tower at once
    #[arg(long, default_value_t = 64)]
    pub batch: usize,
    /// Threads of one tensor operation; all cores by default
    #[arg(long)]
    pub threads: Option<usize>,
}

/// The sheet. Numbers of samples count from 0 in the pool.
#[derive(Clone, Debug, Serialize)]
pub struct Sheet {
    /// Which weights.
    pub checkpoint: String,
    /// Which shards.
    pub data: String,
    /// Samples to choose among.
    pub pool: usize,
    /// Share of captions whose own picture is the nearest.
    pub text_to_image_recall_at_1: f64,
    /// Share of pictures whose own caption is the nearest.
    pub image_to_text_recall_at_1: f64,
    /// Captions and their nearest pictures.
    pub captions: Vec<Asked>,
    /// Pictures and their nearest captions.
    pub pictures: Vec<Asked>,
    /// Captions by sample, of all that the sheet shows.
    pub caption_of: BTreeMap<usize, String>,
    /// JPEG thumbnails in base64 by sample, of all that the sheet shows.
    pub thumbnail_of: BTreeMap<usize, String>,
}

/// One question.
#[derive(Clone, Debug, Serialize)]
pub struct Asked {
    /// The sample asked about.
    pub sample: usize,
    /// The nearest samples and their cosines, nearest first.
    pub nearest: Vec<(usize, f32)>,
}

#[derive(Debug, Default)]
struct Pool {
    captions: Vec<String>,
    /// `[S, S, 3]` each.
    pixels: Vec<Vec<u8>>,
}

/// Makes a contact sheet.
///
/// # Errors
/// The exit code and a sentence that names what is wrong.
pub fn contact_sheet(args: &SheetArgs) -> Result<Sheet, Failure> {
    let threads = args
        .threads
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let loaded = load_engine(&args.checkpoint, &args.how, threads)?;
    let tokenizer = loaded.tokenizer()?;
    let Loaded {
        mut engine,
        preprocess,
        shown,
        ..
    } = loaded;
    let config = EvalConfig {
        image_size: engine.image_size() as u32,
        resize: preprocess.resize,
        image_key: args.image_key.clone(),
        text_key: args.text_key.clone(),
        max_image_pixels: args.max_image_pixels,
    };
    let data_failure = |e: DataError| (e.exit(), e.to_string());
    let mut reader = EvalReader::open(&args.data, Path::new("."), config).map_err(data_failure)?;
    let mut pool = Pool::default();
    while pool.captions.len() < args.pool as usize {
        let Some(sample) = reader.next_sample().map_err(data_failure)? else {
            break;
        };
        if let Some(caption) = sample.caption.filter(|c| !c.trim().is_empty()) {
            pool.captions.push(caption.trim().to_owned());
            pool.pixels.push(sample.pixels);
        }
    }
    if pool.captions.len() < 2 {
        let message = format!(
            "{} has {} samples with a caption, two are needed",
            args.data,
            pool.captions.len()
        );
        return Err((Exit::JobFailed, message));
    }
    let (images, texts) =
        encode(&mut engine, &tokenizer, &pool, args.batch.max(1)).map_err(|e| (Exit::JobFailed, e.to_string()))?;
    let mut sheet = lay_out(
        &images,
        &texts,
        engine.feature_dim(),
        args.shown as usize,
        args.nearest as usize,
    );
    (sheet.checkpoint, sheet.data) = (shown, args.data.clone());
    picture(&mut sheet, &pool, engine.image_size())?;
    Ok(sheet)
}

/// Features of all pictures and of all captions, `[pool, d]` each.
fn encode<E: Engine>(
    engine: &mut E,
    tokenizer: &Tokenizer,
    pool: &Pool,
    batch: usize,
) -> Result<(Vec<f32>, Vec<f32>), EngineError> {
    let context = engine.context_length();
    let (mut images, mut texts) = (Vec::new(), Vec::new());
    for (pixels, captions) in pool.pixels.chunks(batch).zip(pool.captions.chunks(batch)) {
        images.extend(engine.encode_images_eval(pixels.len(), &pixels.concat(), batch)?);
        let mut tokens = vec![0; captions.len() * context];
        let lengths: Vec<u16> = captions
            .iter()
            .zip(tokens.chunks_mut(context))
            .map(|(text, row)| tokenizer.row(text, row))
            .collect();
        texts.extend(engine.encode_text_eval(captions.len(), &tokens, &lengths, batch)?);
    }
    Ok((images, texts))
}

/// Asks about `shown` evenly spaced samples, both ways, and about all for the recalls.
fn lay_out(images: &[f32], texts: &[f32], dim: usize, shown: usize, count: usize) -> Sheet {
    let pool = images.len() / dim;
    let shown = shown.min(pool);
    let asked: Vec<usize> = (0..shown).map(|i| i * pool / shown).collect();
    let row = |features: &[f32], i: usize| features[i * dim..(i + 1) * dim].to_vec();
    let ask = |from: &[f32], to: &[f32]| -> (Vec<Asked>, f64) {
        let first = |i: usize| {
            nearest(&row(from, i), to, 1)
                .first()
                .is_some_and(|(best, _)| *best == i)
        };
        let hits = (0..pool).filter(|i| first(*i)).count();
        let answers = asked.iter().map(|&sample| Asked {
            sample,
            nearest: nearest(&row(from, sample), to, count),
        });
        (answers.collect(), hits as f64 / pool as f64)
    };
    let (captions, text_to_image_recall_at_1) = ask(texts, images);
    let (pictures, image_to_text_recall_at_1) = ask(images, texts);
    Sheet {
        checkpoint: String::new(),
        data: String::new(),
        pool,
        text_to_image_recall_at_1,
        image_to_text_recall_at_1,
        captions,
        pictures,
        caption_of: BTreeMap::new(),
        thumbnail_of: BTreeMap::new(),
    }
}

/// The rows of `all` with the highest cosine to `feature`; of equal ones the lower row goes first.
fn nearest(feature: &[f32], all: &[f32], count: usize) -> Vec<(usize, f32)> {
    let cosine = |row: &[f32]| row.iter().zip(feature).map(|(a, b)| a * b).sum::<f32>();
    let mut rows: Vec<(usize, f32)> = all.chunks(feature.len()).map(cosine).enumerate().collect();
    let order = |a: &(usize, f32), b: &(usize, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if count < rows.len() {
        rows.select_nth_unstable_by(count, order);
        rows.truncate(count);
    }
    rows.sort_by(order);
    rows
}

/// Adds captions and thumbnails of all samples that the sheet names.
fn picture(sheet: &mut Sheet, pool: &Pool, side: usize) -> Result<(), Failure> {
    let thumbnail = |sample: usize| {
        let jpeg = thumbnail(&pool.pixels[sample], side, THUMBNAIL_EDGE)
            .map_err(|e| (Exit::JobFailed, format!("sample {sample} gives no thumbnail: {e}")))?;
        Ok(STANDARD.encode(jpeg))
    };
    let (mut captions, mut thumbnails) = (BTreeMap::new(), BTreeMap::new());
    for asked in sheet.captions.iter().chain(&sheet.pictures) {
        for sample in std::iter::once(asked.sample).chain(asked.nearest.iter().map(|(s, _)| *s)) {
            captions.insert(sample, pool.captions[sample].clone());
            if let Entry::Vacant(place) = thumbnails.entry(sample) {
                place.insert(thumbnail(sample)?);
            }
        }
    }
    (sheet.caption_of, sheet.thumbnail_of) = (captions, thumbnails);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sheet_asks_evenly_both_ways_and_counts_the_recalls() {
        // Texts are the unit vectors; pictures 2 and 3 are exchanged.
        let unit = |k: usize| (0..4).map(|i| if i == k { 1.0 } else { 0.0 }).collect::<Vec<f32>>();
        let texts: Vec<f32> = (0..4).flat_map(unit).collect();
        let images: Vec<f32> = [0, 1, 3, 2].into_iter().flat_map(unit).collect();
        let sheet = lay_out(&images, &texts, 4, 2, 2);
        assert_eq!(
            (sheet.text_to_image_recall_at_1, sheet.image_to_text_recall_at_1),
            (0.5, 0.5)
        );
        assert_eq!(sheet.captions[1].sample, 2);
        assert_eq!(sheet.captions[1].nearest, [(3, 1.0), (0, 0.0)]);
        assert_eq!(sheet.pictures[1].nearest[0], (3, 1.0));
    }
}
