//! Whether the tables of limits in `docs/security.md` say what the code does: each number of their second column is tied to
//! a place in the sources ([`rows`]), in the order of the row, and read there anew.
//!
//! A number in words counts (`half`, `a quarter`, `an hour`), so none can be made up; text around the numbers is not judged.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};

use number::numbers;
use rows::{ROWS, Row};
use source::Source;

mod number;
mod rows;
mod source;

const PAGE: &str = "docs/security.md";

/// How the tables begin.
const HEAD: &str = "| limit | default | against |";

/// So many tables the page has.
const TABLES: usize = 2;

/// Compares the page with the sources; names all that differs at once.
pub fn check(root: &Path) -> Result<()> {
    let page = read(&root.join(PAGE))?;
    let mut sources = BTreeMap::new();
    for (file, _) in ROWS.iter().flat_map(|(_, ties)| *ties) {
        if !sources.contains_key(file) {
            sources.insert(*file, Source::new(&read(&root.join("crates").join(file))?));
        }
    }
    let offences = offences(&page, ROWS, &sources);
    for offence in &offences {
        eprintln!("{PAGE}: {offence}");
    }
    if !offences.is_empty() {
        bail!(
            "{} offences; what each number is tied to is in crates/xtask/src/limits/rows.rs",
            offences.len()
        );
    }
    Ok(())
}

fn offences(page: &str, rows: &[Row], sources: &BTreeMap<&str, Source>) -> Vec<String> {
    let (said, mut offences) = table_rows(page);
    for (limit, default) in &said {
        let tied: Vec<&Row> = rows.iter().filter(|(begins, _)| limit.starts_with(begins)).collect();
        match tied.as_slice() {
            [(_, ties)] => {
                let found = of_row(default, ties, sources);
                offences.extend(found.iter().map(|why| format!("`{limit}`: {why}")));
            }
            [] => offences.push(format!("`{limit}`: nothing ties its numbers to the code")),
            _ => offences.push(format!("`{limit}`: begins like {} entries", tied.len())),
        }
    }
    for (begins, _) in rows {
        match said.iter().filter(|(limit, _)| limit.starts_with(begins)).count() {
            0 => offences.push(format!("`{begins}`: tied, but no row begins so")),
            1 => {}
            count => offences.push(format!("`{begins}`: {count} rows begin so")),
        }
    }
    offences
}

/// The first two cells of every row, and what is no row.
fn table_rows(page: &str) -> (Vec<(&str, &str)>, Vec<String>) {
    let (mut rows, mut offences) = (Vec::new(), Vec::new());
    let mut tables = 0;
    let mut lines = page.lines();
    while lines.any(|line| line == HEAD) {
        tables += 1;
        for line in lines.by_ref().skip(1).take_while(|line| line.starts_with('|')) {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            match cells.as_slice() {
                ["", limit, default, _, ""] => rows.push((*limit, *default)),
                _ => offences.push(format!("`{line}`: has not three cells")),
            }
        }
    }
    if tables != TABLES {
        offences.push(format!("{tables} tables begin with `{HEAD}`, there should be {TABLES}"));
    }
    (rows, offences)
}

/// What is wrong with a row's numbers.
fn of_row(default: &str, ties: &[(&str, &[&str])], sources: &BTreeMap<&str, Source>) -> Vec<String> {
    let mut offences = Vec::new();
    let mut places = ties.iter().flat_map(|(file, places)| places.iter().map(move |place| (file, place)));
    for number in numbers(default) {
        let (words, value) = match number {
            Ok(number) => number,
            Err(words) => {
                offences.push(format!("`{words}` cannot be read"));
                continue;
            }
        };
        let Some((file, place)) = places.next() else {
            offences.push(format!("`{words}` is tied to nothing"));
            continue;
        };
        match sources.get(file).map(|source| source.value(place)) {
            Some(Ok(real)) if real == value => {}
            Some(Ok(real)) => offences.push(format!("says {words}; `{place}` in crates/{file} is {real}")),
            Some(Err(why)) => offences.push(format!("{words}: `{place}` in crates/{file}: {why}")),
            None => offences.push(format!("{words}: crates/{file} was not read")),
        }
    }
    offences.extend(places.map(|(file, place)| format!("does not say `{place}` of crates/{file}")));
    offences
}

fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

#[cfg(test)]
mod tests;
