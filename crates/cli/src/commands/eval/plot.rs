//! A picture of values by position, as SVG.

use std::fmt::Write as _;

/// Size of the picture in its own units.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
/// Room for the labels.
const LEFT: f64 = 80.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
/// Lines across.
const N_LINES: usize = 5;

/// A line through points `(position, value)`, from 0 up.
pub(super) fn svg(title: &str, what: &str, points: &[(f64, f64)]) -> String {
    let last = points.iter().map(|p| p.0).fold(1.0, f64::max);
    let highest = points.iter().map(|p| p.1).fold(0.0, f64::max);
    let highest = if highest > 0.0 { highest * 1.1 } else { 1.0 };
    let x = |position: f64| LEFT + position / last * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| HEIGHT - BOTTOM - value / highest * (HEIGHT - TOP - BOTTOM);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{}\" y=\"24\" text-anchor=\"middle\" font-size=\"14\">{}</text>\n",
        WIDTH / 2.0,
        escaped(title)
    );
    for i in 0..=N_LINES {
        let value = highest * i as f64 / N_LINES as f64;
        let position = last * i as f64 / N_LINES as f64;
        // Writing to a string does not fail.
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{1:.1}\" y2=\"{1:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{2}\" y=\"{3:.1}\" text-anchor=\"end\">{value:.3}</text>\
             <text x=\"{4:.1}\" y=\"{5}\" text-anchor=\"middle\">{position:.0}</text>",
            WIDTH - RIGHT,
            y(value),
            LEFT - 6.0,
            y(value) + 4.0,
            x(position),
            HEIGHT - BOTTOM + 18.0,
        );
    }
    let path: Vec<String> = points
        .iter()
        .map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1)))
        .collect();
    let _ = writeln!(
        out,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"#1f6feb\" stroke-width=\"2\"/>\n\
         <text x=\"{}\" y=\"{}\" text-anchor=\"middle\">position in the piece, tokens</text>\n\
         <text transform=\"translate(16 {}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n</svg>",
        path.join(" "),
        WIDTH / 2.0,
        HEIGHT - 10.0,
        HEIGHT / 2.0,
        escaped(what)
    );
    out
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_stays_inside_its_frame_and_escapes_its_title() {
        for points in [vec![], vec![(5.0, 0.0)], vec![(1.0, 0.1), (9.0, 2.0)]] {
            let text = svg("a<b", "nats", &points);
            assert!(
                text.starts_with("<svg") && text.ends_with("</svg>\n"),
                "{text}"
            );
            assert!(text.contains("a&lt;b") && !text.contains("NaN"), "{text}");
        }
    }
}
