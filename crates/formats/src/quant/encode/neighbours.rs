//! The rows of a grid near any point, so that a search looks at few of them.

use std::sync::OnceLock;

use crate::quant::grid::{
    iq1_grid, iq2_s_grid, iq2_xs_grid, iq2_xxs_grid, iq3_s_grid, iq3_xxs_grid,
};

/// Rows that are looked at around a point.
const NEAR: usize = 16;
/// Stands for a point that is no row of the grid.
const NONE: u16 = u16::MAX;

/// A grid of rows of `N` values out of a few levels, and for every vector of levels the rows that
/// are nearest to it. `M` is one less than the number of levels.
pub(super) struct Neighbours<const N: usize, const M: usize> {
    rows: Vec<[f32; N]>,
    /// Halfway between one level and the next.
    middles: [f32; M],
    /// By the vector's number, its first level the lowest digit.
    near: Vec<Near<N>>,
}

/// The rows nearest to a vector of levels.
struct Near<const N: usize> {
    /// The row that is the vector itself, or [`NONE`].
    own: u16,
    /// The nearest rows, the nearest first.
    rows: [u16; NEAR],
    /// Their values, element `j` of all rows side by side.
    values: [[i8; NEAR]; N],
}

impl<const N: usize, const M: usize> Neighbours<N, M> {
    fn new(rows: Vec<[f32; N]>, levels: &[f32]) -> Self {
        let n_points = levels.len().pow(N as u32);
        let mut near = Vec::with_capacity(n_points);
        let mut by_distance: Vec<(u32, u16)> = Vec::with_capacity(rows.len());
        for number in 0..n_points {
            let mut rest = number;
            let point: [f32; N] = std::array::from_fn(|_| {
                let level = levels[rest % levels.len()];
                rest /= levels.len();
                level
            });
            by_distance.clear();
            for (i, row) in rows.iter().enumerate() {
                // Sums of squares of small integers.
                let square: f32 = (0..N).map(|j| (row[j] - point[j]).powi(2)).sum();
                by_distance.push((square as u32, i as u16));
            }
            by_distance.select_nth_unstable(NEAR - 1);
            by_distance[..NEAR].sort_unstable();
            let nearest: [u16; NEAR] = std::array::from_fn(|k| by_distance[k].1);
            near.push(Near {
                own: if by_distance[0].0 == 0 {
                    nearest[0]
                } else {
                    NONE
                },
                rows: nearest,
                values: std::array::from_fn(|j| nearest.map(|i| rows[i as usize][j] as i8)),
            });
        }
        Neighbours {
            middles: std::array::from_fn(|m| (levels[m] + levels[m + 1]) / 2.0),
            rows,
            near,
        }
    }

    /// A row of the grid.
    #[inline(always)]
    pub(super) fn row(&self, i: u16) -> &[f32; N] {
        &self.rows[i as usize]
    }

    /// The row nearest to `u` where columns count by `w`.
    #[inline(always)]
    pub(super) fn find(&self, u: &[f32; N], w: &[f32; N]) -> u16 {
        let mut places = [0u32; N];
        for middle in &self.middles {
            for j in 0..N {
                places[j] += u32::from(u[j] > *middle);
            }
        }
        let mut number = 0;
        let mut digit = 1;
        for place in places {
            number += place * digit;
            digit *= M as u32 + 1;
        }
        let near = &self.near[number as usize];
        // Every value at its nearest level: no other row is nearer, whatever the weights.
        if near.own != NONE {
            return near.own;
        }
        let mut distance = [0.0f32; NEAR];
        for j in 0..N {
            for k in 0..NEAR {
                let r = u[j] - f32::from(near.values[j][k]);
                distance[k] += w[j] * r * r;
            }
        }
        // The first of the least, in halves.
        let mut least = distance;
        let mut n = NEAR;
        while n > 1 {
            n /= 2;
            for k in 0..n {
                let (a, b) = (least[k], least[k + n]);
                least[k] = if b < a { b } else { a };
            }
        }
        let mut found = 0u32;
        for k in 0..NEAR {
            found |= u32::from(distance[k] <= least[0]) << k;
        }
        near.rows[found.trailing_zeros() as usize % NEAR]
    }
}

fn magnitudes<const N: usize>(grid: &[[u8; N]]) -> Vec<[f32; N]> {
    grid.iter().map(|row| row.map(f32::from)).collect()
}

macro_rules! grids {
    ($($name:ident: $n:literal, $m:literal, $rows:expr, $levels:expr;)*) => {
        $(pub(super) fn $name() -> &'static Neighbours<$n, $m> {
            static GRID: OnceLock<Neighbours<$n, $m>> = OnceLock::new();
            GRID.get_or_init(|| Neighbours::new($rows, &$levels))
        })*
    };
}

grids! {
    iq2_xxs: 8, 2, magnitudes(iq2_xxs_grid()), [8.0, 25.0, 43.0];
    iq2_xs: 8, 2, magnitudes(iq2_xs_grid()), [8.0, 25.0, 43.0];
    iq2_s: 8, 2, magnitudes(iq2_s_grid()), [8.0, 25.0, 43.0];
    iq3_xxs: 4, 7, magnitudes(iq3_xxs_grid()), [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];
    iq3_s: 4, 7, magnitudes(iq3_s_grid()), [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];
    iq1: 8, 2, iq1_grid().iter().map(|row| row.map(f32::from)).collect(), [-1.0, 0.0, 1.0];
}
