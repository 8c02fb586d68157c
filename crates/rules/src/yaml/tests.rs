use super::*;

fn one(text: &str) -> Document {
    let mut documents = load(text, BOUNDS);
    assert_eq!(documents.len(), 1, "{documents:?}");
    documents.remove(0)
}

fn root(text: &str) -> Node {
    let document = one(text);
    assert!(document.troubles.is_empty(), "{:?}", document.troubles);
    document.root.unwrap()
}

#[test]
fn every_value_and_key_knows_its_line_and_column() {
    let root = root("a: 1\nb:\n  - x\n  - c: \"y\"\n");
    let (key, b) = root.entry("b").unwrap();
    assert_eq!(key.spot, Spot { line: 2, column: 1 });
    let Value::List(items) = &b.value else { panic!("{b:?}") };
    assert_eq!(items[0].spot, Spot { line: 3, column: 5 });
    assert_eq!(items[1].child("c").unwrap().spot, Spot { line: 4, column: 8 });
}

#[test]
fn positions_go_on_counting_over_documents() {
    let documents = load("a: 1\n---\n# comment\nb: 2\n---\nc: 3\n", BOUNDS);
    let spots: Vec<u32> = documents.iter().map(|d| d.root.as_ref().unwrap().spot.line).collect();
    assert_eq!(spots, [1, 4, 6]);
    assert_eq!(documents[1].text, "# comment\nb: 2\n");
}

#[test]
fn json_is_read_like_yaml() {
    let json = r#"{"a": [1, "2", true, null, 1.5], "b": {"c": "d"}}"#;
    assert_eq!(root(json).to_json(), serde_json::from_str::<serde_json::Value>(json).unwrap());
}

#[test]
fn plain_scalars_follow_the_core_schema() {
    let root = root("[on, yes, 1, 0x10, 1.5, 1e3, v1, 10.0.0.1, '1', ~, -5, 1_000, 5xx, .5]");
    let Value::List(items) = root.value else { panic!() };
    let kinds: String = items
        .iter()
        .map(|node| match node.value {
            Value::Text(_) => 't',
            Value::Number(_) => 'n',
            Value::Null => '0',
            _ => '?',
        })
        .collect();
    assert_eq!(kinds, "ttnnnntt".to_owned() + "t0ntt" + "n");
}

#[test]
fn a_syntax_error_in_one_document_does_not_hide_the_others() {
    let documents = load("a: [1\n---\nb: 2\n---\nc: {\n", BOUNDS);
    assert_eq!(documents.len(), 3);
    assert_eq!(documents[0].troubles.len(), 1);
    assert!(documents[0].root.is_none());
    assert!(documents[1].root.is_some());
    assert!(documents[2].troubles[0].spot.line >= 5, "{:?}", documents[2].troubles);
}

#[test]
fn a_duplicate_key_is_told_where_it_stands_the_second_time() {
    let document = one("a: 1\nb:\n  c: 1\n  c: 2\na: 3\n");
    let spots: Vec<_> = document.troubles.iter().map(|t| (t.spot.line, t.spot.column, t.code)).collect();
    assert_eq!(spots, [(4, 3, "OUT0002"), (5, 1, "OUT0002")]);
}

#[test]
fn aliases_repeat_a_value() {
    let root = root("a: &x {b: 1}\nc: *x\n");
    assert_eq!(root.child("c").unwrap().to_json(), serde_json::json!({"b": 1}));
    assert_eq!(root.child("c").unwrap().spot, Spot { line: 2, column: 4 });
}

#[test]
fn a_billion_laughs_are_cut_short() {
    let mut text = "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n".to_owned();
    for level in 1..12 {
        let previous = level - 1;
        text.push_str(&format!("a{level}: &a{level} [{}]\n", vec![format!("*a{previous}"); 9].join(",")));
    }
    let document = one(&text);
    assert_eq!(document.troubles[0].code, "OUT0003");
    assert!(document.root.is_none());
}

#[test]
fn depth_and_size_are_bounded() {
    for text in ["[".repeat(100_000), "- ".repeat(50_000), "a: ".repeat(3), "x".repeat((1 << 20) + 1)] {
        assert!(!one(&text).troubles.is_empty());
    }
    let deep_alias =
        format!("a: &a {}{}\nb: {}*a{}\n", "[".repeat(40), "]".repeat(40), "[".repeat(40), "]".repeat(40));
    assert_eq!(one(&deep_alias).troubles[0].code, "OUT0003");
}

#[test]
fn directives_and_end_marks_belong_to_their_document() {
    let documents = load("%YAML 1.2\n---\na: 1\n...\n---\nb: 2\n", BOUNDS);
    assert!(documents.iter().all(|d| d.troubles.is_empty()), "{documents:?}");
    assert_eq!(documents.iter().filter(|d| d.root.is_some()).count(), 2);
}

#[test]
fn a_separator_inside_a_block_scalar_is_a_separator_only_at_the_first_column() {
    let root = root("a: |\n  one\n  ---\n  two\n");
    assert_eq!(root.child("a").unwrap().as_text(), Some("one\n---\ntwo\n"));
}

#[test]
fn merge_keys_are_refused_with_advice() {
    assert!(one("a: &x {b: 1}\nc:\n  <<: *x\n").troubles[0].message.contains("write the fields out"));
}

#[test]
fn an_empty_text_has_no_objects() {
    for text in ["", "\n", "# nothing\n", "---\n", "---\n---\n"] {
        assert!(load(text, BOUNDS).iter().all(|d| d.root.is_none() && d.troubles.is_empty()), "{text:?}");
    }
}

/// Found by fuzzing: the source that was stored of the first could not be read again.
#[test]
fn what_follows_an_end_mark_is_another_document() {
    let documents = load("a: 1\n...\nb: 2\n...\n# c\n: [\n", BOUNDS);
    assert_eq!(documents.len(), 3);
    assert!(!documents[0].text.contains('b') && documents[0].troubles.is_empty());
    assert_eq!(documents[1].root.as_ref().unwrap().spot.line, 3);
    assert!(documents[2].root.is_none() && documents[2].troubles[0].spot.line >= 5);
    assert_eq!(load("a: |\n  ...\n  b\n", BOUNDS).len(), 1, "inside of a block scalar it is text");
}

/// Found by fuzzing: a carriage return alone ends a line too.
#[test]
fn documents_are_cut_at_every_kind_of_line_break() {
    for text in ["a: 1\r---\rb: 2\r...\rc: 3\r", "a: 1\r\n---\r\nb: 2\r\n...\r\nc: 3\r\n"] {
        let documents = load(text, BOUNDS);
        let at: Vec<_> = documents.iter().map(|d| d.root.as_ref().unwrap().spot.line).collect();
        assert_eq!(at, [1, 3, 5], "{text:?}");
        assert!(documents.iter().all(|d| d.text.trim_end().lines().count() == 1), "{documents:?}");
    }
}

/// Found by fuzzing: what cannot be read behind an end mark is not stored with the object before it.
#[test]
fn what_stands_behind_an_end_mark_is_no_part_of_the_document() {
    assert_eq!(load("a: 1\n... # fine\n", BOUNDS)[0].text, "a: 1\n");
}

/// Found by fuzzing: a parser may take NUL for the end of the text.
#[test]
fn a_control_character_is_refused_where_it_stands() {
    for (text, line, column) in [("a: 1\n...\0b\n", 2, 4), ("\u{1b}[31m", 1, 1), ("a:\r\n\r\n\u{7f}", 3, 1)] {
        let documents = load(text, BOUNDS);
        assert!(documents.len() == 1 && documents[0].root.is_none(), "{documents:?}");
        let trouble = &documents[0].troubles[0];
        assert_eq!(
            (trouble.spot, trouble.code),
            (Spot { line, column }, crate::finding::code::SYNTAX),
            "{text:?}"
        );
    }
    assert!(load("a: \"\\0\"\n", BOUNDS)[0].troubles.is_empty(), "escaped it is text");
}
