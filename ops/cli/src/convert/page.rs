//! `ops/migrating.md`, from the table of flags.

#![cfg(test)]

use super::flags::{FLAGS, Fate, Flag};

const HEAD: &str = "# From open_clip_train to Argosy

`argosy convert-args` prints the job file of a command line and names every flag that it cannot honour:

```console
$ argosy convert-args torchrun --nproc_per_node 4 -m open_clip_train.main \\
    --train-data '/data/cc12m/{00000..01242}.tar' --dataset-type webdataset --train-num-samples 10968539 \\
    --model ViT-B-32 --batch-size 256 --lr 1e-3 --warmup 2000 --epochs 32 --precision amp_bf16 \\
    --local-loss --gather-with-grad > job.toml
needless: --dataset-type --local-loss --gather-with-grad
$ argosy validate job.toml
$ argosy run job.toml
```

Three things are not as they were:

- **The batch is that of all GPUs.** `--batch-size` was per GPU; `train.global_batch` stays the same on any number of workers,
  and so does everything that is counted in steps.
- **A pass trains every row once**, in an order that the seed decides alone. Epochs have as many positions as there are rows,
  or `data.train_num_samples`; a run stops and goes on anywhere inside one.
- **A job file is all that there is**: no environment, no launcher, no rank. `argosy config show --origin JOB` tells where each
  value comes from.

Checkpoints go both ways: `epoch_N.pt` and hub folders are a start (`model.pretrained`), `argosy export` writes what
`open_clip.create_model` loads.

This page is made from the program's own table (`ops/cli/src/convert/flags.rs`), which has the flags of open_clip_train 3.3.0 and,
marked with *, those that only its main branch has.
";

/// The whole page.
pub(super) fn page() -> String {
    let mut text = HEAD.to_owned();
    let mut part = |title: &str, head: &str, wanted: fn(&Flag) -> bool| {
        text += &format!("\n## {title}\n\n{head}\n");
        for flag in FLAGS.iter().filter(|flag| wanted(flag)) {
            let star = if flag.main { " *" } else { "" };
            match flag.fate {
                Fate::Key(key) => text += &format!("| `{}`{star} | `{key}` | {} |\n", flag.name, flag.note),
                _ => text += &format!("| `{}`{star} | {} |\n", flag.name, flag.note),
            }
        }
    };
    part("Flags that become keys", "| flag | key | |\n|---|---|---|", |f| {
        matches!(f.fate, Fate::Key(_))
    });
    part("Flags that are not needed", "| flag | why |\n|---|---|", |f| {
        f.fate == Fate::Needless
    });
    part(
        "Flags that cannot be honoured",
        "| flag | why, or what instead |\n|---|---|",
        |f| f.fate == Fate::Lost,
    );
    text
}
