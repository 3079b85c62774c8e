//! Cooperative matrices played by plain code, so that kernels that stand on them run on adapters
//! without any: where their rows, tiles and barriers are wrong, or f16 is too coarse, shows there too.
//! How a driver lays matrices out, and what it may move across a barrier, does not.
//!
//! A lane of a team of 32 has `EACH` neighbouring numbers of one row of a sum, that row of a left matrix,
//! and those columns of a right one. Matrices are loaded and stored by columns, and by rows with `T`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

const TEAM: u32 = 32;

/// Roles of matrices, which kernels have aliases for.
const ROLES: [&str; 3] = ["Left", "Right", "Sum"];

/// The source of a kernel with its matrices played; one without any stays as it is.
///
/// # Panics
/// When a kernel uses matrices in another way than those that there are.
pub(crate) fn played(source: &str) -> String {
    let Some(size) = [8, 16]
        .into_iter()
        .find(|size| source.contains(&format!("coop_mat{size}x{size}")))
    else {
        return source.to_owned();
    };
    // Buffers that matrices are in, and whether their elements are vectors of four.
    let mut buffers = BTreeMap::new();
    let mut text = String::new();
    for line in source.lines() {
        if line == "enable wgpu_cooperative_matrix;" {
            continue;
        }
        let alias = ROLES
            .iter()
            .find(|role| line.starts_with(&format!("alias {role} = coop_mat")));
        match alias {
            Some(role) => {
                _ = writeln!(text, "alias {role} = array<f32, {}>;", lengths(role, size));
            }
            None => {
                text += &calls(line, source, &mut buffers);
                text.push('\n');
            }
        }
    }
    text += &functions(size, &buffers);
    text
}

/// Numbers of a lane's part.
fn lengths(role: &str, size: u32) -> u32 {
    let each = size * size / TEAM;
    match role {
        "Left" => size,
        "Right" => size * each,
        _ => each,
    }
}

/// A line with calls of plain functions in the place of those of matrices. Matrices are given by their
/// place: a copy of each would be moved number by number.
fn calls(line: &str, source: &str, buffers: &mut BTreeMap<String, bool>) -> String {
    let Some(at) = line.find("coop") else {
        return line.to_owned();
    };
    if line.trim_start().starts_with("//") {
        return line.to_owned();
    }
    let (before, call) = line.split_at(at);
    let open = call.find('(').expect("a call");
    let (name, rest) = (&call[..open], &call[open + 1..]);
    let arguments = &rest[..closing(rest)];
    if name == "coopMultiplyAdd" {
        let names: Vec<&str> = arguments.split(", ").collect();
        let [left, right, sum] = names.as_slice() else {
            panic!("three matrices: {line}");
        };
        return format!("    play_multiply(&{left}, &{right}, &{sum});");
    }
    let (value, place) = arguments.split_once('&').expect("a place in a buffer");
    let (buffer, place) = place.split_once('[').expect("an index");
    let end = closing(place);
    let (index, stride) = (&place[..end], place[end + 1..].trim_start_matches(','));
    let stride = stride.trim();
    let declaration = source
        .lines()
        .find(|line| line.contains(&format!(" {buffer}: array<")))
        .expect("the buffer's declaration");
    buffers.insert(buffer.to_owned(), declaration.contains("array<vec4<f16>"));
    let (function, role) = match name.split_once('<') {
        Some(("coopLoad", role)) => ("load", role.trim_end_matches('>')),
        Some(("coopLoadT", role)) => ("load_t", role.trim_end_matches('>')),
        _ => return format!("{before}play_store_{buffer}({value}{index}, {stride}, lane);"),
    };
    let target = before.trim().trim_end_matches('=').trim();
    let (declared, matrix) = match (target.strip_prefix("let "), target.strip_prefix('*')) {
        (Some(name), _) => (format!("var {name}: {role}; "), format!("&{name}")),
        (_, Some(pointer)) => (String::new(), pointer.to_owned()),
        _ => panic!("a matrix to load: {line}"),
    };
    format!("    {declared}play_{function}_{role}_{buffer}({matrix}, {index}, {stride}, lane);")
}

/// Where the bracket that is open at the beginning closes.
fn closing(text: &str) -> usize {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' if depth == 0 => return at,
            ')' | ']' => depth -= 1,
            _ => {}
        }
    }
    panic!("a bracket that does not close: {text}");
}

fn functions(size: u32, buffers: &BTreeMap<String, bool>) -> String {
    let each = size * size / TEAM;
    let mut text = format!(
        "// `n`, but no number for a compiler: it would write every loop out.
fn play_end(n: u32) -> u32 {{ return n + (p.n >> 31u); }}
fn play_row(lane: u32) -> u32 {{ return (lane & 31u) / {0}u; }}
fn play_column(lane: u32) -> u32 {{ return ((lane & 31u) % {0}u) * {each}u; }}
fn play_multiply(
    left: ptr<function, Left>, right: ptr<function, Right>, sum: ptr<function, Sum>,
) {{
    for (var j = 0u; j < play_end({each}u); j++) {{
        var total = (*sum)[j];
        for (var k = 0u; k < play_end({size}u); k++) {{
            total += (*left)[k] * (*right)[k * {each}u + j];
        }}
        (*sum)[j] = total;
    }}
}}
",
        TEAM / size,
    );
    for (buffer, is_vector) in buffers {
        // Element `i` of the run that begins at `at`.
        let element = match is_vector {
            true => format!("f32({buffer}[at + i / 4u][i & 3u])"),
            false => format!("f32({buffer}[at + i])"),
        };
        _ = writeln!(
            text,
            "fn play_{buffer}(at: u32, i: u32) -> f32 {{ return {element}; }}"
        );
        for (suffix, place) in [("", "(at + j * stride, i)"), ("_t", "(at + i * stride, j)")] {
            // The row and the column of number `n` of a lane's part.
            for (role, row, column) in [
                ("Left", "play_row(lane)".to_owned(), "n".to_owned()),
                (
                    "Right",
                    format!("n / {each}u"),
                    format!("play_column(lane) + n % {each}u"),
                ),
                (
                    "Sum",
                    "play_row(lane)".to_owned(),
                    "play_column(lane) + n".to_owned(),
                ),
            ] {
                let n = lengths(role, size);
                _ = writeln!(
                    text,
                    "fn play_load{suffix}_{role}_{buffer}(part: ptr<function, {role}>, at: u32, stride: u32, lane: u32) {{
    for (var n = 0u; n < play_end({n}u); n++) {{
        let i = {row};
        let j = {column};
        (*part)[n] = play_{buffer}{place};
    }}
}}"
                );
            }
        }
        // Products are stored in f32, one after the other.
        if buffer == "parts" || buffer == "stage" || buffer == "out" {
            _ = writeln!(
                text,
                "fn play_store_{buffer}(value: Sum, at: u32, stride: u32, lane: u32) {{
    var part = value;
    for (var n = 0u; n < play_end({each}u); n++) {{
        {buffer}[at + (play_column(lane) + n) * stride + play_row(lane)] = part[n];
    }}
}}"
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_matrices_stays_as_it_is() {
        let source = "fn main() {}\n";
        assert_eq!(played(source), source);
    }

    #[test]
    fn calls_have_the_arguments_of_what_they_stand_for() {
        let source = "enable wgpu_cooperative_matrix;
alias Left = coop_mat16x16<f16, A>;
alias Right = coop_mat16x16<f16, B>;
alias Sum = coop_mat16x16<f32, C>;
var<workgroup> keys: array<vec4<f16>, 64>;
var<workgroup> parts: array<f32, 1024>;
    let a = coopLoadT<Left>(&keys[z + (m0 + 1u) * STRIDE], STRIDE);
    *sum = coopLoad<Sum>(&parts[at], 16u);
    sum0 = coopMultiplyAdd(a, b, sum0);
    coopStore(*sum, &parts[z + f(lane)[0]], 16u);
";
        let text = played(source);
        for line in [
            "alias Left = array<f32, 16>;",
            "alias Right = array<f32, 128>;",
            "alias Sum = array<f32, 8>;",
            "    var a: Left; play_load_t_Left_keys(&a, z + (m0 + 1u) * STRIDE, STRIDE, lane);",
            "    play_load_Sum_parts(sum, at, 16u, lane);",
            "    play_multiply(&a, &b, &sum0);",
            "    play_store_parts(*sum, z + f(lane)[0], 16u, lane);",
        ] {
            assert!(text.lines().any(|there| there == line), "{line}\n{text}");
        }
        assert!(!text.contains("coop"), "{text}");
    }
}
