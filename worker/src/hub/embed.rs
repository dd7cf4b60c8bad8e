//! `embed`: normalised features of pictures and captions, or of tensors that are ready.

use crate::clip::{Images, embed_images};
use crate::engine::{Engine, EngineError, TorchEngine};
use crate::eval::{Loaded, ModelArgs, Which, load_weights};
use argosy_common::exit::Exit;
use argosy_shard_loader::eval::EvalConfig;
use argosy_shard_loader::{DataError, EvalReader, Tokenizer};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::Tensor;

/// Largest file of ready tensors.
const TENSORS_BYTES_MAX: u64 = 64 << 30;

/// What is embedded.
#[derive(Clone, Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("input").required(true).multiple(true).args(["data", "texts", "tensors"]))]
pub struct EmbedArgs {
    /// Run folder, manifest.json (path or URL), or folder with open_clip_config.json and open_clip_model.safetensors
    #[arg(long, value_name = "PATH")]
    pub checkpoint: PathBuf,
    #[command(flatten)]
    pub how: ModelArgs,
    /// Shards by pattern, folder, file or URL: pictures and, where all samples have one, captions
    #[arg(long, value_name = "SHARDS", conflicts_with_all = ["texts", "tensors"])]
    pub data: Option<String>,
    /// Captions, one a line
    #[arg(long, value_name = "FILE", conflicts_with = "tensors")]
    pub texts: Option<PathBuf>,
    /// Safetensors file with `images` (f32, [n, 3, S, S], normalised) or `texts` (i64, [n, context]) or both
    #[arg(long, value_name = "FILE")]
    pub tensors: Option<PathBuf>,
    /// FILE.safetensors with `image_features` and `text_features`, or FILE.npy for FILE.image_features.npy and so on
    #[arg(short = 'o', long = "out", value_name = "FILE")]
    pub out: PathBuf,
    /// The trained weights, or their running average where the checkpoint has one
    #[arg(long, value_enum, default_value = "trained")]
    pub weights: Which,
    /// Rows that go through a tower at once
    #[arg(long, default_value_t = 64)]
    pub batch: usize,
    /// Threads of one tensor operation; all cores by default
    #[arg(long)]
    pub threads: Option<usize>,
    /// Picture suffixes, in order of preference
    #[arg(long, default_value = "jpg;png;jpeg;webp")]
    pub image_key: String,
    /// Caption suffixes
    #[arg(long, default_value = "txt")]
    pub text_key: String,
    /// Pictures with more pixels are left out
    #[arg(long, default_value_t = 25_000_000)]
    pub max_image_pixels: u64,
}

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Embedded {
    /// The weights.
    pub checkpoint: String,
    /// The files.
    pub files: Vec<String>,
    /// Rows of `image_features`.
    pub images: usize,
    /// Rows of `text_features`.
    pub texts: usize,
    /// Width of a feature.
    pub dim: usize,
    /// Samples that could not be used, by reason.
    pub left_out: BTreeMap<String, u64>,
}

type Failure = (Exit, String);

fn engine_failure(error: EngineError) -> Failure {
    (Exit::JobFailed, error.to_string())
}

fn data_failure(error: DataError) -> Failure {
    (error.exit(), error.to_string())
}

/// Features, row by row.
#[derive(Debug, Default)]
struct Features {
    images: Option<Vec<f32>>,
    texts: Option<Vec<f32>>,
    keys: Vec<String>,
    left_out: BTreeMap<String, u64>,
}

/// Embeds and writes.
///
/// # Errors
/// The exit code and a sentence that names what is wrong.
pub fn run(args: &EmbedArgs) -> Result<Embedded, Failure> {
    if args.batch == 0 {
        return Err((Exit::Usage, "--batch is 0, at least 1 is expected".into()));
    }
    let format = Format::of(&args.out)?;
    let threads = args
        .threads
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let mut loaded = load_weights(&args.checkpoint, &args.how, threads, args.weights)?;
    let features = match (&args.tensors, &args.texts, &args.data) {
        (Some(file), _, _) => of_tensors(&mut loaded.engine, file, args.batch)?,
        (_, Some(file), _) => of_texts(&mut loaded, file, args.batch)?,
        (_, _, Some(shards)) => of_shards(&mut loaded, shards, args)?,
        _ => return Err((Exit::Usage, "give --data, --texts or --tensors".into())),
    };
    let dim = loaded.engine.feature_dim();
    let rows = |values: &Option<Vec<f32>>| values.as_ref().map_or(0, |v| v.len() / dim);
    Ok(Embedded {
        checkpoint: loaded.shown,
        images: rows(&features.images),
        texts: rows(&features.texts),
        dim,
        files: write(&args.out, format, dim, &features)?,
        left_out: features.left_out,
    })
}

#[derive(Clone, Copy, Debug)]
enum Format {
    Safetensors,
    Npy,
}

impl Format {
    fn of(out: &Path) -> Result<Self, Failure> {
        match out.extension().and_then(|e| e.to_str()) {
            Some("safetensors") => Ok(Self::Safetensors),
            Some("npy") => Ok(Self::Npy),
            _ => {
                let message = format!("--out {}: expected a name in .safetensors or .npy", out.display());
                Err((Exit::Usage, message))
            }
        }
    }
}

/// Features of `images` `[n, 3, S, S]` and `texts` `[m, context]`.
fn of_tensors(engine: &mut TorchEngine, file: &Path, batch: usize) -> Result<Features, Failure> {
    let shown = file.display();
    let size = file
        .metadata()
        .map_err(|e| (Exit::NotFound, format!("{shown}: {e}")))?
        .len();
    if size > TENSORS_BYTES_MAX {
        let message = format!("{shown} has {size} bytes, at most {TENSORS_BYTES_MAX} are read; split it");
        return Err((Exit::NoCapacity, message));
    }
    let bytes = std::fs::read(file).map_err(|e| (Exit::NotFound, format!("{shown}: {e}")))?;
    let bad = |why: String| (Exit::JobFailed, format!("{shown}: {why}"));
    let read = SafeTensors::deserialize(&bytes).map_err(|e| bad(format!("not a safetensors file: {e}")))?;
    let tensor = |name: &str| read.tensor(name).ok();
    let mut features = Features::default();
    let (side, context) = (engine.image_size(), engine.context_length());
    if let Some(images) = tensor("images") {
        let [n, 3, height, width] = images.shape() else {
            return Err(bad(format!(
                "`images` is {:?}, [n, 3, {side}, {side}] is expected",
                images.shape()
            )));
        };
        if images.dtype() != Dtype::F32 || (*height, *width) != (side, side) {
            let (dtype, shape) = (images.dtype(), images.shape());
            return Err(bad(format!(
                "`images` is {dtype:?} {shape:?}, F32 [n, 3, {side}, {side}] is expected"
            )));
        }
        let values: Vec<f32> = images
            .data()
            .as_chunks()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect();
        features.images = Some(embed_floats(engine, *n, &values, batch).map_err(engine_failure)?);
    }
    if let Some(texts) = tensor("texts") {
        let (dtype, shape) = (texts.dtype(), texts.shape());
        let &[n, width] = shape else {
            return Err(bad(format!("`texts` is {shape:?}, [n, {context}] is expected")));
        };
        if dtype != Dtype::I64 || width != context {
            return Err(bad(format!(
                "`texts` is {dtype:?} {shape:?}, I64 [n, {context}] is expected"
            )));
        }
        let vocabulary = engine.config().text.vocab_size;
        let ids: Vec<i64> = texts
            .data()
            .as_chunks()
            .0
            .iter()
            .map(|b| i64::from_le_bytes(*b))
            .collect();
        if let Some(at) = ids.iter().position(|id| !(0..vocabulary).contains(id)) {
            let (row, id) = (at / context, ids[at]);
            return Err(bad(format!(
                "`texts` row {row} has id {id}, the model knows 0 to {}",
                vocabulary - 1
            )));
        }
        let tokens: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
        // OpenCLIP pools at the first of the largest ids, which is the end of the text.
        let lengths: Vec<u16> = tokens.chunks(context).map(|row| end_of_text(row) as u16).collect();
        let encoded = engine.encode_text_eval(n, &tokens, &lengths, batch);
        features.texts = Some(encoded.map_err(engine_failure)?);
    }
    if features.images.is_none() && features.texts.is_none() {
        return Err(bad("neither `images` nor `texts` is in it".into()));
    }
    Ok(features)
}

/// Ids up to and with the first of the largest.
fn end_of_text(row: &[i32]) -> usize {
    let largest = row.iter().copied().max().unwrap_or_default();
    row.iter().position(|id| *id == largest).map_or(row.len(), |at| at + 1)
}

fn embed_floats(engine: &mut TorchEngine, n: usize, values: &[f32], batch: usize) -> Result<Vec<f32>, EngineError> {
    let side = engine.image_size();
    let stride = 3 * side * side;
    let mut out = Vec::with_capacity(n * engine.feature_dim());
    for chunk in values.chunks(batch * stride) {
        let shape = [(chunk.len() / stride) as i64, 3, side as i64, side as i64];
        let images = Images::Floats(Tensor::f_from_slice(chunk)?.f_view(shape)?);
        out.extend(embed_images(engine.clip(), &images)?);
    }
    Ok(out)
}

fn of_texts(loaded: &mut Loaded, file: &Path, batch: usize) -> Result<Features, Failure> {
    let text = std::fs::read_to_string(file).map_err(|e| (Exit::NotFound, format!("{}: {e}", file.display())))?;
    let lines: Vec<&str> = text.lines().collect();
    if lines.is_empty() {
        return Err((Exit::JobFailed, format!("{} has no lines", file.display())));
    }
    let (mut texts, tokenizer) = (Vec::new(), loaded.tokenizer()?);
    for chunk in lines.chunks(batch) {
        texts.extend(embed_captions(&mut loaded.engine, &tokenizer, chunk)?);
    }
    Ok(Features {
        texts: Some(texts),
        ..Features::default()
    })
}

fn embed_captions(engine: &mut TorchEngine, tokenizer: &Tokenizer, captions: &[&str]) -> Result<Vec<f32>, Failure> {
    let context = engine.context_length();
    let mut tokens = vec![0; captions.len() * context];
    let rows = captions.iter().zip(tokens.chunks_mut(context));
    let lengths: Vec<u16> = rows.map(|(text, row)| tokenizer.row(text, row)).collect();
    engine
        .encode_text_eval(captions.len(), &tokens, &lengths, captions.len())
        .map_err(engine_failure)
}

/// Pictures and captions of shards. Where only some samples have a caption, the others are left out and counted.
fn of_shards(loaded: &mut Loaded, shards: &str, args: &EmbedArgs) -> Result<Features, Failure> {
    let config = EvalConfig {
        image_size: loaded.engine.image_size() as u32,
        resize: loaded.preprocess.resize,
        image_key: args.image_key.clone(),
        text_key: args.text_key.clone(),
        max_image_pixels: args.max_image_pixels,
    };
    let mut reader = EvalReader::open(shards, Path::new("."), config).map_err(data_failure)?;
    let mut features = Features {
        images: Some(Vec::new()),
        ..Features::default()
    };
    let (mut images, mut texts, mut tokenizer) = (Vec::new(), Vec::new(), None);
    let mut captioned: Option<bool> = None;
    loop {
        let batch: Result<Vec<_>, DataError> = std::iter::from_fn(|| reader.next_sample().transpose())
            .take(args.batch)
            .collect();
        let batch = batch.map_err(data_failure)?;
        let Some(first) = batch.first() else { break };
        let with_captions = *captioned.get_or_insert(first.caption.is_some());
        let (mut pixels, mut captions) = (Vec::new(), Vec::new());
        for sample in &batch {
            match (&sample.caption, with_captions) {
                (Some(caption), true) => captions.push(caption.as_str()),
                (None, true) => {
                    *features.left_out.entry("caption".into()).or_default() += 1;
                    continue;
                }
                (_, false) => {}
            }
            pixels.extend_from_slice(&sample.pixels);
            features.keys.push(sample.key.clone());
        }
        let rows = pixels.len() / sample_bytes(&loaded.engine);
        let encoded = loaded.engine.encode_images_eval(rows, &pixels, args.batch);
        images.extend(encoded.map_err(engine_failure)?);
        if !captions.is_empty() {
            let made = match tokenizer.take() {
                Some(made) => made,
                None => loaded.tokenizer()?,
            };
            texts.extend(embed_captions(&mut loaded.engine, tokenizer.insert(made), &captions)?);
        }
    }
    for (reason, count) in reader.left_out() {
        *features.left_out.entry(reason.to_string()).or_default() += count;
    }
    if images.is_empty() {
        return Err((Exit::JobFailed, format!("{shards} has no sample that can be embedded")));
    }
    features.images = Some(images);
    features.texts = captioned.unwrap_or(false).then_some(texts);
    Ok(features)
}

fn sample_bytes(engine: &TorchEngine) -> usize {
    3 * engine.image_size() * engine.image_size()
}

fn write(out: &Path, format: Format, dim: usize, features: &Features) -> Result<Vec<String>, Failure> {
    let arrays = [("image_features", &features.images), ("text_features", &features.texts)];
    let arrays = arrays.into_iter().filter_map(|(name, v)| Some((name, v.as_ref()?)));
    let mut files: Vec<(PathBuf, Vec<u8>)> = Vec::new();
    match format {
        Format::Safetensors => {
            let failed = |e: safetensors::SafeTensorError| (Exit::JobFailed, format!("{}: {e}", out.display()));
            let bytes: Vec<(&str, Vec<u8>)> = arrays.map(|(name, v)| (name, to_bytes(v))).collect();
            let views: Result<Vec<_>, _> = bytes
                .iter()
                .map(|(name, b)| Ok((*name, TensorView::new(Dtype::F32, vec![b.len() / 4 / dim, dim], b)?)))
                .collect();
            let file = safetensors::serialize(views.map_err(failed)?, None).map_err(failed)?;
            files.push((out.to_owned(), file));
        }
        Format::Npy => {
            for (name, values) in arrays {
                files.push((out.with_extension(format!("{name}.npy")), npy(values, dim)));
            }
        }
    }
    if !features.keys.is_empty() {
        let text = features.keys.join("\n") + "\n";
        files.push((out.with_extension("keys.txt"), text.into_bytes()));
    }
    for (path, bytes) in &files {
        std::fs::write(path, bytes).map_err(|e| (Exit::JobFailed, format!("cannot write {}: {e}", path.display())))?;
    }
    Ok(files.into_iter().map(|(path, _)| path.display().to_string()).collect())
}

fn to_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// NumPy's format, version 1.0 (numpy.lib.format): magic, length of the header, header padded to 64 bytes, values.
fn npy(values: &[f32], dim: usize) -> Vec<u8> {
    let shape = format!("({}, {dim})", values.len() / dim);
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
    let padded = (10 + header.len() + 1).next_multiple_of(64) - 10;
    header += &" ".repeat(padded - header.len() - 1);
    header.push('\n');
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend((header.len() as u16).to_le_bytes());
    out.extend(header.as_bytes());
    out.extend(to_bytes(values));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn npy_header_is_as_numpy_writes_it() {
        let file = npy(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3);
        let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }";
        assert_eq!(&file[..10], b"\x93NUMPY\x01\x00\x76\x00");
        assert!(file[10..].starts_with(header.as_bytes()));
        assert_eq!((file[127], file.len()), (b'\n', 128 + 24));
        assert_eq!(&file[128..132], &1f32.to_le_bytes());
    }

    #[test]
    fn end_of_text_is_the_first_of_the_largest_ids() {
        assert_eq!(end_of_text(&[5, 9, 0, 9]), 2);
        assert_eq!(end_of_text(&[0, 0]), 1);
    }
}
