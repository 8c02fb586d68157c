use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::fuzz_rules;

/// Texts that cost a naive reader time or memory.
fn hostile() -> Vec<String> {
    let laughs: String = (1..20).map(|n| format!("a{n}: &a{n} [*a{}, *a{}]\n", n - 1, n - 1)).collect();
    let mut texts = vec![
        format!("a0: &a0 x\n{laughs}"),
        "[".repeat(900_000),
        "{a: ".repeat(200_000),
        "- ".repeat(400_000),
        "? ".repeat(400_000),
        "---\n".repeat(250_000),
        "a: b\n---\n".repeat(100_000),
        "%YAML 1.2\n".repeat(90_000),
        (0..60_000).map(|n| format!("k{n}: 1\n")).collect(),
        "&a ".repeat(300_000),
        "\"".repeat(1_000_000),
        "#".repeat(1_000_000),
        "\n".repeat(1_000_000),
        " ".repeat(1_000_000),
        "a: |\n".to_owned() + &" x\n".repeat(300_000),
        "[a,".repeat(300_000),
        format!("[{}]", "a,".repeat(400_000)),
    ];
    let pattern = "{uri: {regex: '\\w{60}\\w{60}'}},".repeat(20_000);
    texts.push(format!("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: a}}\nspec: {{hosts: [a], http: [{{match: [{pattern}], route: [{{destination: {{host: a}}}}]}}]}}"));
    let routes =
        "{match: [{uri: {prefix: /a}}], route: [{destination: {host: a, subset: b}}]},".repeat(6_000);
    texts.push(format!("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: a}}\nspec: {{hosts: [a], http: [{routes}]}}"));
    texts
}

#[test]
fn hostile_texts_are_answered_quickly() {
    for text in hostile() {
        let start = Instant::now();
        fuzz_rules(text.as_bytes());
        let taken = start.elapsed();
        // Generous for an unoptimised build on a busy host; a quadratic reader needs minutes.
        assert!(
            taken < Duration::from_secs(20),
            "{taken:?} for {:?}…",
            &text.chars().take(60).collect::<String>()
        );
    }
}

fn examples() -> Vec<String> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/examples");
    let mut texts: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap())
        .collect();
    texts.sort();
    texts
}

/// A valid text with a few places overwritten, removed or repeated.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let edit = (any::<prop::sample::Index>(), 0..4u8, "[-:{}\\[\\]&*#'\"|>!%@,~ \n\ta0.é]{0,4}", 0..20usize);
    (prop::sample::select(examples()), prop::collection::vec(edit, 1..8)).prop_map(|(text, edits)| {
        let mut bytes = text.into_bytes();
        for (index, kind, insert, length) in edits {
            let at = index.index(bytes.len().max(1)).min(bytes.len());
            let end = (at + length).min(bytes.len());
            match kind {
                0 => drop(bytes.splice(at..end, insert.into_bytes())),
                1 => drop(bytes.splice(at..at, insert.into_bytes())),
                2 => drop(bytes.drain(at..end)),
                _ => {
                    let again = bytes[at..end].to_vec();
                    drop(bytes.splice(at..at, again));
                }
            }
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        fuzz_rules(&bytes);
    }

    #[test]
    fn arbitrary_yaml_like_texts_never_panic(text in "[-:{}\\[\\]&*#'\"|>!%@,?~ \n\ta-c0.<]{0,120}") {
        fuzz_rules(text.as_bytes());
    }

    #[test]
    fn mutated_examples_never_panic(bytes in mutated()) {
        fuzz_rules(&bytes);
    }
}

#[test]
fn the_corpus_holds() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus/rules");
    let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 10, "the corpus is gone");
    files.into_iter().for_each(|file| fuzz_rules(&std::fs::read(file).unwrap()));
}
