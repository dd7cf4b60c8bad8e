//! Every model of open_clip by name, and what it is made of, against what open_clip itself says
//! (`tests/peers/models.py`, `tests/peers/init.py`).

use argosy_worker::clip::config::known;
use argosy_worker::clip::init::Init;
use argosy_worker::clip::specs::Specs;
use argosy_worker::clip::{ModelConfig, table};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn golden(name: &str) -> Value {
    let path = root().join("tests/goldens").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// Digest of all names and shapes, as `models.py` makes it.
fn layout(specs: &Specs) -> String {
    let all = specs.trained.iter().chain(&specs.buffers);
    let mut lines: Vec<String> = all.map(|(name, (shape, _))| format!("{name}:{shape:?}")).collect();
    lines.sort();
    let digest = Sha256::digest(lines.join("\n").as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn models_of_open_clip_are_all_known_with_its_configurations_counts_and_shapes() {
    let golden = golden("models.json");
    let theirs = golden["models"].as_object().unwrap();
    let ours: BTreeMap<String, _> = known()
        .into_iter()
        .map(|model| (model.name, model.config))
        .filter(|(name, _)| !name.starts_with("demo-"))
        .collect();
    assert!(ours.keys().eq(theirs.keys()), "names differ");
    assert_eq!(theirs.len(), 144);
    let mut built = 0;
    for (name, want) in theirs {
        match &ours[name] {
            Err(why) => assert_eq!(Some(why.as_str()), want["refused"].as_str(), "{name}"),
            Ok(config) => {
                built += 1;
                assert_eq!(*config, want["model_cfg"], "{name}");
                // Nothing is allocated: the largest would not fit here.
                let specs = Specs::of(&ModelConfig::by_name(name).unwrap());
                let image: usize = specs
                    .trained
                    .iter()
                    .filter(|(name, _)| name.starts_with("visual."))
                    .map(|(_, (shape, _))| argosy_worker::clip::specs::elements(shape))
                    .sum();
                let got = [
                    ("parameters", specs.parameters()),
                    ("image_parameters", image),
                    ("buffers", specs.elements() - specs.parameters()),
                    ("tensors", specs.trained.len() + specs.buffers.len()),
                ];
                for (what, got) in got {
                    assert_eq!(Some(got as u64), want[what].as_u64(), "{name}: {what}");
                }
                assert_eq!(
                    Some(layout(&specs).as_str()),
                    want["layout"].as_str(),
                    "{name}: names or shapes differ"
                );
            }
        }
    }
    assert_eq!(built, 55);
}

#[test]
fn models_page_says_what_is_built() {
    let path = root().join("ops/models.md");
    let want = table::page();
    if std::env::var_os("ARGOSY_BLESS").is_some() {
        std::fs::write(&path, &want).unwrap();
    }
    let got = std::fs::read_to_string(&path).unwrap_or_default();
    let how = "write it anew with `ARGOSY_BLESS=1 cargo test -p argosy-worker models_page`";
    assert!(got == want, "{} is not what the models are: {how}", path.display());
}

/// Elements, mean, standard deviation, kurtosis, largest absolute value.
fn moments(values: &[f32]) -> [f64; 5] {
    let n = values.len() as f64;
    let power = |mean: f64, p: i32| values.iter().map(|v| (f64::from(*v) - mean).powi(p)).sum::<f64>() / n;
    let mean = power(0.0, 1);
    let std = power(mean, 2).sqrt();
    let kurtosis = if std > 0.0 { power(mean, 4) / std.powi(4) } else { 0.0 };
    let largest = values.iter().fold(0.0f64, |most, v| most.max(f64::from(v.abs())));
    [n, mean, std, kurtosis, largest]
}

/// What two samples of one distribution would not differ by: five standard errors of each moment.
fn check_moments(name: &str, got: [f64; 5], want: [f64; 5]) -> Result<(), String> {
    let [n, mean, std, kurtosis, largest] = want;
    let error = |what: &str, got: f64, want: f64| Err(format!("{name}: {what} {got}, open_clip's is {want}"));
    if got[0] != n {
        return error("elements", got[0], n);
    }
    if std == 0.0 {
        // A constant, of which open_clip's was written with six digits.
        let same = got[2] < 1e-7 && (got[1] - mean).abs() <= 2e-6 * mean.abs();
        return if same { Ok(()) } else { error("constant", got[1], mean) };
    }
    let five = 5.0 * 2f64.sqrt();
    if (got[1] - mean).abs() > five * std / n.sqrt() {
        return error("mean", got[1], mean);
    }
    if (got[2] / std - 1.0).abs() > five * ((kurtosis - 1.0) / (4.0 * n)).sqrt() {
        return error("standard deviation", got[2], std);
    }
    // 3 is a normal distribution's, 1.8 a uniform one's.
    if (got[3] - kurtosis).abs() > 0.6 {
        return error("kurtosis", got[3], kurtosis);
    }
    if kurtosis < 2.4 && (got[4] / largest - 1.0).abs() > 0.02 {
        return error("end of the range", got[4], largest);
    }
    Ok(())
}

#[test]
fn initial_weights_have_open_clips_distributions_tensor_by_tensor() {
    let golden = golden("init.json");
    let seeds = golden["seeds"].as_u64().unwrap();
    let mut seen = 0;
    for (model, entry) in golden["models"].as_object().unwrap() {
        let (config, _) = ModelConfig::from_json(&entry["model_cfg"].to_string()).unwrap();
        let specs = Specs::of(&config);
        let all: BTreeMap<_, _> = specs.trained.iter().chain(&specs.buffers).collect();
        let theirs = entry["tensors"].as_object().unwrap();
        assert!(
            all.keys()
                .map(|name| name.as_str())
                .eq(theirs.keys().map(String::as_str)),
            "{model}: names"
        );
        for (name, (shape, init)) in all {
            let len = argosy_worker::clip::specs::elements(shape);
            let mut values = vec![0.0f32; len * seeds as usize];
            for (seed, part) in values.chunks_mut(len).enumerate() {
                init.fill(seed as u64, name, part);
            }
            let want: Vec<f64> = theirs[name]
                .as_array()
                .unwrap()
                .iter()
                .map(|v| v.as_f64().unwrap())
                .collect();
            check_moments(&format!("{model}: {name}"), moments(&values), want.try_into().unwrap())
                .unwrap_or_else(|why| panic!("{why}"));
            seen += 1;
        }
    }
    assert_eq!(seen, 331);
}

#[test]
fn check_of_moments_tells_distributions_apart() {
    let draw = |init: Init| {
        let mut values = vec![0.0f32; 4096];
        init.fill(3, "a", &mut values);
        moments(&values)
    };
    let normal = draw(Init::Normal(0.5));
    assert!(check_moments("a", draw(Init::Normal(0.5)), normal).is_ok());
    for (what, other) in [
        ("wider", Init::Normal(0.6)),
        ("uniform of the same deviation", Init::Uniform(0.5 * 3f64.sqrt())),
        ("constant", Init::Constant(0.0)),
    ] {
        assert!(check_moments("a", draw(other), normal).is_err(), "{what}");
    }
    let uniform = draw(Init::Uniform(1.0));
    assert!(check_moments("a", draw(Init::Uniform(1.1)), uniform).is_err());
    assert!(check_moments("a", draw(Init::Constant(1.0)), draw(Init::Constant(0.0))).is_err());
}
