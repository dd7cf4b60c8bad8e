//! What travels in GATHER, and the whole step's picture that every worker makes of it.
//!
//! Per lane: the digest of its ids, for each of its `b` rows what became of it and whether its features are finite, then
//! image and text features of all rows (zero where a row takes no part). The length depends on the plan alone.

use crate::engine::{Encoded, GatheredLse, OwnLse, all_finite};
use argosy_common::plan::Plan;
use argosy_common::steplog::{MaskedRow, RowState};
use argosy_shard_loader::LaneBatch;

/// Buffers reused from step to step.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    pub(super) mine: Vec<u8>,
    pub(super) all: Vec<u8>,
    pub(super) pixels: Vec<u8>,
    pub(super) tokens: Vec<i32>,
    pub(super) lengths: Vec<u16>,
    /// Rows of the token table on their way through REDUCE.
    pub(super) rows: Vec<f32>,
    /// Memory of pieces of the gradient that are not on their way.
    pub(super) pieces: Vec<Vec<f32>>,
}

/// Sizes of what is gathered.
#[derive(Debug)]
pub(super) struct Layout {
    /// Rows of a lane, `b`.
    rows: usize,
    /// Width of a feature, `d`.
    dim: usize,
    /// Owner of each lane.
    owners: Vec<usize>,
    members: usize,
}

/// The step as all workers see it, invalid rows dropped, rows in lane order.
#[derive(Debug, Default)]
pub(super) struct Whole {
    /// Digest of each lane's ids.
    pub(super) digests: Vec<u64>,
    /// `[V, d]`.
    pub(super) f: Vec<f32>,
    /// `[V, d]`.
    pub(super) g: Vec<f32>,
    /// Places of the own rows among the `V`.
    pub(super) own: Vec<u32>,
    /// `V`.
    pub(super) valid: usize,
    /// Valid rows of each lane.
    lane_valid: Vec<u32>,
    /// Rows that take no part.
    pub(super) masked: Vec<MaskedRow>,
    /// Rows whose features are not finite: lane and row.
    pub(super) not_finite: Vec<(u32, u32)>,
    /// Owner of each of the `V` rows.
    row_owners: Vec<u32>,
}

impl Layout {
    pub(super) fn new(plan: &Plan, rows: usize, dim: usize) -> Self {
        let owners = plan.lanes.iter().map(|r| *r as usize).collect();
        Self {
            rows,
            dim,
            owners,
            members: plan.members.len(),
        }
    }

    fn lane_bytes(&self) -> usize {
        8 + 2 * self.rows + 8 * self.rows * self.dim
    }

    /// Bytes of every rank's block.
    pub(super) fn lens(&self) -> Vec<usize> {
        let mut lens = vec![0; self.members];
        for owner in &self.owners {
            lens[*owner] += self.lane_bytes();
        }
        lens
    }

    /// Packs the own lanes. `encoded` holds their valid rows.
    pub(super) fn pack(&self, batches: &[LaneBatch], encoded: &Encoded, out: &mut Vec<u8>) {
        out.clear();
        let mut next = 0;
        for batch in batches {
            out.extend_from_slice(&batch.digest.to_le_bytes());
            out.extend(batch.states.iter().map(|s| s.code()));
            let first = next;
            for state in &batch.states {
                let finite = *state != RowState::Valid || {
                    let row = next * self.dim..(next + 1) * self.dim;
                    next += 1;
                    all_finite(&encoded.f[row.clone()]) && all_finite(&encoded.g[row])
                };
                out.push(u8::from(finite));
            }
            for side in [&encoded.f, &encoded.g] {
                let mut at = first;
                for state in &batch.states {
                    if *state == RowState::Valid {
                        out.extend(
                            side[at * self.dim..(at + 1) * self.dim]
                                .iter()
                                .flat_map(|v| v.to_le_bytes()),
                        );
                        at += 1;
                    } else {
                        out.resize(out.len() + 4 * self.dim, 0);
                    }
                }
            }
        }
    }

    /// Reads what was gathered, lane by lane, whoever owns them.
    pub(super) fn unpack(&self, rank: usize, all: &[u8]) -> Result<Whole, String> {
        let mut ends = Vec::with_capacity(self.members);
        let mut at = 0;
        for len in self.lens() {
            ends.push(at);
            at += len;
        }
        let mut whole = Whole::default();
        for (lane, owner) in self.owners.iter().enumerate() {
            let start = ends[*owner];
            ends[*owner] += self.lane_bytes();
            let bytes = &all[start..ends[*owner]];
            self.unpack_lane(lane as u32, *owner, *owner == rank, bytes, &mut whole)?;
        }
        Ok(whole)
    }

    fn unpack_lane(&self, lane: u32, owner: usize, own: bool, bytes: &[u8], whole: &mut Whole) -> Result<(), String> {
        let (digest, rest) = bytes.split_at(8);
        let (codes, rest) = rest.split_at(self.rows);
        let (finite, features) = rest.split_at(self.rows);
        let (f, g) = features.split_at(4 * self.rows * self.dim);
        whole
            .digests
            .push(digest.as_array().map_or(0, |b| u64::from_le_bytes(*b)));
        let before = whole.valid;
        for row in 0..self.rows {
            match RowState::from_code(codes[row]) {
                Some(RowState::Valid) => {}
                Some(RowState::Masked(reason)) => {
                    whole.masked.push(MaskedRow {
                        lane,
                        row: row as u32,
                        reason,
                    });
                    continue;
                }
                Some(RowState::Absent) => continue,
                None => return Err(format!("rank {owner} says {} of row {row} of lane {lane}", codes[row])),
            }
            if finite[row] == 0 {
                whole.not_finite.push((lane, row as u32));
            }
            if own {
                whole.own.push(whole.valid as u32);
            }
            let place = 4 * row * self.dim..4 * (row + 1) * self.dim;
            extend_floats(&mut whole.f, &f[place.clone()]);
            extend_floats(&mut whole.g, &g[place]);
            whole.row_owners.push(owner as u32);
            whole.valid += 1;
        }
        whole.lane_valid.push((whole.valid - before) as u32);
        Ok(())
    }
}

fn extend_floats(out: &mut Vec<f32>, bytes: &[u8]) {
    out.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)));
}

/// Bytes of one row's log-sum-exps and diagonal.
const LSE_BYTES: usize = 12;

/// [`GatheredLse`] with its memory.
#[derive(Debug)]
pub(super) struct AllLse {
    r: Vec<f32>,
    c: Vec<f32>,
    diag: Vec<f32>,
}

impl AllLse {
    pub(super) fn view(&self) -> GatheredLse<'_> {
        GatheredLse {
            r: &self.r,
            c: &self.c,
            diag: &self.diag,
        }
    }
}

impl Whole {
    /// Which turn each of `lanes` that has valid rows has among all lanes that do, and how many those are (rule BN1).
    pub(super) fn turns(&self, lanes: impl IntoIterator<Item = u32>) -> (Vec<usize>, usize) {
        let has_rows = |lane: usize| self.lane_valid.get(lane).is_some_and(|rows| *rows > 0);
        let before = |lane: usize| (0..lane).filter(|lane| has_rows(*lane)).count();
        let own = lanes
            .into_iter()
            .map(|lane| lane as usize)
            .filter(|lane| has_rows(*lane));
        (own.map(before).collect(), before(self.lane_valid.len()))
    }

    /// Bytes of every rank's log-sum-exps.
    pub(super) fn lse_lens(&self, members: usize) -> Vec<usize> {
        let mut lens = vec![0; members];
        for owner in &self.row_owners {
            lens[*owner as usize] += LSE_BYTES;
        }
        lens
    }

    /// Reads the gathered log-sum-exps into the order of the rows.
    pub(super) fn unpack_lse(&self, members: usize, all: &[u8]) -> AllLse {
        let mut cursors = Vec::with_capacity(members);
        let mut at = 0;
        for len in self.lse_lens(members) {
            cursors.push(at);
            at += len;
        }
        let mut out = AllLse {
            r: Vec::new(),
            c: Vec::new(),
            diag: Vec::new(),
        };
        for owner in &self.row_owners {
            let cursor = &mut cursors[*owner as usize];
            let mut values = all[*cursor..*cursor + LSE_BYTES]
                .as_chunks()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b));
            *cursor += LSE_BYTES;
            for vector in [&mut out.r, &mut out.c, &mut out.diag] {
                vector.extend(values.next());
            }
        }
        out
    }
}

/// Packs the own log-sum-exps, row by row.
pub(super) fn pack_lse(own: &OwnLse, out: &mut Vec<u8>) {
    out.clear();
    for ((r, c), diag) in own.r.iter().zip(&own.c).zip(&own.diag) {
        for value in [r, c, diag] {
            out.extend_from_slice(&value.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use argosy_common::ids::{Generation, StateName, Term};
    use argosy_common::plan::StateSource;
    use argosy_common::steplog::MaskReason;

    fn layout(lanes: Vec<u32>, members: usize) -> Layout {
        let plan = Plan {
            run: "r".into(),
            generation: Generation(1),
            term: Term(1),
            base: StateName::INITIAL,
            source: StateSource::Seed,
            members: Vec::new().into(),
            lanes: lanes.into(),
            skip: None,
            quarantine: Vec::new(),
        };
        Layout {
            members,
            ..Layout::new(&plan, 2, 2)
        }
    }

    fn batch(lane: u32, states: [RowState; 2]) -> LaneBatch {
        LaneBatch {
            step: 0,
            lane,
            rows: 2,
            samples: Vec::new(),
            states: states.to_vec(),
            pixels: Vec::new(),
            tokens: Vec::new(),
            lengths: Vec::new(),
            digest: u64::from(lane) + 100,
        }
    }

    #[test]
    fn gathered_rows_lie_in_lane_order_without_the_invalid_ones() {
        // Lane 0 belongs to rank 1, lanes 1 and 2 to rank 0.
        let layout = layout(vec![1, 0, 0], 2);
        let masked = RowState::Masked(MaskReason::Caption);
        let rank0 = [
            batch(1, [masked, RowState::Valid]),
            batch(2, [RowState::Valid, RowState::Absent]),
        ];
        let encoded0 = Encoded {
            dim: 2,
            f: vec![1.0, 1.5, 2.0, 2.5],
            g: vec![-1.0, -1.5, -2.0, -2.5],
        };
        let encoded1 = Encoded {
            dim: 2,
            f: vec![3.0; 4],
            g: vec![4.0, 4.0, f32::NAN, 4.0],
        };
        let (mut a, mut b) = (Vec::new(), Vec::new());
        layout.pack(&rank0, &encoded0, &mut a);
        layout.pack(&[batch(0, [RowState::Valid; 2])], &encoded1, &mut b);
        assert_eq!(layout.lens(), [a.len(), b.len()]);
        let whole = layout.unpack(0, &[a, b].concat()).unwrap();
        assert_eq!(whole.digests, [100, 101, 102]);
        assert_eq!(whole.f, [3.0, 3.0, 3.0, 3.0, 1.0, 1.5, 2.0, 2.5]);
        assert_eq!(whole.own, [2, 3]);
        assert_eq!(
            whole.masked,
            [MaskedRow {
                lane: 1,
                row: 0,
                reason: MaskReason::Caption
            }]
        );
        assert_eq!((whole.valid, &whole.not_finite), (4, &vec![(0, 1)]));

        let lse = |from: f32| OwnLse {
            r: vec![from, from + 1.0],
            c: vec![from + 2.0; 2],
            diag: vec![from + 3.0; 2],
        };
        let (mut a, mut b) = (Vec::new(), Vec::new());
        pack_lse(&lse(10.0), &mut a);
        pack_lse(&lse(20.0), &mut b);
        assert_eq!(whole.lse_lens(2), [a.len(), b.len()]);
        let all = whole.unpack_lse(2, &[a, b].concat());
        assert_eq!(
            (all.r, all.c[0], all.diag[3]),
            (vec![20.0, 21.0, 10.0, 11.0], 22.0, 13.0)
        );
    }

    #[test]
    fn gathered_code_that_means_nothing_is_refused() {
        let layout = layout(vec![0], 1);
        let mut bytes = Vec::new();
        let encoded = Encoded {
            dim: 2,
            f: vec![0.0; 4],
            g: vec![0.0; 4],
        };
        layout.pack(&[batch(0, [RowState::Valid; 2])], &encoded, &mut bytes);
        bytes[8] = 77;
        assert!(layout.unpack(0, &bytes).unwrap_err().contains("77"));
    }
}
