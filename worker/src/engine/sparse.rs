//! The token table is most of a small model's parameters, and a batch reaches few of its rows. Workers tell each other
//! which rows they reached (one bit a row) and reduce those alone; all other rows are zero on every worker, so the sum is
//! the same.

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
