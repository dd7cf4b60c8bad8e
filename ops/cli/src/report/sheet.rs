//! The contact sheet: made by `argosy-worker contact-sheet`, laid out here.

use super::page::escape;
use crate::fail::{Failure, Outcome};
use crate::job::below;
use crate::worker;
use argosy_common::config::Job;
use argosy_common::exit::Exit;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::Path;

/// What the worker says; numbers of samples count from 0 in the pool.
#[derive(Debug, serde::Deserialize)]
pub(super) struct Sheet {
    checkpoint: String,
    data: String,
    pool: usize,
    text_to_image_recall_at_1: f64,
    image_to_text_recall_at_1: f64,
    captions: Vec<Asked>,
    pictures: Vec<Asked>,
    caption_of: BTreeMap<usize, String>,
    thumbnail_of: BTreeMap<usize, String>,
}

#[derive(Debug, serde::Deserialize)]
struct Asked {
    sample: usize,
    nearest: Vec<(usize, f32)>,
}

/// Shards that a sheet can be made of: the first evaluation set's, else the training's.
pub(super) fn data_of(run: &Path, job: &Job) -> Option<String> {
    let set = job.evaluation.sets.first().map(|set| set.data.as_str());
    let source = job.data.sources.first().map(|source| source.shards.as_str());
    Some(below(run, set.or(source)?))
}

/// Lets the worker embed pictures and captions of `data` with the run's last checkpoint.
pub(super) fn make(run: &Path, data: &str, job: Option<&Job>) -> Outcome<Sheet> {
    let program = worker::find()?;
    let mut args: Vec<OsString> = ["contact-sheet", "--data", data, "--checkpoint"]
        .map(Into::into)
        .to_vec();
    args.push(run.into());
    if let Some(job) = job {
        args.extend(["--image-key", &job.data.image_key, "--text-key", &job.data.text_key].map(Into::into));
        args.extend([
            "--max-image-pixels".into(),
            job.data.max_image_pixels.to_string().into(),
        ]);
    }
    let answer = worker::ask(&program, &args)?;
    serde_json::from_slice(&answer).map_err(|e| {
        Failure::new(
            Exit::Conflict,
            format!("{} makes a sheet in words unknown here: {e}", program.display()),
        )
    })
}

impl Sheet {
    pub(super) fn html(&self) -> String {
        let mut html = format!(
            "<p>{} samples of <code>{}</code>, embedded with {}. A caption's own picture is the nearest for {:.1} % of them, \
             a picture's own caption for {:.1} %; chance is {:.1} %. What belongs together is marked.</p>\n",
            self.pool,
            escape(&self.data),
            escape(&self.checkpoint),
            self.text_to_image_recall_at_1 * 100.0,
            self.image_to_text_recall_at_1 * 100.0,
            100.0 / self.pool.max(1) as f64
        );
        html.push_str("<h3>A caption and the pictures nearest to it</h3>\n");
        for asked in &self.captions {
            let _ = write!(
                html,
                "<div class=\"asked\"><p>{}</p><div class=\"row\">",
                self.caption(asked.sample)
            );
            for (sample, cosine) in &asked.nearest {
                let own = if *sample == asked.sample { " class=\"own\"" } else { "" };
                let _ = write!(
                    html,
                    "<figure{own}>{}<figcaption>{cosine:.2}</figcaption></figure>",
                    self.picture(*sample)
                );
            }
            html.push_str("</div></div>\n");
        }
        html.push_str("<h3>A picture and the captions nearest to it</h3>\n");
        for asked in &self.pictures {
            let _ = write!(
                html,
                "<div class=\"asked\"><div class=\"row\"><figure>{}</figure><p class=\"soft\">{}</p></div><ol class=\"words\">",
                self.picture(asked.sample),
                self.caption(asked.sample)
            );
            for (sample, cosine) in &asked.nearest {
                let own = if *sample == asked.sample { " class=\"own\"" } else { "" };
                let _ = write!(
                    html,
                    "<li{own}>{} <span class=\"soft\">{cosine:.2}</span></li>",
                    self.caption(*sample)
                );
            }
            html.push_str("</ol></div>\n");
        }
        html
    }

    fn caption(&self, sample: usize) -> String {
        /// Captions of the web can be pages long.
        const CHARS_MAX: usize = 160;
        let caption = self.caption_of.get(&sample).map_or("", String::as_str);
        let short: String = caption.chars().take(CHARS_MAX).collect();
        let more = if short.len() < caption.len() { "…" } else { "" };
        escape(&short) + more
    }

    fn picture(&self, sample: usize) -> String {
        // Base64 of ours holds no character that could leave the attribute, but this page trusts nobody.
        let jpeg = self.thumbnail_of.get(&sample).map_or("", String::as_str);
        format!(
            "<img src=\"data:image/jpeg;base64,{}\" alt=\"{}\">",
            escape(jpeg),
            self.caption(sample)
        )
    }
}
