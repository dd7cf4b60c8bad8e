//! The model card: what the weights are, what they were trained on, and how to check that.

use argosy_common::events::Manifest;
use std::fmt::Write as _;

/// What a card says.
pub(super) struct Facts<'a> {
    /// Name of the folder.
    pub(super) title: &'a str,
    /// Where the weights come from.
    pub(super) from: &'a str,
    /// The checkpoint, where there is one.
    pub(super) manifest: Option<&'a Manifest>,
    /// `trained` or `ema`.
    pub(super) weights: &'a str,
    /// Trained numbers.
    pub(super) parameters: usize,
    /// Lines of `results.jsonl`, newest of each set.
    pub(super) results: &'a [serde_json::Value],
}

/// The card as Markdown, with the front matter that model hubs read.
pub(super) fn render(facts: &Facts<'_>) -> String {
    let mut out = String::from(
        "---\ntags:\n- clip\nlibrary_name: open_clip\npipeline_tag: zero-shot-image-classification\n---\n\n",
    );
    let title = facts.title;
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "# {title}\n\nA CLIP model trained with Argosy, in OpenCLIP's layout.\n"
    );
    let _ = writeln!(
        out,
        "```python\nimport open_clip\nmodel = open_clip.create_model(\"local-dir:path/to/{title}\")\n```\n"
    );
    let _ = writeln!(out, "## Model\n\n| what | |\n|---|---|");
    let mut row = |what: &str, value: String| {
        let _ = writeln!(out, "| {what} | {} |", value.replace('|', "\\|"));
    };
    row("weights", facts.weights.to_owned());
    row("parameters", facts.parameters.to_string());
    row("taken from", facts.from.to_owned());
    row("exported by", format!("argosy {}", env!("CARGO_PKG_VERSION")));
    if let Some(manifest) = facts.manifest {
        training(&mut row, manifest);
    }
    if let Some(manifest) = facts.manifest {
        data(&mut out, manifest);
    }
    out += "\n## Results\n\n";
    if facts.results.is_empty() {
        out += "None were recorded in the run folder; `argosy eval zero-shot` measures them.\n";
    }
    for result in facts.results {
        let _ = writeln!(out, "- `{result}`");
    }
    out
}

fn training(row: &mut impl FnMut(&str, String), manifest: &Manifest) {
    let job = &manifest.job;
    row("run", manifest.run.clone());
    row("trained by", format!("argosy {}", manifest.argosy));
    row("state", manifest.name.to_string());
    row("steps", manifest.name.step.to_string());
    row("positions seen", manifest.positions_seen.to_string());
    row("seed", manifest.seed.to_string());
    row("training configuration", format!("{:016x}", manifest.config_hash));
    for key in [
        "global_batch",
        "epochs",
        "lr",
        "wd",
        "warmup",
        "beta1",
        "beta2",
        "eps",
        "lr_scheduler",
    ] {
        if let Some(value) = job["train"].get(key).filter(|v| !v.is_null()) {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            row(key, text);
        }
    }
    if let Some(from) = job["model"]["pretrained"].as_str() {
        row("started from", from.to_owned());
    }
}

fn data(out: &mut String, manifest: &Manifest) {
    let _ = writeln!(out, "\n## Data\n\n| what | |\n|---|---|");
    for source in manifest.job["data"]["sources"].as_array().into_iter().flatten() {
        let text = |key: &str| source[key].as_str().unwrap_or_default().replace('|', "\\|");
        let _ = writeln!(out, "| source {} | `{}` |", text("name"), text("shards"));
    }
    let _ = writeln!(out, "| index | {:016x} |", manifest.index_hash);
    let _ = writeln!(out, "| rows trained | {} |", manifest.ledger.trained);
    for (reason, rows) in &manifest.ledger.masked {
        let _ = writeln!(out, "| rows masked ({reason}) | {rows} |");
    }
    for (reason, rows) in &manifest.ledger.skipped {
        let _ = writeln!(out, "| rows passed over ({}) | {rows} |", reason.replace('|', "\\|"));
    }
}
