//! Which bytes of a state lie in which part, and under which name (rule K1).
//!
//! A part is 64 MiB of the exported state, wherever that cuts it, but never within a row: a cut inside a row moves to the
//! row's end. A tensor that lies in one part as a whole has its own name; rows `a..b` of it are called `tensor[a:b]`. All of
//! this follows from the table of the state alone, so it is the same at any world size. Behind the state's parts stands one
//! more, the log of the steps since the parent (rule AU1).

use super::CheckpointError;
use crate::engine::StateTensor;
use crate::engine::state::StateKind;
use argosy_common::ids::StateName;
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensors};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

/// Version of a part's format.
pub const FORMAT_VERSION: u32 = 2;
/// Bytes of the state in one part, before it is rounded up to whole rows.
pub const PART_BYTES: usize = 64 << 20;
/// Largest header of a part: far above what names and shapes of one part take.
pub(super) const HEADER_BYTES_MAX: u64 = 16 << 20;
/// Key of the part's own description in its metadata.
const METADATA_KEY: &str = "argosy";

/// What a part says of itself.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct PartLabel {
    pub(super) version: u32,
    pub(super) run: String,
    pub(super) name: StateName,
    pub(super) part: u32,
    pub(super) parts_total: u32,
}

/// Parts of a checkpoint of a state of `state_bytes` bytes: those of the state, and the log.
#[must_use]
pub fn parts_total(state_bytes: usize) -> u32 {
    state_parts(state_bytes, PART_BYTES) + 1
}

/// Parts that hold the state.
#[must_use]
fn state_parts(state_bytes: usize, part_bytes: usize) -> u32 {
    state_bytes.div_ceil(part_bytes).max(1) as u32
}

/// The parts of a state.
#[derive(Clone, Debug)]
pub struct Layout {
    table: Vec<StateTensor>,
    part_bytes: usize,
    state_bytes: usize,
}

/// Rows of one tensor.
#[derive(Debug, PartialEq, Eq)]
struct Piece {
    name: String,
    kind: StateKind,
    shape: Vec<usize>,
    /// Bytes in the exported state.
    at: Range<usize>,
}

impl Layout {
    /// The parts of a state with these tensors.
    #[must_use]
    pub fn new(table: Vec<StateTensor>) -> Self {
        Self::with_part_bytes(table, PART_BYTES)
    }

    pub(super) fn with_part_bytes(table: Vec<StateTensor>, part_bytes: usize) -> Self {
        debug_assert!(table.windows(2).all(|w| w[0].at.end == w[1].at.start), "no gaps");
        let state_bytes = table.last().map_or(0, |t| t.at.end);
        Self {
            table,
            part_bytes,
            state_bytes,
        }
    }

    /// Bytes of the whole state.
    #[must_use]
    pub fn state_bytes(&self) -> usize {
        self.state_bytes
    }

    /// Parts that hold the state.
    #[must_use]
    pub fn state_parts(&self) -> u32 {
        state_parts(self.state_bytes, self.part_bytes)
    }

    /// Bytes of the state in part `part`; empty where one row fills several parts.
    #[must_use]
    pub fn range(&self, part: u32) -> Range<usize> {
        self.cut(part as usize)..self.cut(part as usize + 1)
    }

    /// Where part `part` begins: at its share of the bytes, or at the end of the row that lies across.
    fn cut(&self, part: usize) -> usize {
        let at = part.saturating_mul(self.part_bytes);
        let inside = self.table.iter().find(|t| t.at.start < at && at < t.at.end);
        match inside {
            Some(tensor) => {
                let row = tensor.at.len() / tensor.shape.first().copied().unwrap_or(1).max(1);
                tensor.at.start + (at - tensor.at.start).next_multiple_of(row.max(1))
            }
            None => at.min(self.state_bytes),
        }
    }

    /// The pieces of one part, in order.
    fn pieces(&self, part: u32) -> Vec<Piece> {
        let range = self.range(part);
        let mut out = Vec::new();
        for tensor in &self.table {
            let (from, to) = (range.start.max(tensor.at.start), range.end.min(tensor.at.end));
            if from >= to {
                continue;
            }
            let mut piece = Piece {
                name: tensor.name.clone(),
                kind: tensor.kind,
                shape: tensor.shape.clone(),
                at: from..to,
            };
            if piece.at != tensor.at {
                let row = tensor.at.len() / tensor.shape[0];
                let rows = (from - tensor.at.start) / row..(to - tensor.at.start) / row;
                piece.name = format!("{}[{}:{}]", tensor.name, rows.start, rows.end);
                piece.shape[0] = rows.len();
            }
            out.push(piece);
        }
        out
    }

    /// What stands before the bytes of part `part` in its safetensors file: the length of the header, and the header.
    ///
    /// # Errors
    /// When the header cannot be written.
    pub fn header(&self, run: &str, name: StateName, part: u32) -> Result<Vec<u8>, CheckpointError> {
        let wrong = |why: String| CheckpointError::part(part, "to be written", why);
        let label = PartLabel {
            version: FORMAT_VERSION,
            run: run.into(),
            name,
            part,
            parts_total: self.state_parts() + 1,
        };
        let label = serde_json::to_string(&label).map_err(|e| wrong(e.to_string()))?;
        let start = self.range(part).start;
        let info = |piece: Piece| {
            let dtype = dtype(piece.kind);
            let data_offsets = (piece.at.start - start, piece.at.end - start);
            let (shape, name) = (piece.shape, piece.name);
            let info = TensorInfo {
                dtype,
                shape,
                data_offsets,
            };
            (name, info)
        };
        let tensors = self.pieces(part).into_iter().map(info).collect();
        let metadata = Metadata::new(Some(HashMap::from([(METADATA_KEY.to_owned(), label)])), tensors);
        let metadata = metadata.map_err(|e| wrong(e.to_string()))?;
        let mut json = serde_json::to_vec(&metadata).map_err(|e| wrong(e.to_string()))?;
        // Values begin at a multiple of eight, as readers that map the file expect.
        json.resize(json.len().next_multiple_of(8), b' ');
        let mut header = (json.len() as u64).to_le_bytes().to_vec();
        header.append(&mut json);
        Ok(header)
    }

    /// Reads a part's file into its place in `state`. `key` names it in errors.
    ///
    /// # Errors
    /// When it is not the part `part` of state `name` of this model.
    pub fn decode(
        &self,
        key: &str,
        name: StateName,
        part: u32,
        file: &[u8],
        state: &mut [u8],
    ) -> Result<(), CheckpointError> {
        let wrong = |why: String| CheckpointError::part(part, key, why);
        let (_, header) =
            SafeTensors::read_metadata(file).map_err(|e| wrong(format!("not a safetensors file: {e}")))?;
        let label = header.metadata().as_ref().and_then(|m| m.get(METADATA_KEY));
        let label = label.ok_or_else(|| wrong("it carries no label of Argosy's".into()))?;
        let label: PartLabel = serde_json::from_str(label).map_err(|e| wrong(format!("its label: {e}")))?;
        if label.version != FORMAT_VERSION {
            let why = format!(
                "it has format version {}, this Argosy reads {FORMAT_VERSION}",
                label.version
            );
            return Err(wrong(why));
        }
        let total = self.state_parts() + 1;
        if (label.part, label.parts_total, label.name) != (part, total, name) {
            return Err(wrong(format!(
                "it says it is part {} of {} of {}; part {part} of {total} of {name} is expected",
                label.part, label.parts_total, label.name
            )));
        }
        let tensors = SafeTensors::deserialize(file).map_err(|e| wrong(e.to_string()))?;
        let pieces = self.pieces(part);
        if tensors.len() != pieces.len() {
            return Err(wrong(format!(
                "it holds {} tensors, the model has {} there",
                tensors.len(),
                pieces.len()
            )));
        }
        for piece in pieces {
            let tensor = tensors
                .tensor(&piece.name)
                .map_err(|_| wrong(format!("tensor `{}` is missing", piece.name)))?;
            if tensor.dtype() != dtype(piece.kind) || tensor.shape() != piece.shape {
                return Err(wrong(format!(
                    "tensor `{}` is {:?} {:?}, the model needs {:?} {:?}",
                    piece.name,
                    tensor.dtype(),
                    tensor.shape(),
                    dtype(piece.kind),
                    piece.shape
                )));
            }
            state[piece.at].copy_from_slice(tensor.data());
        }
        Ok(())
    }
}

fn dtype(kind: StateKind) -> Dtype {
    match kind {
        StateKind::F32 => Dtype::F32,
        StateKind::U64 => Dtype::U64,
    }
}

/// Tensor and first row of a name in a part: `visual.proj[3:7]` is rows of `visual.proj` from 3 on.
pub(super) fn parse_piece(name: &str) -> (&str, usize) {
    let rows = name.strip_suffix(']').and_then(|n| n.rsplit_once('['));
    match rows.and_then(|(tensor, rows)| Some((tensor, rows.split_once(':')?.0.parse().ok()?))) {
        Some((tensor, first)) => (tensor, first),
        None => (name, 0),
    }
}

/// The table of a state as its parts describe it, for programs that do not know the engine that wrote them: pieces are put
/// together by name, in the order of the parts.
pub(super) fn table_of_parts<'a>(pieces: impl Iterator<Item = (&'a str, Dtype, &'a [usize])>) -> Vec<StateTensor> {
    let mut order: Vec<StateTensor> = Vec::new();
    let mut known: BTreeMap<String, usize> = BTreeMap::new();
    for (name, dtype, shape) in pieces {
        let kind = if dtype == Dtype::U64 {
            StateKind::U64
        } else {
            StateKind::F32
        };
        let (tensor, first) = parse_piece(name);
        match known.get(tensor) {
            Some(at) if first > 0 => order[*at].shape[0] += shape.first().copied().unwrap_or(1),
            _ => {
                known.insert(tensor.to_owned(), order.len());
                order.push(StateTensor {
                    name: tensor.to_owned(),
                    shape: shape.to_vec(),
                    kind,
                    at: 0..0,
                });
            }
        }
    }
    let mut end = 0;
    for tensor in &mut order {
        let bytes = tensor.shape.iter().product::<usize>() * tensor.kind.bytes();
        tensor.at = end..end + bytes;
        end += bytes;
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::TensorSpec;
    use crate::engine::state::state_table;
    use argosy_common::ids::Generation;

    fn specs() -> Vec<TensorSpec> {
        let spec = |name: &str, shape: &[i64], offset, len| TensorSpec {
            name: name.into(),
            shape: shape.to_vec(),
            offset,
            len,
        };
        vec![spec("a", &[3, 2], 0, 6), spec("b", &[], 6, 1), spec("c", &[10], 7, 10)]
    }

    fn layout(part_bytes: usize) -> Layout {
        let table = state_table(&specs(), &["", "exp_avg.", "exp_avg_sq.", "ema."]);
        Layout::with_part_bytes(table, part_bytes)
    }

    fn file(layout: &Layout, part: u32, state: &[u8]) -> Vec<u8> {
        let mut file = layout.header("r", NAME, part).unwrap();
        file.extend_from_slice(&state[layout.range(part)]);
        file
    }

    const NAME: StateName = StateName {
        step: 5,
        applied_gen: Generation(2),
    };
    const BYTES: usize = 16 * 17 + 8;

    fn state() -> Vec<u8> {
        (0..BYTES).map(|i| (i * 31 % 251) as u8).collect()
    }

    #[test]
    fn parts_of_any_size_put_the_state_together_again() {
        for part_bytes in [1, 7, 8, 28, 60, 61, 200, 10_000] {
            let layout = layout(part_bytes);
            let mut back = vec![0; BYTES];
            for part in 0..layout.state_parts() {
                layout
                    .decode("k", NAME, part, &file(&layout, part, &state()), &mut back)
                    .unwrap();
            }
            assert_eq!(back, state(), "parts of {part_bytes}");
        }
    }

    #[test]
    fn part_names_whole_tensors_plainly_and_pieces_by_their_rows() {
        // The cut at byte 20 lies inside row 2 of `a` and moves to its end; that at 60 lies inside `c`.
        let names = |part: u32| -> Vec<String> { layout(20).pieces(part).into_iter().map(|p| p.name).collect() };
        assert_eq!(names(0), ["a"]);
        assert_eq!(names(1), ["b", "c[0:3]"]);
        assert_eq!(names(3), ["c[8:10]", "exp_avg.a[0:2]"]);
        assert_eq!(layout(20).pieces(3)[1].shape, [2, 2]);
    }

    #[test]
    fn table_is_read_back_off_the_parts() {
        for part_bytes in [8, 20, 61, 10_000] {
            let layout = layout(part_bytes);
            let pieces: Vec<Piece> = (0..layout.state_parts()).flat_map(|p| layout.pieces(p)).collect();
            let named = pieces
                .iter()
                .map(|p| (p.name.as_str(), dtype(p.kind), p.shape.as_slice()));
            assert_eq!(table_of_parts(named), layout.table, "parts of {part_bytes}");
        }
    }

    #[test]
    fn part_of_another_state_index_or_model_is_refused_with_its_key() {
        let layout = layout(80);
        let good = file(&layout, 0, &state());
        let refused = |layout: &Layout, name, part, file: &[u8]| {
            let mut back = vec![0; BYTES];
            let error = layout.decode("7/part-00000.safetensors", name, part, file, &mut back);
            error.unwrap_err().to_string()
        };
        assert!(refused(&layout, StateName::INITIAL, 0, &good).contains("step 5 of gen 2"));
        assert!(refused(&layout, NAME, 1, &good).contains("7/part-00000.safetensors"));
        let mut other = layout.clone();
        other.table[1].name = "bb".into();
        assert!(refused(&other, NAME, 0, &good).contains("`bb` is missing"));
        assert!(refused(&layout, NAME, 0, &good[..good.len() - 1]).contains("safetensors"));
    }

    #[test]
    fn doctored_header_is_refused_before_anything_is_taken() {
        let layout = layout(80);
        let good = file(&layout, 0, &state());
        let refused = |file: &[u8]| {
            let mut back = vec![0; BYTES];
            let error = layout.decode("k", NAME, 0, file, &mut back).unwrap_err().to_string();
            assert_eq!(back, vec![0; BYTES], "{error}");
            error
        };
        let mut huge = good.clone();
        huge[..8].copy_from_slice(&(1u64 << 40).to_le_bytes());
        assert!(refused(&huge).contains("header too large"));
        let change = |from: &str, to: &str| {
            let at = good.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
            let mut bad = good.clone();
            bad[at..at + from.len()].copy_from_slice(to.as_bytes());
            bad
        };
        // `b` lies at 24..28; laid over `a` it must not be read.
        assert!(refused(&change("[24,28]", "[20,24]")).contains("offset"));
        assert!(refused(&change("\"F32\",\"shape\":[3,2]", "\"I32\",\"shape\":[3,2]")).contains("needs F32"));
        assert!(refused(&change("\"a\":", "\"z\":")).contains("`a` is missing"));
    }

    #[test]
    fn parts_total_of_known_models_follows_from_their_bytes() {
        assert_eq!(parts_total(20), 2);
        assert_eq!(parts_total(PART_BYTES), 2);
        assert_eq!(parts_total(PART_BYTES + 1), 3);
        assert_eq!(parts_total(151_277_313 * 12 + 8), 29);
    }
}
