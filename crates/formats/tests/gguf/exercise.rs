//! What must hold for the reader on any bytes at all: it never panics, and a file that it accepts
//! is consistent and survives being written again. The fuzz target runs this function too.

use ds4_formats::Bytes;
use ds4_formats::gguf::{Gguf, Writer};

/// Rows of accepted files that are decoded, so that a large tensor does not slow the search.
const MAX_ROWS: usize = 4;

/// Parses `bytes` and, when they are accepted, uses everything that the file offers.
pub(crate) fn exercise(bytes: &[u8]) -> Result<Gguf, String> {
    let gguf = Gguf::parse(Bytes::from(bytes.to_vec())).map_err(|error| {
        let message = error.to_string();
        assert!(
            !message.contains('\n'),
            "an error of several lines: {message}"
        );
        message
    })?;

    for (key, value) in gguf.metadata().iter() {
        assert_eq!(
            gguf.metadata().get(key).map(|v| v.type_id()),
            Some(value.type_id())
        );
        assert!(!value.summary().contains('\n'));
        // Whatever the value is, each getter returns it or an error.
        let metadata = gguf.metadata();
        let _ = (
            metadata.u32(key),
            metadata.u64(key),
            metadata.f32(key),
            metadata.bool(key),
        );
        let _ = (metadata.u32s(key), metadata.i32s(key), metadata.f32s(key));
        let _ = metadata.strs(key).map(|strings| strings.count());
        let _ = metadata.str(key);
    }
    let _ = gguf.split();

    let mut n_data_bytes = 0;
    for spec in gguf.tensors() {
        let tensor = gguf
            .tensor(&spec.name)
            .expect("a tensor of the table is found by its name");
        assert_eq!(tensor.data.len() as u64, spec.n_bytes);
        assert!(spec.offset.is_multiple_of(gguf.alignment()));
        n_data_bytes += spec.n_bytes;
        let mut values = vec![0.0; tensor.row_len()];
        for row in 0..tensor.n_rows().min(MAX_ROWS) {
            ds4_formats::quant::decode_row(tensor.ty, tensor.row(row), &mut values);
        }
    }
    assert!(
        n_data_bytes <= bytes.len() as u64,
        "more tensor data than file"
    );

    let mut writer = Writer::new(gguf.metadata().clone()).expect("accepted metadata are written");
    for spec in gguf.tensors() {
        writer
            .push(&spec.name, spec.ty, &spec.ne)
            .expect("an accepted tensor is written");
    }
    let mut written = Vec::new();
    writer
        .write(&mut written, |spec, out| {
            out.write_all(&gguf.tensor(&spec.name).expect("announced above").data)
        })
        .expect("writing to memory does not fail");
    assert_eq!(written.len() as u64, writer.file_bytes());
    let again = Gguf::parse(Bytes::from(written)).expect("what was written is accepted");
    // Compared as text because a NaN differs from itself.
    let entries = |gguf: &Gguf| format!("{:?}", gguf.metadata().iter().collect::<Vec<_>>());
    assert_eq!(entries(&again), entries(&gguf));
    assert_eq!(again.tensors().len(), gguf.tensors().len());
    for spec in gguf.tensors() {
        let (a, b) = (
            again.tensor(&spec.name).expect("written"),
            gguf.tensor(&spec.name).unwrap(),
        );
        assert_eq!(
            (a.ty, a.ne, &*a.data),
            (b.ty, b.ne, &*b.data),
            "tensor {:?}",
            spec.name
        );
    }
    Ok(gguf)
}
