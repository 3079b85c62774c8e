//! The rows of a grid near any point, so that a search looks at few of them.

use std::sync::OnceLock;

use super::fit::{LANES, total};
use crate::quant::grid::{
    iq1_grid, iq2_s_grid, iq2_xs_grid, iq2_xxs_grid, iq3_s_grid, iq3_xxs_grid,
};

/// A grid of rows of `N` values out of `levels`, and for every vector of levels the `K` rows that
/// are nearest to it.
pub(super) struct Neighbours<const N: usize, const K: usize> {
    rows: Vec<[f32; N]>,
    /// Halfway between one level and the next.
    middles: Vec<f32>,
    /// By the vector's number, its first level the lowest digit.
    near: Vec<[u16; K]>,
}

impl<const N: usize, const K: usize> Neighbours<N, K> {
    fn new(rows: Vec<[f32; N]>, levels: &[f32]) -> Self {
        let n_points = levels.len().pow(N as u32);
        let mut near = Vec::with_capacity(n_points);
        let mut by_distance: Vec<(u32, u16)> = Vec::with_capacity(rows.len());
        // Distances are sums of squares of small numbers: exact as integers of eighths.
        for number in 0..n_points {
            let mut rest = number;
            let point: [f32; N] = std::array::from_fn(|_| {
                let level = levels[rest % levels.len()];
                rest /= levels.len();
                level
            });
            by_distance.clear();
            for (i, row) in rows.iter().enumerate() {
                let square: f32 = (0..N).map(|j| (row[j] - point[j]).powi(2)).sum();
                by_distance.push(((square * 64.0) as u32, i as u16));
            }
            let k = K.min(by_distance.len());
            by_distance.select_nth_unstable(k - 1);
            by_distance[..k].sort_unstable();
            near.push(std::array::from_fn(|k| by_distance[k].1));
        }
        Neighbours {
            middles: levels.windows(2).map(|l| (l[0] + l[1]) / 2.0).collect(),
            rows,
            near,
        }
    }

    /// A row of the grid.
    #[inline(always)]
    pub(super) fn row(&self, i: usize) -> &[f32; N] {
        &self.rows[i]
    }

    /// The row nearest to `u` where columns count by `w`, and its weighted squared distance.
    #[inline(always)]
    pub(super) fn find(&self, u: &[f32; N], w: &[f32; N]) -> (usize, f32) {
        let n_levels = self.middles.len() + 1;
        let mut number = 0;
        for j in (0..N).rev() {
            let place: usize = self.middles.iter().map(|m| usize::from(u[j] > *m)).sum();
            number = number * n_levels + place;
        }
        let mut best = (0, f32::INFINITY);
        for &i in &self.near[number] {
            let row = &self.rows[i as usize];
            let mut distance = [0.0; LANES];
            for j in 0..N {
                let r = u[j] - row[j];
                distance[j] = w[j] * r * r;
            }
            let distance = total(distance);
            if distance < best.1 {
                best = (i as usize, distance);
            }
        }
        best
    }
}

/// Rows that are looked at around a point.
pub(super) const NEAR: usize = 24;

fn magnitudes<const N: usize>(grid: &[[u8; N]]) -> Vec<[f32; N]> {
    grid.iter().map(|row| row.map(f32::from)).collect()
}

macro_rules! grids {
    ($($name:ident: $n:literal, $rows:expr, $levels:expr;)*) => {
        $(pub(super) fn $name() -> &'static Neighbours<$n, NEAR> {
            static GRID: OnceLock<Neighbours<$n, NEAR>> = OnceLock::new();
            GRID.get_or_init(|| Neighbours::new($rows, &$levels))
        })*
    };
}

grids! {
    iq2_xxs: 8, magnitudes(iq2_xxs_grid()), [8.0, 25.0, 43.0];
    iq2_xs: 8, magnitudes(iq2_xs_grid()), [8.0, 25.0, 43.0];
    iq2_s: 8, magnitudes(iq2_s_grid()), [8.0, 25.0, 43.0];
    iq3_xxs: 4, magnitudes(iq3_xxs_grid()), [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];
    iq3_s: 4, magnitudes(iq3_s_grid()), [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];
    iq1: 8, iq1_grid().iter().map(|row| row.map(f32::from)).collect(), [-1.0, 0.0, 1.0];
}
