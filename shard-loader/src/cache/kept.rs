//! A picture that was decoded and resized, with the captions of its sample, as one run of bytes.

use crate::decode::Rgb;
use crate::sample::Caption;

/// What is kept of a row in place of its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Width and height before it was resized; the random crop is drawn in these.
    pub(crate) full: (usize, usize),
    /// The resized picture.
    pub(crate) picture: Rgb,
    /// All captions of the sample, in order of preference.
    pub(crate) captions: Vec<Caption>,
}

impl Kept {
    /// Bytes of a row: four sizes, the number of captions, each as entry, length and text, the pixels.
    pub(crate) fn write(full: (usize, usize), picture: &Rgb, captions: &[Caption]) -> Vec<u8> {
        let text: usize = captions.iter().map(|c| c.text.len() + 8).sum();
        let mut out = Vec::with_capacity(20 + text + picture.pixels.len());
        let word = |out: &mut Vec<u8>, n: usize| out.extend_from_slice(&(n as u32).to_le_bytes());
        for n in [full.0, full.1, picture.width, picture.height, captions.len()] {
            word(&mut out, n);
        }
        for caption in captions {
            word(&mut out, caption.entry);
            word(&mut out, caption.text.len());
            out.extend_from_slice(caption.text.as_bytes());
        }
        out.extend_from_slice(&picture.pixels);
        out
    }

    /// The way back; none for bytes of another making.
    pub(crate) fn read(mut bytes: &[u8]) -> Option<Self> {
        let word = |bytes: &mut &[u8]| {
            let (n, rest) = bytes.split_first_chunk::<4>()?;
            *bytes = rest;
            Some(u32::from_le_bytes(*n) as usize)
        };
        let full = (word(&mut bytes)?, word(&mut bytes)?);
        let (width, height) = (word(&mut bytes)?, word(&mut bytes)?);
        let mut captions = Vec::new();
        for _ in 0..word(&mut bytes)? {
            let (entry, length) = (word(&mut bytes)?, word(&mut bytes)?);
            let (text, rest) = bytes.split_at_checked(length)?;
            bytes = rest;
            let text = std::str::from_utf8(text).ok()?.to_owned();
            captions.push(Caption { entry, text });
        }
        let whole = width.checked_mul(height)?.checked_mul(3)? == bytes.len() && !bytes.is_empty();
        whole.then(|| Self {
            full,
            picture: Rgb {
                width,
                height,
                pixels: bytes.to_vec(),
            },
            captions,
        })
    }
}
