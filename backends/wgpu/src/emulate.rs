//! Cooperative matrices in plain WGSL, for tests on adapters without any: the first of 32 lanes has
//! whole matrices, and computes alone.

use std::fmt::Write;

/// The text of a kernel on 16 by 16 matrices with arrays in their place.
pub(crate) fn emulate(source: &str) -> String {
    let mut text = String::new();
    for line in source.lines() {
        match line.split_once(" = coop_mat") {
            Some((alias, _)) => {
                let _ = writeln!(text, "{alias} = array<f32, 256>;");
            }
            None if line.contains("wgpu_cooperative_matrix") => {}
            None => {
                text += line;
                text.push('\n');
            }
        }
    }
    let mut arrays = Vec::new();
    text = accesses(&text, &mut arrays);
    text = text.replace("coopMultiplyAdd(", "emulated_multiply_add(");
    let main = text.find("fn main(").expect("an entry point");
    let body = main + text[main..].find("{\n").expect("a body") + 2;
    text.insert_str(body, "    emulated_lane = lane;\n");
    text += "var<private> emulated_lane: u32;
fn emulated_multiply_add(a: array<f32, 256>, b: array<f32, 256>, c: array<f32, 256>) -> array<f32, 256> {
    if (emulated_lane & 31u) != 0u { return c; }
    var left = a;
    var right = b;
    var sum = c;
    for (var m = 0u; m < 16u; m++) {
        for (var n = 0u; n < 16u; n++) {
            for (var k = 0u; k < 16u; k++) { sum[m * 16u + n] += left[m * 16u + k] * right[k * 16u + n]; }
        }
    }
    return sum;
}\n";
    for array in arrays {
        let vectors = text.contains(&format!("{array}: array<vec4<f16>"));
        let written = !vectors && text.contains(&format!("{array}: array<f32"));
        // Bases and strides count elements of the array.
        let (scale, element) = match vectors {
            true => (4, format!("{array}[at / 4u][at & 3u]")),
            false => (1, format!("{array}[at]")),
        };
        let place = format!(
            "let at = {scale}u * base + select((i & 15u) * {scale}u * stride + i / 16u, \
             (i / 16u) * {scale}u * stride + (i & 15u), rows);"
        );
        let _ = writeln!(
            text,
            "fn emulated_load_{array}(base: u32, stride: u32, rows: bool) -> array<f32, 256> {{
    var m: array<f32, 256>;
    if (emulated_lane & 31u) != 0u {{ return m; }}
    for (var i = 0u; i < 256u; i++) {{ {place} m[i] = f32({element}); }}
    return m;
}}"
        );
        if written {
            let _ = writeln!(
                text,
                "fn emulated_store_{array}(matrix: array<f32, 256>, base: u32, stride: u32, rows: bool) {{
    var m = matrix;
    if (emulated_lane & 31u) != 0u {{ return; }}
    for (var i = 0u; i < 256u; i++) {{ {place} {element} = m[i]; }}
}}"
            );
        }
    }
    text
}

/// Loads and stores by the arrays' own functions; the arrays' names.
fn accesses(source: &str, arrays: &mut Vec<String>) -> String {
    let mut text = String::new();
    let mut rest = source;
    while let Some(at) = rest.find("coop") {
        let (before, call) = rest.split_at(at);
        text += before;
        let kind = ["coopLoadT", "coopLoad", "coopStore"]
            .into_iter()
            .find(|kind| call.starts_with(kind));
        let Some(kind) = kind else {
            text += "coop";
            rest = &call[4..];
            continue;
        };
        let end = closing(call, call.find('(').expect("arguments"));
        let arguments = &call[call.find('(').expect("arguments") + 1..end];
        let (value, pointer) = arguments.split_once('&').expect("a place");
        let open = pointer.find('[').expect("an index");
        let close = closing(pointer, open);
        let (array, index) = (&pointer[..open], &pointer[open + 1..close]);
        let stride = pointer[close + 1..].trim_start_matches([',', ' ']);
        if !arrays.iter().any(|known| known == array) {
            arrays.push(array.to_owned());
        }
        let action = if kind == "coopStore" { "store" } else { "load" };
        let rows = kind == "coopLoadT";
        let _ = write!(
            text,
            "emulated_{action}_{array}({value}{index}, {stride}, {rows})"
        );
        rest = &call[end + 1..];
    }
    text + rest
}

/// Where the bracket that opens at `open` closes.
fn closing(text: &str, open: usize) -> usize {
    let mut depth = 0;
    for (i, c) in text[open..].char_indices() {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => {
                depth -= 1;
                if depth == 0 {
                    return open + i;
                }
            }
            _ => {}
        }
    }
    text.len()
}
