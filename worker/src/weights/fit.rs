//! A file's tensors as a model's flat order, by the rules of open_clip 3.3.0's `load_checkpoint`.

use super::{Entry, Number, WeightFile};
use crate::clip::params::{Params, counts_batches};
use crate::clip::{ModelConfig, to_vec};
use crate::engine::{EngineError, Result, TensorSpec};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use tch::Tensor;

/// Most rows of a table of positions that is resized: a grid of 256 by 256 and a class token.
const POSITIONS_MAX: u64 = (1 << 16) + 1;
/// Names that an error lists of one kind.
const LISTED_MAX: usize = 20;
/// What files hold beside the weights: numbers in OpenAI's, and the causal mask in compiled models, which is none of them.
const EXTRAS: [&str; 5] = [
    "input_resolution",
    "context_length",
    "vocab_size",
    "attn_mask",
    "text.attn_mask",
];
/// What `CustomTextCLIP` keeps below `text.`.
const TEXT_PARTS: [&str; 5] = [
    "text_projection",
    "positional_embedding",
    "token_embedding",
    "transformer",
    "ln_final",
];

/// Which part of a model is wanted of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it; a tensor that it does not have is an error.
    Whole,
    /// The image tower, of a file that holds it alone or with a text tower.
    Image,
    /// The text tower, likewise.
    Text,
}

impl Part {
    fn has(self, name: &str) -> bool {
        match self {
            Self::Whole => true,
            Self::Image => name.starts_with("visual."),
            Self::Text => !name.starts_with("visual.") && !name.starts_with("logit_"),
        }
    }
}

/// Overwrites `values` (`[P]`, the flat order of `params`) by what `file` has of `part`, one tensor after the other. What belongs
/// to no part stays.
///
/// # Errors
/// Lists by name what is missing, not known, of another shape (both are given) or type; `values` is as it was then. A file
/// that can no longer be read half-way has overwritten a part: give a copy of what must not be lost.
pub fn fit(file: &WeightFile, config: &ModelConfig, params: &Params, part: Part, values: &mut [f32]) -> Result<()> {
    let named = named(file, config, part);
    let mut one = Vec::new();
    for (spec, how) in plan(&named, config, params, part)? {
        one.clear();
        match how {
            How::Same(entry) => file.append(&spec.name, entry, &mut one)?,
            How::Zero => one.resize(spec.len, 0.0),
            How::Image(entry) => one = resized(file, spec, entry, true)?,
            How::Text(entry) => one = resized(file, spec, entry, false)?,
        }
        if one.len() != spec.len {
            let (name, got, want) = (&spec.name, one.len(), spec.len);
            return Err(EngineError::State(format!("{name:?}: {got} values, {want} expected")));
        }
        values[spec.offset..spec.offset + spec.len].copy_from_slice(&one);
    }
    Ok(())
}

/// Where a tensor's values come from.
enum How<'a> {
    Same(&'a Entry),
    Zero,
    /// Positions of patches on another grid.
    Image(&'a Entry),
    /// Positions of a caption of another length.
    Text(&'a Entry),
}

/// The file's tensors under the model's names.
fn named<'a>(file: &'a WeightFile, config: &ModelConfig, part: Part) -> BTreeMap<String, &'a Entry> {
    let entries = file.entries();
    // Distributed training puts its wrapper's name before all others.
    let wrapped = entries.keys().all(|name| name.starts_with("module."));
    let mut names: BTreeMap<String, &Entry> = entries
        .iter()
        .map(|(name, entry)| (if wrapped { &name["module.".len()..] } else { name }, entry))
        .filter(|(name, _)| !EXTRAS.contains(name))
        .map(|(name, entry)| (name.to_owned(), entry))
        .collect();
    let bare = |names: &BTreeMap<String, &Entry>, prefix: &str| !names.keys().any(|name| name.starts_with(prefix));
    if part == Part::Image && bare(&names, "visual.") {
        // A file of the image tower alone.
        return names
            .into_iter()
            .map(|(name, entry)| (format!("visual.{name}"), entry))
            .collect();
    }
    if part == Part::Text && !config.custom_text && !bare(&names, "text.") {
        let own = |(name, entry): (String, _)| (name.strip_prefix("text.").unwrap_or(&name).to_owned(), entry);
        names = names.into_iter().map(own).collect();
    } else if config.custom_text
        && (names.contains_key("text_projection") || part == Part::Text && bare(&names, "text."))
    {
        let moved = |(name, entry): (String, _)| {
            let text = TEXT_PARTS.iter().any(|part| name.starts_with(part));
            (if text { format!("text.{name}") } else { name }, entry)
        };
        names = names.into_iter().map(moved).collect();
    }
    names
}

/// What does not fit, all of it.
#[derive(Default)]
struct Misfits {
    missing: Vec<String>,
    unknown: Vec<String>,
    shapes: Vec<String>,
    kinds: Vec<String>,
}

impl Misfits {
    fn error(&self) -> Option<EngineError> {
        let mut text = String::new();
        for (what, list) in [
            ("missing", &self.missing),
            ("of another shape", &self.shapes),
            ("of another type", &self.kinds),
            ("not in the model", &self.unknown),
        ] {
            if list.is_empty() {
                continue;
            }
            let shown = list.iter().take(LISTED_MAX).cloned().collect::<Vec<_>>().join(", ");
            let more = list.len().saturating_sub(LISTED_MAX);
            let rest = if more > 0 {
                format!(" and {more} more")
            } else {
                String::new()
            };
            let join = if text.is_empty() { "" } else { "; " };
            // Writing to a string cannot fail.
            let _ = write!(text, "{join}{} {what}: {shown}{rest}", list.len());
        }
        let why = "the weights do not fit the model, and nothing was loaded";
        let hint = "check the model's name or configuration";
        (!text.is_empty()).then(|| EngineError::State(format!("{why}: {text}; {hint}")))
    }
}

fn plan<'a, 'p>(
    named: &BTreeMap<String, &'a Entry>,
    config: &ModelConfig,
    params: &'p Params,
    part: Part,
) -> Result<Vec<(&'p TensorSpec, How<'a>)>> {
    let (mut plan, mut bad) = (Vec::new(), Misfits::default());
    let text_positions = format!("{}positional_embedding", config.text_prefix());
    for spec in params.table().iter().filter(|spec| part.has(&spec.name)) {
        let Some(entry) = named.get(&spec.name).copied() else {
            // Without a bias the sigmoid loss begins at zero, and a frozen BatchNorm counts no batches.
            match spec.name.as_str() {
                "logit_bias" => plan.push((spec, How::Zero)),
                name if counts_batches(name) => plan.push((spec, How::Zero)),
                name => bad.missing.push(name.to_owned()),
            }
            continue;
        };
        let wanted: Vec<u64> = spec.shape.iter().map(|size| *size as u64).collect();
        let integer = counts_batches(&spec.name);
        if matches!(entry.number, Number::Other(_)) || (entry.number == Number::I64) != integer && !integer {
            let number = entry.number;
            bad.kinds.push(format!(
                "{} (stored as {number}; f32, f16, bf16 or f64 is read)",
                spec.name
            ));
            continue;
        }
        let scalar = matches!(spec.name.as_str(), "logit_scale" | "logit_bias");
        let how = if entry.shape == wanted || (scalar && entry.elements() == Some(1)) {
            Some(How::Same(entry))
        } else if spec.name == "visual.positional_embedding" && resizable(entry, &wanted) {
            Some(How::Image(entry))
        } else if spec.name == text_positions && resizable(entry, &wanted) {
            Some(How::Text(entry))
        } else {
            None
        };
        match how {
            Some(how) => plan.push((spec, how)),
            None => bad
                .shapes
                .push(format!("{} {:?} (the model has {wanted:?})", spec.name, entry.shape)),
        }
    }
    if part == Part::Whole {
        let known = |name: &str| params.spec(name).is_ok();
        bad.unknown.extend(named.keys().filter(|name| !known(name)).cloned());
    } else if plan.is_empty() && bad.shapes.is_empty() {
        return Err(EngineError::State(format!("it has nothing of the {part:?} tower")));
    }
    bad.error().map_or(Ok(plan), Err)
}

/// Whether a table of positions can be made longer or shorter.
fn resizable(entry: &Entry, wanted: &[u64]) -> bool {
    matches!((&entry.shape[..], wanted), (&[rows, width], &[_, own]) if width == own && (2..=POSITIONS_MAX).contains(&rows))
}

/// Positions on another grid (bicubic with antialiasing, the class token's as it is) or of another length (linear).
fn resized(file: &WeightFile, spec: &TensorSpec, entry: &Entry, image: bool) -> Result<Vec<f32>> {
    let mut old = Vec::new();
    file.append(&spec.name, entry, &mut old)?;
    let (rows, width) = (entry.shape[0] as i64, spec.shape[1]);
    let old = Tensor::f_from_slice(&old)?.f_view([rows, width])?;
    let new = if image {
        let side = |tokens: i64| ((tokens - 1) as f64).sqrt() as i64;
        let (from, to) = (side(rows), side(spec.shape[0]));
        if from * from + 1 != rows {
            let why = format!("{rows} positions are no class token and a square grid, which is what is resized");
            return Err(EngineError::State(format!("{:?}: {why}", spec.name)));
        }
        let grid = old.f_narrow(0, 1, from * from)?.f_view([1, from, from, width])?;
        let grid = grid.f_permute([0, 3, 1, 2])?.f_contiguous()?;
        let grid = grid.f_internal_upsample_bicubic2d_aa([to, to], false, None, None)?;
        let grid = grid.f_permute([0, 2, 3, 1])?.f_reshape([to * to, width])?;
        Tensor::f_cat(&[&old.f_narrow(0, 0, 1)?, &grid], 0)?
    } else {
        let line = old.f_view([1, rows, width])?.f_permute([0, 2, 1])?.f_contiguous()?;
        let line = line.f_upsample_linear1d([spec.shape[0]], false, None)?;
        line.f_permute([0, 2, 1])?.f_reshape([-1, width])?
    };
    to_vec(&new)
}
