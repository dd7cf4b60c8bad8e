//! The control run: captions that tell nothing about their pictures teach nothing.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::report::Style;

const BLOCK: usize = 512;
/// Hits of a model that knows nothing follow chance; so many times chance, over all styles, is beyond luck.
const TIMES_CHANCE_MAX: f64 = 3.0;

/// Gives every training sample another one's caption, shard by shard, in place.
pub(super) fn shuffle(data: &Path) -> Result<()> {
    let mut shards = 0;
    for style in fs::read_dir(data).with_context(|| format!("cannot read {}", data.display()))? {
        for shard in fs::read_dir(style?.path())? {
            let path = shard?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with("train-") {
                let tar = fs::read(&path)?;
                let shuffled = exchange(&tar).with_context(|| path.display().to_string())?;
                fs::write(&path, shuffled).with_context(|| format!("cannot write {}", path.display()))?;
                shards += 1;
            }
        }
    }
    ensure!(shards > 0, "no training shard below {}", data.display());
    Ok(())
}

/// Is the model as ignorant as it must be?
pub(super) fn judge(styles: &[Style]) -> Result<()> {
    let hits: f64 = styles.iter().map(|s| s.top1 * s.samples as f64).sum();
    let by_chance: f64 = styles.iter().map(|s| s.chance * s.samples as f64).sum();
    ensure!(
        hits <= TIMES_CHANCE_MAX * by_chance,
        "trained on shuffled captions it still has {hits:.0} hits, chance gives {by_chance:.1}"
    );
    eprintln!("demo: control holds: {hits:.0} hits, chance gives {by_chance:.1}");
    Ok(())
}

/// The archive with the data of its `.txt` members moved on by half their number.
fn exchange(tar: &[u8]) -> Result<Vec<u8>> {
    let mut members: Vec<(&[u8], &[u8])> = Vec::new();
    let mut at = 0;
    while let Some(header) = tar.get(at..at + BLOCK).filter(|h| h[0] != 0) {
        let size = std::str::from_utf8(&header[124..135])?.trim_matches(['\0', ' ']);
        let size = usize::from_str_radix(size, 8).context("a size that is no number")?;
        let data = tar.get(at + BLOCK..at + BLOCK + size).context("the archive is cut")?;
        members.push((header, data));
        at += BLOCK + size.next_multiple_of(BLOCK);
    }
    let name = |header: &[u8]| header[..100].split(|b| *b == 0).next().unwrap_or_default().to_vec();
    let captions: Vec<&[u8]> = members
        .iter()
        .filter(|(header, _)| name(header).ends_with(b".txt"))
        .map(|(_, data)| *data)
        .collect();
    ensure!(captions.len() > 1, "there are no captions to exchange");
    let mut out = Vec::with_capacity(tar.len());
    let mut next = captions.len() / 2;
    for (header, data) in members {
        let mut header = header.to_vec();
        let mut data = data;
        if name(&header).ends_with(b".txt") {
            data = captions[next % captions.len()];
            next += 1;
            header[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
            header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }
        out.extend_from_slice(&header);
        out.extend_from_slice(data);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
    }
    out.resize(out.len() + 2 * BLOCK, 0);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(members: &[(&str, &str)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, data) in members {
            let mut header = [0u8; BLOCK];
            header[..name.len()].copy_from_slice(name.as_bytes());
            header[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
            out.extend_from_slice(&header);
            out.extend_from_slice(data.as_bytes());
            out.resize(out.len().next_multiple_of(BLOCK), 0);
        }
        out.resize(out.len() + 2 * BLOCK, 0);
        out
    }

    #[test]
    fn captions_move_and_pictures_stay() {
        let tar = archive(&[("a.jpg", "A"), ("a.txt", "an ant"), ("b.jpg", "B"), ("b.txt", "a bee")]);
        let out = exchange(&tar).unwrap();
        let at = |block: usize| out[block * BLOCK..].split(|b| *b == 0).next().unwrap().to_vec();
        assert_eq!(
            (at(1), at(3), at(5), at(7)),
            (b"A".to_vec(), b"a bee".to_vec(), b"B".to_vec(), b"an ant".to_vec())
        );
        assert!(exchange(&archive(&[("a.jpg", "A")])).is_err());
        assert!(exchange(&tar[..700]).is_err());
    }
}
