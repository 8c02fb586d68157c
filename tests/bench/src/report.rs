//! The tables: medians over rounds, and medians of the ratios within each round, with their spread.

use std::fmt::Write;

use crate::Kind;
use crate::compare::{Cell, Idle, Results, Sample};

/// A figure of a sample, and how it is written.
struct Figure {
    name: &'static str,
    of: fn(&Sample) -> f64,
    open_loop_too: bool,
}

const FIGURES: [Figure; 4] = [
    Figure {
        name: "requests/s",
        of: |sample| sample.outcome.completed as f64 / sample.outcome.seconds,
        open_loop_too: false,
    },
    Figure {
        name: "CPU ms/1k",
        of: |sample| sample.outcome.cpu_seconds / sample.outcome.completed.max(1) as f64 * 1e6,
        open_loop_too: true,
    },
    Figure { name: "p50 µs", of: |sample| sample.outcome.p50, open_loop_too: true },
    Figure { name: "p99 µs", of: |sample| sample.outcome.p99, open_loop_too: true },
];

/// Everything as Markdown.
pub fn markdown(results: &Results) -> String {
    let mut text = String::new();
    for (index, cell) in results.cells.iter().enumerate() {
        let _ = writeln!(text, "\n### {}\n", title(cell));
        table(&mut text, results, index, cell);
    }
    if !results.idle.is_empty() {
        memory(&mut text, &results.idle);
    }
    if !results.startups.is_empty() {
        others(&mut text, results);
    }
    let _ = writeln!(text, "\nThe machine, per round: stolen CPUs / ns per dependent load:");
    for noise in &results.noise {
        let _ = write!(text, " {:.2}/{:.0}", noise.stolen, noise.memory_latency);
    }
    text.push('\n');
    text
}

/// What a load is, in words.
pub fn title(cell: &Cell) -> String {
    let rate = cell.rate.map_or("closed loop".to_owned(), |rate| format!("open loop {rate}/s"));
    let unit = if cell.kind == Kind::Bulk { " (1 request = 1 MiB)" } else { "" };
    format!(
        "{:?}, {} B, {} connections x {}, {rate}{unit}",
        cell.kind, cell.size, cell.connections, cell.streams
    )
}

fn table(text: &mut String, results: &Results, index: usize, cell: &Cell) {
    let figures: Vec<&Figure> =
        FIGURES.iter().filter(|figure| cell.rate.is_none() || figure.open_loop_too).collect();
    let _ = write!(text, "| peer |");
    for figure in &figures {
        let _ = write!(text, " {} | to envoy | to haproxy |", figure.name);
    }
    let _ = writeln!(text, " CPU to floor | failed |\n|---|{}", "---|".repeat(figures.len() * 3 + 2));
    for peer in &results.peers {
        let of_cell = |peer: &str| -> Vec<&Sample> {
            results.samples.iter().filter(|sample| sample.cell == index && sample.peer == peer).collect()
        };
        let own = of_cell(peer);
        let _ = write!(text, "| {peer} |");
        for figure in &figures {
            let value = median(own.iter().map(|sample| (figure.of)(sample)).collect());
            let _ = write!(text, " {} |", number(value));
            for other in ["envoy", "haproxy"] {
                let _ = write!(text, " {} |", ratio(&own, &of_cell(other), figure.of));
            }
        }
        let failed: u64 = own.iter().map(|sample| sample.outcome.failed).sum();
        let _ = writeln!(text, " {} | {failed} |", ratio(&own, &of_cell("floor"), FIGURES[1].of));
        if let Some(error) = own.iter().find_map(|sample| sample.outcome.error.as_ref()) {
            let _ = writeln!(text, "| {peer} failed, for example: {error} |");
        }
    }
}

/// The ratios within each round.
pub fn ratios(own: &[&Sample], other: &[&Sample], of: fn(&Sample) -> f64) -> Vec<f64> {
    own.iter()
        .filter_map(|sample| {
            let peer = other.iter().find(|peer| peer.round == sample.round)?;
            let ratio = of(sample) / of(peer);
            (ratio.is_finite() && ratio > 0.0).then_some(ratio)
        })
        .collect()
}

/// Their median, and the lowest and highest.
fn ratio(own: &[&Sample], other: &[&Sample], of: fn(&Sample) -> f64) -> String {
    let mut ratios = ratios(own, other, of);
    ratios.sort_by(f64::total_cmp);
    match (ratios.first(), ratios.last()) {
        (Some(_), Some(_)) if ratios.len() == 1 => format!("{:.2}", ratios[0]),
        (Some(least), Some(most)) => format!("{:.2} ({least:.2}–{most:.2})", median(ratios.clone())),
        _ => "–".into(),
    }
}

/// The middle one.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

fn number(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

fn memory(text: &mut String, idle: &[Idle]) {
    let _ = writeln!(
        text,
        "\n### Memory\n\n| peer | connections | resident idle, each sidecar, MiB | of it anonymous | per connection, pair, KiB |\n|---|---|---|---|---|"
    );
    for row in idle {
        let mebi = |of: fn(&crate::process::Memory) -> u64| {
            row.before
                .iter()
                .map(|memory| format!("{:.1}", of(memory) as f64 / 1024.0))
                .collect::<Vec<_>>()
                .join(" + ")
        };
        let sum =
            |memories: &[crate::process::Memory]| memories.iter().map(|memory| memory.resident).sum::<u64>();
        let each = (sum(&row.with) as f64 - sum(&row.before) as f64) / row.connections as f64;
        let _ = writeln!(
            text,
            "| {} | {} {:?} | {} | {} | {each:.1} |",
            row.peer,
            row.connections,
            row.kind,
            mebi(|m| m.resident),
            mebi(|m| m.anonymous)
        );
    }
}

/// Start-up, memory in a large mesh, sizes of programs.
fn others(text: &mut String, results: &Results) {
    let _ = writeln!(
        text,
        "\n### Start to first proxied request, ms\n\n| peer | median | least | most |\n|---|---|---|---|"
    );
    for row in &results.startups {
        let mut sorted = row.millis.clone();
        sorted.sort_by(f64::total_cmp);
        let (least, most) =
            (sorted.first().copied().unwrap_or(f64::NAN), sorted.last().copied().unwrap_or(f64::NAN));
        let _ = writeln!(text, "| {} | {:.1} | {least:.1} | {most:.1} |", row.peer, median(sorted));
    }
    let _ = writeln!(
        text,
        "\n### One sidecar with 1,000 services and 10,000 endpoints, MiB\n\n| peer | resident | of it anonymous |\n|---|---|---|"
    );
    for row in &results.crowds {
        let mebi = |kibi: u64| kibi as f64 / 1024.0;
        let _ = writeln!(
            text,
            "| {} | {:.1} | {:.1} |",
            row.peer,
            mebi(row.memory.resident),
            mebi(row.memory.anonymous)
        );
    }
    let _ = writeln!(text, "\n### Programs, MiB\n");
    for (name, bytes) in &results.programs {
        let _ = writeln!(text, "* {name}: {:.1}", *bytes as f64 / f64::from(1 << 20));
    }
}
