//! Files that are right: what is written is read.

use ds4_formats::gguf::{Array, Gguf, Metadata, Value, Writer, write_tensors};
use ds4_formats::{Bytes, GgmlType, Tensor};
use proptest::prelude::*;

/// A scratch folder, removed when dropped.
pub(crate) struct Scratch(pub(crate) std::path::PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("ds4-gguf-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A tensor with bytes that are different everywhere.
pub(crate) fn tensor(name: &str, ty: GgmlType, ne: &[u64]) -> Tensor {
    let n_bytes = ty.tensor_bytes(ne).unwrap();
    let bytes: Vec<u8> = (0..n_bytes).map(|i| (i * 37 + i / 251) as u8).collect();
    Tensor::new(name, ty, ne, Bytes::from(bytes)).unwrap()
}

pub(crate) fn file(metadata: Metadata, tensors: &[Tensor]) -> Vec<u8> {
    let mut out = Vec::new();
    write_tensors(&mut out, metadata, tensors).unwrap();
    out
}

/// `testdata/gguf/sample.gguf`: a small file with a value of every type, which another program
/// wrote. It ends with the last byte of its last tensor.
pub(crate) fn sample() -> Vec<u8> {
    include_bytes!("../../../../testdata/gguf/sample.gguf").to_vec()
}

#[test]
fn a_file_of_another_writer_is_read_and_reproduced() {
    let gguf = Gguf::parse(Bytes::from(sample())).unwrap();
    let arrays = vec![Array::I32(vec![1, 2]), Array::I32(vec![3])];
    let expected: [(&str, Value); 16] = [
        ("general.architecture", "sample".into()),
        ("a.u8", 200u8.into()),
        ("a.i8", (-100i8).into()),
        ("a.u16", 60000u16.into()),
        ("a.i16", (-30000i16).into()),
        ("a.u32", 4_000_000_000u32.into()),
        ("a.i32", (-2_000_000_000i32).into()),
        ("a.f32", 0.1f32.into()),
        ("a.bool", true.into()),
        ("a.u64", u64::MAX.into()),
        ("a.i64", i64::MIN.into()),
        ("a.f64", 0.1f64.into()),
        (
            "a.tokens",
            ["", "a", "日本"].map(String::from).to_vec().into(),
        ),
        ("a.flags", vec![true, false, true].into()),
        ("a.ratios", vec![0i32, 4, 128].into()),
        ("a.nested", Value::Array(Array::Array(arrays))),
    ];
    let found: Vec<(&str, &Value)> = gguf.metadata().iter().collect();
    assert_eq!(
        found,
        expected
            .iter()
            .map(|(key, value)| (*key, value))
            .collect::<Vec<_>>()
    );

    let shapes = [
        ("norm.weight", GgmlType::F32, vec![5]),
        ("table.weight", GgmlType::I32, vec![3, 2]),
        ("attn.weight", GgmlType::Q8_0, vec![64, 3]),
        ("exps.weight", GgmlType::IQ2_XXS, vec![256, 2, 2]),
        ("embd.weight", GgmlType::F16, vec![16, 1, 1, 2]),
    ];
    let tensors: Vec<Tensor> = gguf
        .tensors()
        .map(|spec| gguf.tensor(&spec.name).unwrap())
        .collect();
    for (tensor, expected) in tensors.iter().zip(&shapes) {
        assert_eq!(
            (tensor.name.as_str(), tensor.ty, tensor.ne.clone()),
            *expected
        );
    }
    assert_eq!(tensors.len(), shapes.len());
    assert_eq!(tensors[0].to_f32(), [-1.5, -0.5, 0.5, 1.5, 2.5]);
    assert_eq!(tensors[1].to_i32().unwrap(), [0, 1, 2, 3, 4, 5]);
    assert_eq!(tensors[4].to_f32()[31], 31.0 / 8.0);

    assert!(
        file(gguf.metadata().clone(), &tensors) == sample(),
        "written differently"
    );
}

fn arb_array() -> impl Strategy<Value = Array> {
    use prop::collection::vec;
    let leaf = prop_oneof![
        vec(any::<u8>(), 0..9).prop_map(Array::U8),
        vec(any::<i8>(), 0..9).prop_map(Array::I8),
        vec(any::<u16>(), 0..9).prop_map(Array::U16),
        vec(any::<i16>(), 0..9).prop_map(Array::I16),
        vec(any::<u32>(), 0..9).prop_map(Array::U32),
        vec(any::<i32>(), 0..9).prop_map(Array::I32),
        vec(any::<f32>(), 0..9).prop_map(Array::F32),
        vec(any::<bool>(), 0..9).prop_map(Array::Bool),
        vec(".{0,12}", 0..9).prop_map(Array::String),
        vec(any::<u64>(), 0..9).prop_map(Array::U64),
        vec(any::<i64>(), 0..9).prop_map(Array::I64),
        vec(any::<f64>(), 0..9).prop_map(Array::F64),
    ];
    leaf.prop_recursive(3, 20, 4, |inner| vec(inner, 0..4).prop_map(Array::Array))
}

fn arb_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any::<f32>().prop_map(Value::F32),
        any::<bool>().prop_map(Value::Bool),
        ".{0,40}".prop_map(Value::String),
        arb_array().prop_map(Value::Array),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        any::<f64>().prop_map(Value::F64),
    ]
}

fn arb_tensor() -> impl Strategy<Value = (String, GgmlType, Vec<u64>)> {
    let ty = prop::sample::select(GgmlType::all());
    (".{0,20}", ty, prop::collection::vec(1u64..4, 1..=4)).prop_map(|(name, ty, mut ne)| {
        ne[0] *= ty.block_len() as u64;
        (name, ty, ne)
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        entries in prop::collection::vec((".{0,20}", arb_value()), 0..12),
        shapes in prop::collection::vec(arb_tensor(), 0..8),
        alignment in prop::option::of(3u32..9),
    ) {
        let mut metadata = Metadata::new();
        for (key, value) in entries {
            metadata.insert(key, value);
        }
        if let Some(log2) = alignment {
            metadata.insert("general.alignment", 1u32 << log2);
        }
        let alignment = alignment.map_or(32, |log2| 1 << log2);
        let mut tensors: Vec<Tensor> = Vec::new();
        for (name, ty, ne) in shapes {
            if tensors.iter().all(|t| t.name != name) {
                tensors.push(tensor(&name, ty, &ne));
            }
        }

        let file = file(metadata.clone(), &tensors);
        let gguf = Gguf::parse(Bytes::from(file)).unwrap();
        prop_assert_eq!(gguf.metadata(), &metadata);
        prop_assert_eq!(gguf.alignment(), alignment);
        prop_assert_eq!(gguf.tensors().len(), tensors.len());
        for (spec, tensor) in gguf.tensors().zip(&tensors) {
            prop_assert_eq!((&spec.name, spec.ty, &spec.ne), (&tensor.name, tensor.ty, &tensor.ne));
            prop_assert_eq!(spec.offset % alignment, 0);
            prop_assert_eq!(&*gguf.data(spec), &*tensor.data);
        }
    }
}

// Elsewhere extending a file may take the space at once.
#[cfg(unix)]
#[test]
fn a_sparse_file_of_published_size_opens_without_its_data() {
    let mut writer = Writer::new(Metadata::new()).unwrap();
    for layer in 0..43 {
        for (part, ne) in [("gate", [4096, 2048, 256]), ("up", [4096, 2048, 256])] {
            writer
                .push(
                    &format!("blk.{layer}.ffn_{part}_exps"),
                    GgmlType::IQ2_XXS,
                    &ne,
                )
                .unwrap();
        }
        let ne = [2048, 4096, 256];
        writer
            .push(&format!("blk.{layer}.ffn_down_exps"), GgmlType::Q2_K, &ne)
            .unwrap();
    }
    let scratch = Scratch::new("sparse");
    let path = scratch.0.join("sparse.gguf");
    std::fs::write(&path, writer.header()).unwrap();
    std::fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(writer.file_bytes())
        .unwrap();

    let gguf = Gguf::open(&path).unwrap();
    assert_eq!(
        gguf.tensors().cloned().collect::<Vec<_>>(),
        writer.tensors()
    );
    assert!(gguf.file_bytes() > 70 << 30, "{} bytes", gguf.file_bytes());
    let last = gguf.tensor("blk.42.ffn_down_exps").unwrap();
    assert_eq!((last.n_rows(), last.row_len()), (4096 * 256, 2048));
    let mut row = vec![1.0; 2048];
    ds4_formats::quant::decode_row(last.ty, last.row(last.n_rows() - 1), &mut row);
    assert!(row.iter().all(|&v| v == 0.0), "a hole reads as zeros");
}

#[test]
fn a_tensor_of_plain_numbers_is_viewed_in_place() {
    let values = [1.5f32, -2.0, 0.0, f32::MIN_POSITIVE];
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let floats = Tensor::new("x", GgmlType::F32, &[2, 2], Bytes::from(bytes)).unwrap();
    assert_eq!(floats.as_f32(), Some(&values[..]));
    assert_eq!(floats.to_f32(), values);
    assert_eq!((floats.as_i32(), floats.to_i32()), (None, None));

    let table = tensor("t", GgmlType::I32, &[3]);
    assert_eq!(table.as_i32().map(<[i32]>::to_vec), table.to_i32());
    assert_eq!(table.as_f32(), None);
}

#[test]
fn a_writer_refuses_what_no_reader_would_accept() {
    let mut writer = Writer::new(Metadata::new()).unwrap();
    writer.push("a", GgmlType::F32, &[1]).unwrap();
    for (ty, ne, expected) in [
        (GgmlType::F32, &[1][..], "tensor \"a\" occurs twice"),
        (
            GgmlType::Q8_0,
            &[31],
            "its rows of 31 elements are not whole Q8_0 blocks of 32",
        ),
        (GgmlType::F32, &[1, 0], "dimension 1 is 0"),
        (GgmlType::F32, &[1 << 40, 1 << 30], "its size overflows"),
    ] {
        let error = writer.push("a", ty, ne).unwrap_err().to_string();
        assert!(
            error.contains(expected),
            "{ty} {ne:?}: found {error:?}, expected {expected:?}"
        );
    }
    let mut metadata = Metadata::new();
    metadata.insert("general.alignment", 24u32);
    let error = Writer::new(metadata).unwrap_err().to_string();
    assert!(error.contains("expected a power of two"), "{error}");
}

#[test]
fn a_writer_notices_when_a_tensor_gets_other_than_its_bytes() {
    let mut writer = Writer::new(Metadata::new()).unwrap();
    writer.push("a", GgmlType::F32, &[2]).unwrap();
    for n_bytes in [0, 7, 9] {
        let error = writer.write(Vec::new(), |_, out| out.write_all(&vec![0; n_bytes]));
        let error = error.unwrap_err().to_string();
        assert_eq!(
            error,
            format!("tensor \"a\": {n_bytes} bytes written, expected 8")
        );
    }
}
