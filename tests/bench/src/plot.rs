//! A picture of the ratios: per load, each peer's CPU per request and requests per second with Envoy's as 1.

use std::fmt::Write;

use crate::compare::{Cell, Results, Sample};
use crate::report::{median, ratios, title};

const BAR: usize = 12;
const LABEL: usize = 330;
const UNIT: f64 = 170.0;
/// A ratio beyond it is cut off; its number stands beside the bar.
const MOST: f64 = 2.5;

/// As SVG.
pub fn svg(results: &Results) -> String {
    let peers: Vec<&str> =
        results.peers.iter().map(String::as_str).filter(|peer| !["direct", "envoy"].contains(peer)).collect();
    let mut body = String::new();
    let mut y = 40;
    for (index, cell) in results.cells.iter().enumerate() {
        let _ = writeln!(body, r#"<text x="8" y="{}" class="t">{}</text>"#, y + BAR, title(cell));
        y += BAR + 6;
        for (name, of) in figures(cell) {
            for (place, peer) in peers.iter().enumerate() {
                let value = ratio(results, index, peer, of);
                bar(&mut body, y, &format!("{peer}, {name}"), place, value);
                y += BAR + 2;
            }
            y += 4;
        }
        y += 8;
    }
    let width = LABEL as f64 + UNIT * MOST + 60.0;
    let one = LABEL as f64 + UNIT;
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" font-family="sans-serif" font-size="11">
<style>.t{{font-weight:bold}} .p0{{fill:#1b7f5c}} .p1{{fill:#8a8f98}} .p2{{fill:#c2c6cc}}</style>
<rect width="100%" height="100%" fill="white"/>
<text x="8" y="20" class="t">Ratio to a real Envoy in the same round (medians); CPU: shorter is better, requests/s: longer is better</text>
{body}<line x1="{one}" y1="30" x2="{one}" y2="{y}" stroke="#c0392b" stroke-dasharray="3 3"/>
<text x="{one}" y="34" text-anchor="middle">Envoy</text>
</svg>
"##
    )
}

type Figure = (&'static str, fn(&Sample) -> f64);

fn figures(cell: &Cell) -> Vec<Figure> {
    let cpu: Figure = ("CPU", |sample| sample.outcome.cpu_seconds / sample.outcome.completed.max(1) as f64);
    let rate: Figure = ("requests/s", |sample| sample.outcome.completed as f64 / sample.outcome.seconds);
    let p99: Figure = ("p99", |sample| sample.outcome.p99);
    match cell.rate {
        None => vec![cpu, rate],
        Some(_) => vec![cpu, p99],
    }
}

fn ratio(results: &Results, cell: usize, peer: &str, of: fn(&Sample) -> f64) -> f64 {
    let of_peer = |peer: &str| -> Vec<&Sample> {
        results.samples.iter().filter(|sample| sample.cell == cell && sample.peer == peer).collect()
    };
    median(ratios(&of_peer(peer), &of_peer("envoy"), of))
}

fn bar(body: &mut String, y: usize, label: &str, place: usize, value: f64) {
    if !value.is_finite() {
        return;
    }
    let width = value.min(MOST) * UNIT;
    let _ = writeln!(
        body,
        r#"<text x="{}" y="{}" text-anchor="end">{label}</text><rect x="{LABEL}" y="{y}" width="{width:.0}" height="{BAR}" class="p{}"/><text x="{:.0}" y="{}">{value:.2}</text>"#,
        LABEL - 6,
        y + BAR - 2,
        place.min(2),
        LABEL as f64 + width + 4.0,
        y + BAR - 2,
    );
}
