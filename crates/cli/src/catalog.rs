//! The published files: what each is called, how large it is and what it is for.

/// Where the published files are.
pub(crate) const REPOSITORY: &str = "antirez/deepseek-v4-gguf";

/// What a published file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A model that `ds4` opens.
    Model,
    /// Draft blocks, which speed a model up and are nothing by themselves.
    Draft,
}

/// A published file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Published {
    /// What `ds4 pull` calls it.
    pub id: &'static str,
    /// Other names for it.
    pub aliases: &'static [&'static str],
    /// Name in [`REPOSITORY`].
    pub file: &'static str,
    /// Its length; `None` where only the server knows it.
    pub n_bytes: Option<u64>,
    /// Model or draft blocks.
    pub kind: Kind,
    /// One line about it.
    pub about: &'static str,
}

/// Every published file; the first is the one to begin with.
pub(crate) const PUBLISHED: &[Published] = &[
    Published {
        id: "q2",
        aliases: &["q2-imatrix", "ds4f-q2"],
        file: "DeepSeek-V4-Flash-IQ2XXS-w2Q2K-AProjQ8-SExpQ8-OutQ8-chat-v2-imatrix.gguf",
        n_bytes: Some(86_720_111_488),
        kind: Kind::Model,
        about: "routed experts in 2 bits",
    },
    Published {
        id: "q2-q4",
        aliases: &["q2-q4-imatrix", "ds4f-q2-q4"],
        file: "DeepSeek-V4-Flash-Layers37-42Q4KExperts-OtherExpertLayersIQ2XXSGateUp-Q2KDown-AProjQ8-SExpQ8-OutQ8-chat-v2-imatrix-fixed.gguf",
        n_bytes: Some(97_591_747_456),
        kind: Kind::Model,
        about: "as q2, the experts of the last six layers in 4 bits",
    },
    Published {
        id: "q4",
        aliases: &["q4-imatrix", "ds4f-q4"],
        file: "DeepSeek-V4-Flash-Q4KExperts-F16HC-F16Compressor-F16Indexer-Q8Attn-Q8Shared-Q8Out-chat-v2-imatrix.gguf",
        n_bytes: Some(164_633_502_304),
        kind: Kind::Model,
        about: "routed experts in 4 bits",
    },
    Published {
        id: "q2-0731",
        aliases: &["0731", "ds4f-q2-0731"],
        file: "DeepSeek-V4-Flash-IQ2XXS-w2Q2K-AProjQ8-SExpQ8-OutQ8-chat-v2-imatrix-0731.gguf",
        n_bytes: Some(86_720_111_488),
        kind: Kind::Model,
        about: "the release of 31 July, routed experts in 2 bits",
    },
    Published {
        id: "q2-q4-0731",
        aliases: &["ds4f-q2-q4-0731"],
        file: "DeepSeek-V4-Flash-Layers37-42Q4KExperts-OtherExpertLayersIQ2XXSGateUp-Q2KDown-AProjQ8-SExpQ8-OutQ8-chat-v2-imatrix-fixed-0731.gguf",
        n_bytes: None,
        kind: Kind::Model,
        about: "the release of 31 July, as q2-q4",
    },
    Published {
        id: "q4-0731",
        aliases: &["ds4f-q4-0731"],
        file: "DeepSeek-V4-Flash-Q4KExperts-F16HC-F16Compressor-F16Indexer-Q8Attn-Q8Shared-Q8Out-chat-v2-imatrix-0731.gguf",
        n_bytes: Some(164_633_502_592),
        kind: Kind::Model,
        about: "the release of 31 July, routed experts in 4 bits",
    },
    Published {
        id: "mxfp4-0731",
        aliases: &["mxfp4", "ds4f-mxfp4"],
        file: "DeepSeek-V4-Flash-MXFP4Experts-F16HC-F16Compressor-F16Indexer-Q8Attn-Q8Shared-Q8Out-chat-v2-mxfp4-0731.gguf",
        n_bytes: Some(155_976_458_848),
        kind: Kind::Model,
        about: "the release of 31 July, routed experts as they were published",
    },
    Published {
        id: "mtp",
        aliases: &[],
        file: "DeepSeek-V4-Flash-MTP-Q4K-Q8_0-F32.gguf",
        n_bytes: Some(3_807_602_400),
        kind: Kind::Draft,
        about: "draft block of the first release",
    },
    Published {
        id: "dspark",
        aliases: &[],
        file: "DeepSeek-V4-Flash-DSpark-support.gguf",
        n_bytes: Some(5_989_114_272),
        kind: Kind::Draft,
        about: "draft blocks for the first release",
    },
    Published {
        id: "dspark-0731",
        aliases: &[],
        file: "DeepSeek-V4-Flash-DSpark-support-0731.gguf",
        n_bytes: Some(5_989_114_272),
        kind: Kind::Draft,
        about: "draft blocks of the release of 31 July",
    },
];

/// The file that is called `name`: by id, by another name, or by its own.
pub(crate) fn find(name: &str) -> Option<&'static Published> {
    PUBLISHED
        .iter()
        .find(|p| p.id == name || p.file == name || p.aliases.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_means_one_file() {
        let mut names: Vec<&str> = PUBLISHED
            .iter()
            .flat_map(|p| [&[p.id, p.file], p.aliases].concat())
            .collect();
        let n = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), n);
        for p in PUBLISHED {
            assert_eq!(find(p.id).map(|found| found.file), Some(p.file));
        }
        assert!(find("q3").is_none());
    }
}
