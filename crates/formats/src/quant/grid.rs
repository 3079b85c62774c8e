//! The codebooks of the IQ types.
//!
//! They are data, not derivable by formula. `grids/grids.bin` holds them at 2 or 3 bits a value,
//! written by `grids/make.py` from the MIT-licensed `gguf` package; they are expanded when the
//! crate is compiled, and a test compares the SHA-256 of the expanded values.

const PACKED: &[u8; 8832] = include_bytes!("../../grids/grids.bin");

/// Expands `ROWS` rows of `COLS` packed values that start at byte `start`.
const fn expand<const ROWS: usize, const COLS: usize>(
    start: usize,
    bits: usize,
    levels: &[i8],
) -> [[i8; COLS]; ROWS] {
    let mut rows = [[0; COLS]; ROWS];
    let mut i = 0;
    while i < ROWS * COLS {
        let mut index = 0;
        let mut b = 0;
        while b < bits {
            let at = i * bits + b;
            index |= ((PACKED[start + at / 8] as usize >> (at % 8)) & 1) << b;
            b += 1;
        }
        rows[i / COLS][i % COLS] = levels[index];
        i += 1;
    }
    rows
}

/// As [`expand`], for the grids whose values are magnitudes.
const fn expand_magnitudes<const ROWS: usize, const COLS: usize>(
    start: usize,
    bits: usize,
    levels: &[i8],
) -> [[u8; COLS]; ROWS] {
    let signed = expand::<ROWS, COLS>(start, bits, levels);
    let mut rows = [[0; COLS]; ROWS];
    let mut i = 0;
    while i < ROWS * COLS {
        rows[i / COLS][i % COLS] = signed[i / COLS][i % COLS] as u8;
        i += 1;
    }
    rows
}

const LEVELS_2: [i8; 3] = [8, 25, 43];
const LEVELS_3XXS: [i8; 8] = [4, 12, 20, 28, 36, 44, 52, 62];
const LEVELS_3S: [i8; 8] = [1, 3, 5, 7, 9, 11, 13, 15];
const LEVELS_1: [i8; 3] = [-1, 0, 1];

static IQ2_XXS: [[u8; 8]; 256] = expand_magnitudes(0, 2, &LEVELS_2);
static IQ2_XS: [[u8; 8]; 512] = expand_magnitudes(512, 2, &LEVELS_2);
static IQ2_S: [[u8; 8]; 1024] = expand_magnitudes(1536, 2, &LEVELS_2);
static IQ3_XXS: [[u8; 4]; 256] = expand_magnitudes(3584, 3, &LEVELS_3XXS);
static IQ3_S: [[u8; 4]; 512] = expand_magnitudes(3968, 3, &LEVELS_3S);
static IQ1: [[i8; 8]; 2048] = expand(4736, 2, &LEVELS_1);

/// Grid of IQ2_XXS: magnitudes out of {8, 25, 43}.
pub fn iq2_xxs_grid() -> &'static [[u8; 8]; 256] {
    &IQ2_XXS
}

/// Grid of IQ2_XS: magnitudes out of {8, 25, 43}.
pub fn iq2_xs_grid() -> &'static [[u8; 8]; 512] {
    &IQ2_XS
}

/// Grid of IQ2_S: magnitudes out of {8, 25, 43}.
pub fn iq2_s_grid() -> &'static [[u8; 8]; 1024] {
    &IQ2_S
}

/// Grid of IQ3_XXS: magnitudes out of {4, 12, 20, 28, 36, 44, 52, 62}.
pub fn iq3_xxs_grid() -> &'static [[u8; 4]; 256] {
    &IQ3_XXS
}

/// Grid of IQ3_S: odd magnitudes from 1 to 15.
pub fn iq3_s_grid() -> &'static [[u8; 4]; 512] {
    &IQ3_S
}

/// Grid of IQ1_S and IQ1_M: values -1, 0 and 1, before the shift of an eighth.
pub fn iq1_grid() -> &'static [[i8; 8]; 2048] {
    &IQ1
}

/// The sign byte of a 7-bit sign code: bit 7 makes the number of set bits even. The 128 results are
/// the table called *ksigns* in ggml.
pub const fn even_signs(code: u8) -> u8 {
    let code = code & 127;
    code | ((code.count_ones() as u8 & 1) << 7)
}

/// The 16 levels of IQ4_NL and IQ4_XS.
pub const IQ4_LEVELS: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

/// The 16 values of MXFP4, doubled so that they are integers.
pub const MXFP4_DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn expanded_grids_have_the_published_hashes() {
        fn bytes<const N: usize>(rows: &[[u8; N]]) -> Vec<u8> {
            rows.concat()
        }
        let iq1: Vec<u8> = iq1_grid().iter().flatten().map(|&v| v as u8).collect();
        let ksigns: Vec<u8> = (0..128).map(even_signs).collect();
        for (name, values, sha256) in [
            (
                "IQ2_XXS",
                bytes(iq2_xxs_grid()),
                "05826b5d3e472a3a78f196be62ac78acf81df0f909626e12ab9fa2a5d490dd54",
            ),
            (
                "IQ2_XS",
                bytes(iq2_xs_grid()),
                "06e47aaca60b4dc1d9b5a3f34540437058a6b142b4d7a59d5ded769b4d1bf1de",
            ),
            (
                "IQ2_S",
                bytes(iq2_s_grid()),
                "e1aa1473412b0552c2174c30ef22ab4073f6a181b85a17056e8249bd2932fd88",
            ),
            (
                "IQ3_XXS",
                bytes(iq3_xxs_grid()),
                "46e35f5a997efdee6c99ce57854c8a0d4f0ff8ca57e5e8a60c0793ea580acf5d",
            ),
            (
                "IQ3_S",
                bytes(iq3_s_grid()),
                "bd1af4945a1717c65610b0284e4628b9a1ba3b306fae3a06f6e5f597356e349f",
            ),
            (
                "IQ1_S",
                iq1,
                "07540ffc1aeaf6ad4d97e96b0fcc765aae39671d4ae4a27bbd0e796fde167c6a",
            ),
            (
                "ksigns",
                ksigns,
                "a76742a603f8beca5212ecce0f1f02f11a4887fd2f7c8b15aca0ea3eb3380c31",
            ),
        ] {
            let found: String = Sha256::digest(&values)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            assert_eq!(found, sha256, "{name}, {} values", values.len());
        }
    }
}
