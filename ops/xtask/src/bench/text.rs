//! What length groups of captions are worth, and whether the fixed cost of a group is a good one.

use std::process::Command;

use anyhow::{Context, Result};

use super::{Bench, Better, Bound, Measure, Session, step};

pub(crate) const BENCH: Bench = Bench {
    name: "text-groups",
    about: "Text towers over captions in length groups: the split that training takes, against the best that was tried",
    run,
};

/// Rounds within one process, all splits in turn; figures are ratios of their medians.
const ROUNDS: &str = "5";
/// Width, heads and layers of the text towers of ViT-B/32 and of the small model of `step-small`.
const TOWERS: [[&str; 3]; 2] = [["512", "8", "12"], ["192", "3", "6"]];

fn run(session: &mut Session<'_>) -> Result<()> {
    let ours = session.build("argosy-worker", ["--example", "bench_text"])?;
    let captions = step::captions(&session.workspace()?)?;
    for [width, heads, layers] in TOWERS {
        for batch in ["16", "64"] {
            let measure = |what: &str, bound: Bound| Measure {
                label: format!("width {width}, batch {batch}: time over that of {what}"),
                unit: "times",
                better: Better::Lower,
                bound: Some(bound),
            };
            let measures = vec![
                measure("the best split tried", Bound::AtMost(1.05)),
                measure("one group as long as the longest caption", Bound::AtMost(1.0)),
            ];
            let call = || {
                let mut command = Command::new(&ours);
                command.args([width, heads, layers, batch]);
                command.arg(&captions).args(["2", ROUNDS]);
                command
            };
            session.alone_many(measures, |session| {
                let value = session.json(&mut call())?;
                let number = |key: &str| value[key].as_f64().with_context(|| format!("no {key} in the result"));
                Ok(vec![number("over_best")?, number("over_one_group")?])
            })?;
        }
    }
    session.note(
        "Forward and backward of a text tower over captions of 8 to 40 ids, two threads; splits by ten costs a group from 1 \
         position to no second group, in turn in one process. The best of several medians is a little too good by chance.",
    );
    Ok(())
}
