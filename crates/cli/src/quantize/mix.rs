//! Which type a tensor becomes.

use anyhow::{Result, bail};
use ds4_formats::GgmlType;

/// Types for the tensors of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mix {
    /// Routed experts in 2 bits.
    Q2,
    /// As [`Mix::Q2`], those of the last six layers in 4 bits.
    Q2Q4,
    /// Routed experts in 4 bits.
    Q4,
    /// Routed experts as they were published.
    Mxfp4,
    /// As the source has them.
    Keep,
}

/// Layers at the end whose experts [`Mix::Q2Q4`] has in 4 bits.
const LAST_LAYERS: usize = 6;

/// A type for the tensors whose names match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Override {
    pattern: String,
    ty: GgmlType,
}

impl Override {
    /// `PATTERN=TYPE`; in the pattern `*` stands for anything.
    ///
    /// # Errors
    /// Something else stands there.
    pub(crate) fn parse(text: &str) -> Result<Override> {
        let Some((pattern, ty)) = text.split_once('=') else {
            bail!(
                "--type {text:?}: expected PATTERN=TYPE, such as 'blk.*.ffn_down_exps.weight=Q3_K'"
            );
        };
        Ok(Override {
            pattern: pattern.to_owned(),
            ty: parse_type(ty)?,
        })
    }
}

/// A type by name.
///
/// # Errors
/// There is none of that name, or it is for tables.
pub(crate) fn parse_type(name: &str) -> Result<GgmlType> {
    let all = || GgmlType::all().iter().filter(|ty| **ty != GgmlType::I32);
    let found = all().find(|ty| ty.name().eq_ignore_ascii_case(name));
    match found {
        Some(ty) => Ok(*ty),
        None => {
            let names: Vec<&str> = all().map(|ty| ty.name()).collect();
            bail!("{name:?} is no type: expected one of {}", names.join(", "))
        }
    }
}

/// Whether a name matches a pattern in which `*` stands for anything.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// The type of a tensor: by the last override that matches, else by the mix. `own` is the type in
/// the source, if it is one of ours. A type whose blocks do not divide the rows gives way to the
/// nearest that does.
pub(super) fn type_of(
    mix: Mix,
    overrides: &[Override],
    name: &str,
    ne: &[u64],
    n_layers: usize,
    own: Option<GgmlType>,
) -> GgmlType {
    if own == Some(GgmlType::I32) || name.contains("tid2eid") {
        return GgmlType::I32;
    }
    let by_name = overrides.iter().rev().find(|o| matches(&o.pattern, name));
    let wanted = match (by_name, mix, own) {
        (Some(o), ..) if ne.len() > 1 => o.ty,
        (_, Mix::Keep, Some(own)) => own,
        _ => published(mix, name, ne, n_layers),
    };
    [wanted, GgmlType::Q8_0, GgmlType::F16]
        .into_iter()
        .find(|ty| ne[0].is_multiple_of(ty.block_len() as u64))
        .unwrap_or(GgmlType::F32)
}

/// The type in the published files.
fn published(mix: Mix, name: &str, ne: &[u64], n_layers: usize) -> GgmlType {
    let suffix = match name.split('.').collect::<Vec<_>>()[..] {
        ["blk" | "mtp", _, ref rest @ ..] => rest.join("."),
        _ => name.to_owned(),
    };
    let is_draft = name.starts_with("mtp.");
    let layer = name.split('.').nth(1).and_then(|n| n.parse::<usize>().ok());
    if suffix.ends_with("_exps.weight") {
        let is_late = !is_draft && layer.is_some_and(|n| n + LAST_LAYERS >= n_layers);
        return match mix {
            Mix::Q4 => GgmlType::Q4_K,
            Mix::Q2Q4 if is_late => GgmlType::Q4_K,
            Mix::Mxfp4 | Mix::Keep => GgmlType::MXFP4,
            _ if suffix.starts_with("ffn_down") => GgmlType::Q2_K,
            _ => GgmlType::IQ2_XXS,
        };
    }
    let is_half = suffix.contains("hc_") && suffix.ends_with("fn.weight")
        || suffix.ends_with("_ape.weight")
        || suffix.contains("compressor_")
        || suffix.starts_with("indexer.")
        || name == "token_embd.weight"
        || suffix == "ffn_gate_inp.weight" && !is_draft;
    if ne.len() < 2 || suffix.ends_with("norm.weight") {
        GgmlType::F32
    } else if is_half {
        GgmlType::F16
    } else {
        GgmlType::Q8_0
    }
}

/// `general.file_type`, as ggml numbers what most of a file is.
pub(super) fn file_type(mix: Mix) -> Option<u32> {
    match mix {
        Mix::Q2 | Mix::Q2Q4 => Some(19),
        Mix::Q4 => Some(14),
        Mix::Mxfp4 => Some(38),
        Mix::Keep => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ds4_model::{Geometry, requirements};

    /// Bytes of the tensors of the published model in a mix, each padded to 32.
    fn data_bytes(mix: Mix) -> u64 {
        let needs = requirements(&Geometry::flash());
        let bytes = needs.iter().map(|need| {
            let ty = type_of(mix, &[], &need.name, &need.ne, 43, None);
            ty.tensor_bytes(&need.ne).unwrap().next_multiple_of(32)
        });
        bytes.sum()
    }

    #[test]
    fn the_mixes_have_the_bytes_of_the_published_files() {
        assert_eq!(data_bytes(Mix::Q2), 86_714_777_664);
        assert_eq!(data_bytes(Mix::Q2Q4), 97_586_413_632);
        assert_eq!(data_bytes(Mix::Q4), 164_628_168_768);
        assert_eq!(data_bytes(Mix::Mxfp4), 155_971_125_312);
    }

    #[test]
    fn the_draft_blocks_have_the_bytes_of_the_published_file() {
        // Three stages, each a layer without compression whose router has a bias.
        let needs = requirements(&Geometry::flash());
        let of_layer = needs.iter().filter_map(|need| {
            let suffix = need.name.strip_prefix("blk.0.")?;
            (!suffix.contains("tid2eid")).then(|| (suffix.to_owned(), need.ne.clone()))
        });
        let mut stage: Vec<(String, Vec<u64>)> = of_layer.collect();
        stage.push(("exp_probs_b.bias".to_owned(), vec![256]));
        assert_eq!(stage.len(), 24);
        let of_stage = |s: u32, suffix: &str| format!("mtp.{s}.{suffix}");
        let mut all: Vec<(String, Vec<u64>)> = (0..3)
            .flat_map(|s| {
                stage
                    .iter()
                    .map(move |(n, ne)| (of_stage(s, n), ne.clone()))
            })
            .collect();
        for (s, suffix, ne) in [
            (0, "main_proj.weight", vec![12_288, 4096]),
            (0, "main_norm.weight", vec![4096]),
            (2, "norm.weight", vec![4096]),
            (2, "hc_head_fn.weight", vec![16_384, 4]),
            (2, "hc_head_base.weight", vec![4]),
            (2, "hc_head_scale.weight", vec![1]),
            (2, "markov_head.markov_w1.weight", vec![256, 129_280]),
            (2, "markov_head.markov_w2.weight", vec![256, 129_280]),
            (2, "confidence_head.proj.weight", vec![4352, 1]),
        ] {
            all.push((of_stage(s, suffix), ne));
        }
        assert_eq!(all.len(), 81);
        let bytes = all.iter().map(|(name, ne)| {
            let ty = type_of(Mix::Q2, &[], name, ne, 43, None);
            ty.tensor_bytes(ne).unwrap().next_multiple_of(32)
        });
        assert_eq!(bytes.sum::<u64>(), 5_989_108_832);
    }

    #[test]
    fn patterns_match_with_stars_for_anything() {
        for (pattern, name, expected) in [
            ("a.b", "a.b", true),
            ("a.b", "a.bc", false),
            ("*", "a.b", true),
            ("blk.*.x", "blk.12.x", true),
            ("blk.*.x", "blk.12.xy", false),
            ("*exps*", "blk.1.ffn_exps.weight", true),
            ("a*b*c", "a1c2b3c", true),
            ("a*b*c", "a1c2", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn the_last_override_that_matches_decides_and_rows_stay_whole_blocks() {
        let overrides = [
            Override::parse("*=Q6_K").unwrap(),
            Override::parse("*down*=q3_k").unwrap(),
        ];
        let ty = |name, ne: &[u64]| type_of(Mix::Q2, &overrides, name, ne, 9, None);
        assert_eq!(
            ty("blk.0.ffn_down_exps.weight", &[256, 2, 2]),
            GgmlType::Q3_K
        );
        assert_eq!(ty("blk.0.attn_kv.weight", &[256, 2]), GgmlType::Q6_K);
        assert_eq!(ty("blk.0.attn_kv.weight", &[96, 2]), GgmlType::Q8_0);
        assert_eq!(ty("blk.0.attn_kv.weight", &[97, 2]), GgmlType::F16);
        assert_eq!(ty("blk.0.attn_norm.weight", &[256]), GgmlType::F32);
        assert_eq!(ty("blk.0.ffn_gate_tid2eid.weight", &[6, 9]), GgmlType::I32);
        assert!(Override::parse("x").is_err());
        assert!(Override::parse("x=Q9").is_err());
    }
}
