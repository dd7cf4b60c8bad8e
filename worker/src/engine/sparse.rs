//! The token table is most of a small model's parameters, and a batch reaches few of its rows. Workers tell each other
//! which rows they reached (one bit a row) and reduce those alone; all other rows are zero on every worker, so the sum is
//! the same.

use super::{Engine, EngineError, Result, expect_len};

/// A table inside the flat order whose gradient reaches few rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SparseTable {
    /// First element in the flat order.
    pub offset: usize,
    pub rows: usize,
    pub width: usize,
}

impl SparseTable {
    /// Bytes of a bitmap with one bit a row.
    #[must_use]
    pub fn bitmap_len(&self) -> usize {
        self.rows.div_ceil(8)
    }

    /// The bitmap of `rows`, into `out`.
    pub fn bitmap(&self, rows: &[u32], out: &mut Vec<u8>) {
        out.clear();
        out.resize(self.bitmap_len(), 0);
        for &row in rows {
            if let Some(byte) = out.get_mut(row as usize / 8) {
                *byte |= 1 << (row % 8);
            }
        }
    }

    /// Rows named by any of the bitmaps that lie one after another in `bitmaps`, ascending.
    #[must_use]
    pub fn union(&self, bitmaps: &[u8]) -> Vec<u32> {
        let mut all = vec![0u8; self.bitmap_len()];
        for bitmap in bitmaps.chunks(all.len().max(1)) {
            all.iter_mut().zip(bitmap).for_each(|(a, b)| *a |= b);
        }
        let bits = |byte: usize| (0..8u32).filter(move |bit| byte >> bit & 1 == 1);
        let rows = all
            .iter()
            .enumerate()
            .flat_map(|(at, byte)| bits(usize::from(*byte)).map(move |bit| at as u32 * 8 + bit));
        rows.filter(|row| (*row as usize) < self.rows).collect()
    }
}

/// Reduces the flat gradient of `engine` by `sum` (adds up over the workers, in place), leaving out the rows of its
/// sparse table that are not in `union`. Every worker must pass the same `union`, which names all rows that any worker
/// reached; `scratch` is kept between steps.
///
/// # Errors
/// Those of `sum`, and when a row lies beyond the table.
pub fn reduce_rows<E, X>(
    engine: &mut E,
    union: &[u32],
    scratch: &mut Vec<f32>,
    mut sum: impl FnMut(&mut [f32]) -> std::result::Result<(), X>,
) -> std::result::Result<(), X>
where
    E: Engine + ?Sized,
    X: From<EngineError>,
{
    let Some(table) = engine.sparse_table() else {
        return sum(engine.grads_flat()?);
    };
    let (head, rest) = engine.grads_flat()?.split_at_mut(table.offset);
    let (middle, tail) = rest.split_at_mut(table.rows * table.width);
    gather_rows(&table, union, middle, scratch)?;
    sum(head)?;
    sum(scratch)?;
    sum(tail)?;
    for (row, values) in union.iter().zip(scratch.chunks(table.width)) {
        middle[*row as usize * table.width..][..table.width].copy_from_slice(values);
    }
    Ok(())
}

fn gather_rows(table: &SparseTable, union: &[u32], values: &[f32], scratch: &mut Vec<f32>) -> Result<()> {
    scratch.clear();
    for &row in union {
        let from = row as usize * table.width;
        let Some(row) = values.get(from..from + table.width) else {
            return expect_len("rows of the sparse table", table.rows, row as usize + 1);
        };
        scratch.extend_from_slice(row);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparse_union_of_bitmaps_names_every_row_once_in_order() {
        let table = SparseTable {
            offset: 0,
            rows: 21,
            width: 2,
        };
        let (mut a, mut b) = (Vec::new(), Vec::new());
        table.bitmap(&[20, 0, 7], &mut a);
        table.bitmap(&[7, 8], &mut b);
        assert_eq!(table.union(&[a, b].concat()), [0, 7, 8, 20]);
        assert!(table.union(&vec![0; table.bitmap_len()]).is_empty());
    }
}
