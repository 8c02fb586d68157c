//! Output: tables for people, JSON and YAML for programs.

pub(crate) mod lines;
mod tree;
pub(crate) mod yaml;

use clap::ValueEnum;
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use serde::Serialize;
pub(crate) use tree::Tree;

/// How data is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// A table.
    #[default]
    Table,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// How a tree is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// For people.
    #[default]
    Tree,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// Prints data in one of its forms.
pub(crate) fn show_as<T: Serialize>(
    form: Form,
    data: &T,
    text: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    match form {
        Form::Tree => print!("{}", text()),
        Form::Json => println!("{}", serde_json::to_string_pretty(data)?),
        Form::Yaml => print!("{}", yaml::document(&serde_json::to_value(data)?)),
    }
    Ok(())
}

/// Rows under a header, aligned.
pub(crate) fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(header);
    for row in rows {
        table.add_row(row.map(|cell| clean(&cell)));
    }
    table.lines().map(|line| line.trim().to_owned() + "\n").collect()
}

/// A text that proxies and applications chose, in one line: what a terminal takes for orders is shown instead of obeyed.
pub(crate) fn clean(text: &str) -> String {
    let shown = |c: char| -> String { if c.is_control() { c.escape_default().collect() } else { c.into() } };
    text.chars().map(shown).collect()
}

/// Prints either form.
pub(crate) fn show<T: Serialize>(
    output: Output,
    data: &T,
    text: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(data)?),
        Output::Yaml => print!("{}", yaml::document(&serde_json::to_value(data)?)),
        Output::Table => print!("{}", text()),
    }
    Ok(())
}
