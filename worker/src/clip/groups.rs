//! Captions grouped by length: what lies behind the end-of-text id cannot change a feature (causal mask, pooling at that
//! id), so a group is cut to its longest caption.

/// Rows of one group and the length they are cut to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Row numbers, shortest caption first.
    pub rows: Vec<usize>,
    /// Longest caption of the group.
    pub longest: usize,
}

/// More groups never paid on the captions tried.
const GROUPS_MAX: usize = 24;

/// Splits rows into at most [`GROUPS_MAX`] groups so that `sum(rows * longest) + groups * group_cost` is least.
#[must_use]
pub fn by_length(lengths: &[u16], group_cost: usize) -> Vec<Group> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&row| (lengths[row], row));
    // Runs of equal length: (length, rows up to and including this run).
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (seen, &row) in order.iter().enumerate() {
        match runs.last_mut() {
            Some(last) if last.0 == usize::from(lengths[row]) => last.1 = seen + 1,
            _ => runs.push((usize::from(lengths[row]), seen + 1)),
        }
    }
    let ends = best_cuts(&runs, group_cost);
    let mut groups = Vec::new();
    let mut start = 0;
    for end in ends {
        let (longest, rows_end) = runs[end];
        groups.push(Group {
            rows: order[start..rows_end].to_vec(),
            longest,
        });
        start = rows_end;
    }
    groups
}

/// Last run of every group of the cheapest split, by dynamic programming over runs (at most one per length).
fn best_cuts(runs: &[(usize, usize)], group_cost: usize) -> Vec<usize> {
    if runs.is_empty() {
        return Vec::new();
    }
    let before = |run: usize| if run == 0 { 0 } else { runs[run - 1].1 };
    let cost = |from: usize, to: usize| (runs[to].1 - before(from)) * runs[to].0 + group_cost;
    // table[k][j]: cheapest split of runs 0..=j into k + 1 groups, and where its last group begins.
    let mut table: Vec<Vec<(usize, usize)>> = vec![(0..runs.len()).map(|j| (cost(0, j), 0)).collect()];
    for k in 1..GROUPS_MAX.min(runs.len()) {
        let row = (0..runs.len()).map(|j| {
            let split = (k..=j).map(|i| (table[k - 1][i - 1].0 + cost(i, j), i)).min();
            split.unwrap_or((usize::MAX / 2, 0))
        });
        let row = row.collect();
        table.push(row);
    }
    let last = runs.len() - 1;
    let mut k = (0..table.len()).min_by_key(|&k| table[k][last].0).unwrap_or(0);
    let (mut ends, mut j) = (vec![last], last);
    while k > 0 {
        j = table[k][j].1 - 1;
        ends.push(j);
        k -= 1;
    }
    ends.reverse();
    ends
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP_COST: usize = 40;

    fn total(groups: &[Group]) -> usize {
        groups.iter().map(|g| g.rows.len() * g.longest + GROUP_COST).sum()
    }

    #[test]
    fn groups_cover_every_row_once_and_none_is_cut_short() {
        let lengths: Vec<u16> = (0..500u32).map(|i| (3 + (i * i * 7) % 60) as u16).collect();
        let groups = by_length(&lengths, GROUP_COST);
        let mut seen: Vec<usize> = groups.iter().flat_map(|g| g.rows.clone()).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..500).collect::<Vec<_>>());
        assert!(
            groups
                .iter()
                .all(|g| g.rows.iter().all(|r| usize::from(lengths[*r]) <= g.longest))
        );
        assert!((2..=GROUPS_MAX).contains(&groups.len()));
    }

    #[test]
    fn groups_cost_equals_exhaustive_search() {
        let lengths: Vec<u16> = (0..300u32)
            .map(|i| [3, 4, 9, 15, 16, 40, 77][(i * i % 7) as usize])
            .collect();
        let mut sorted = lengths.clone();
        sorted.sort_unstable();
        let mut distinct = sorted.clone();
        distinct.dedup();
        // Every subset of cut places among the distinct lengths, as a bit mask.
        let best = (0u32..1 << (distinct.len() - 1))
            .filter(|mask| mask.count_ones() < GROUPS_MAX as u32)
            .map(|mask| {
                let mut from = 0;
                let mut sum = 0;
                for (i, len) in distinct.iter().enumerate() {
                    if i + 1 == distinct.len() || mask >> i & 1 == 1 {
                        let end = sorted.partition_point(|l| l <= len);
                        sum += (end - from) * usize::from(*len) + GROUP_COST;
                        from = end;
                    }
                }
                sum
            })
            .min();
        assert_eq!(Some(total(&by_length(&lengths, GROUP_COST))), best);
    }

    #[test]
    fn groups_of_nothing_or_equal_lengths_are_none_or_one() {
        assert!(by_length(&[], 1).is_empty());
        let one = by_length(&[5; 9], 1);
        assert_eq!((one.len(), one[0].longest, one[0].rows.len()), (1, 5, 9));
    }
}
