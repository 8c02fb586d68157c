use super::*;

use number::Value;

const CODE: &str = "\
//! Owns.
const HEAD: usize = 60 * 1024; // not 61
/// const OTHER: usize = 1;
pub const OTHER: usize = (1 << 20) - (64 << 10);
const TWICE: usize = 2 * HEAD;
const PATIENCE: Duration = Duration::from_millis(4_500);
const STEPS: [(usize, u32); 2] = [(64, 256 * 1024), (usize::MAX, 16 * 1024)];
const ROUND: usize = ROUND + 1;
fn of() -> usize {
    all
        .min(limit / 8)
}
fn a() { take(1); take(2); }

#[cfg(test)]
mod tests {
    const HEAD: usize = 1;
}
";

fn value(place: &str) -> Result<Value, String> {
    Source::new(CODE).value(place)
}

#[test]
fn what_a_place_says_is_computed() {
    let count = |place| match value(place).unwrap() {
        Value::Count(count) => count,
        Value::Time(time) => panic!("{place}: {time:?}"),
    };
    assert_eq!(count("HEAD"), 61_440);
    assert_eq!(count("OTHER"), 983_040);
    assert_eq!(count("TWICE / 1024"), 120);
    assert_eq!(count("(usize::MAX, {})]"), 16_384);
    assert_eq!(count("= [({}, …), (usize"), 64);
    assert_eq!(count("= [(…, {}), (usize"), 262_144);
    assert_eq!(count("all .min(limit / {})"), 8);
    assert_eq!(value("PATIENCE"), Ok(Value::Time(std::time::Duration::from_millis(4500))));
}

#[test]
fn a_place_that_is_gone_ambiguous_or_no_number_is_told() {
    let why = |place| value(place).unwrap_err();
    assert_eq!(why("GONE"), "nothing looks like `const GONE: … = {};`");
    assert_eq!(why("take({});"), "2 places look like `take({});`");
    assert_eq!(why("ROUND"), "`ROUND` leads too far");
    assert_eq!(why("HEAD / 0"), "a product that no number holds");
    assert_eq!(why("PATIENCE + 1"), "4.5s is no count");
    assert_eq!(why("fn {}() -> usize"), "`of` is not understood");
}

#[test]
fn numbers_are_read_as_they_are_written() {
    let read = |cell: &str| -> Vec<String> {
        let all = numbers(cell).into_iter();
        all.map(|one| one.map_or_else(|bad| format!("? {bad}"), |(_, value)| value.to_string())).collect()
    };
    let cell = "half of `a`, at most 32,768 (an eighth); HTTP/1, 64 KiB each; /64; 4.5 s, 200 ms, 15 min; 16 an hour";
    let values =
        ["2", "32,768 (32 KiB)", "8", "65,536 (64 KiB)", "64", "4.5s", "200ms", "900s", "16", "3600s"];
    assert_eq!(read(cell), values);
    assert_eq!(read("5xx, 3,00, 1.5 KiB, v2, 10s"), ["? 5xx", "? 3,00", "? 1.5 KiB", "? v2", "? 10s"]);
}

fn offences_of(rows: &str, ties: &[Row]) -> Vec<String> {
    let page = format!(
        "# Page\n\n{HEAD}\n|---|---|---|\n{rows}\n\n### More\n\n{HEAD}\n|---|---|---|\n| last | | |\n"
    );
    let all = [ties, &[("last", &[])]].concat();
    offences(&page, &all, &BTreeMap::from([("a.rs", Source::new(CODE))]))
}

#[test]
fn a_row_and_the_code_that_differ_are_found() {
    let ties: &[Row] = &[("a head", &[("a.rs", &["HEAD", "PATIENCE"])])];
    let none: &[&str] = &[];
    assert_eq!(offences_of("| a head | 60 KiB, within 4.5 s | x |", ties), none);
    assert_eq!(
        offences_of("| a head | 64 KiB, within 4.5 s | x |", ties),
        ["`a head`: says 64 KiB; `HEAD` in crates/a.rs is 61,440 (60 KiB)"]
    );
    assert_eq!(
        offences_of("| a head | 60 KiB | x |", ties),
        ["`a head`: does not say `PATIENCE` of crates/a.rs"]
    );
    assert_eq!(
        offences_of("| a head | 60 KiB, 4.5 s, half of it | x |", ties),
        ["`a head`: `half` is tied to nothing"]
    );
    let gone: &[Row] = &[("a head", &[("a.rs", &["GONE"])])];
    assert_eq!(
        offences_of("| a head | 60 KiB | x |", gone),
        ["`a head`: 60 KiB: `GONE` in crates/a.rs: nothing looks like `const GONE: … = {};`"]
    );
}

#[test]
fn rows_and_entries_belong_to_each_other() {
    let ties: &[Row] = &[("a head", &[("a.rs", &["HEAD"])])];
    assert_eq!(
        offences_of("| a head | 60 KiB | x |\n| a tail | | |", ties),
        ["`a tail`: nothing ties its numbers to the code"]
    );
    assert_eq!(offences_of("| last of all | | |", ties).len(), 2, "one entry has two rows, the other none");
    assert_eq!(offences_of("| a head | 60 KiB |", ties).len(), 2, "a row of two cells is none");
    let twice = [ties, ties].concat();
    assert_eq!(offences_of("| a head | 60 KiB | x |", &twice), ["`a head`: begins like 2 entries"]);
    assert_eq!(offences("no table", &[], &BTreeMap::new()).len(), 1);
}

#[test]
fn the_page_says_what_the_code_does() {
    let root = std::env::current_dir().unwrap().join("../..");
    check(&root).unwrap();
}
