use std::fs;

use notify::{RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

use super::super::Word;
use super::*;
use crate::bell::is_news;

const ONE: &str = "instances:\n- id: web-1\n  service: web\n  addresses: [127.0.0.5]\n  ports: [{number: 80, protocol: http}]\n";

fn ids(changes: &Changes) -> Vec<Vec<String>> {
    changes.events.iter().map(|(_, event)| ids_of(event)).collect()
}

fn ids_of(event: &Event) -> Vec<String> {
    let Event::Reset(items) = event else { panic!("a scan only resets, not {event:?}") };
    let id = |item: &Item| match item {
        Item::Instance(instance) => instance.id.clone(),
        Item::Rule(object) => object.id(),
    };
    items.iter().map(id).collect()
}

fn following(pattern: String) -> FileRegistry {
    FileRegistry::new(vec![pattern], ParseOptions::default())
}

#[test]
fn a_changed_file_is_read_again_and_an_unchanged_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("web.yaml");
    fs::write(&path, ONE).unwrap();
    let mut registry = following(dir.path().display().to_string());
    assert_eq!(ids(&registry.scan()), [["web-1"]]);
    assert!(registry.scan().events.is_empty());
    fs::write(&path, ONE.replace("web-1", "web-2")).unwrap();
    assert_eq!(ids(&registry.scan()), [["web-2"]]);
    fs::remove_file(&path).unwrap();
    assert_eq!(ids(&registry.scan()), [Vec::<String>::new()]);
}

#[test]
fn a_stamp_stands_for_content_that_was_read_twice_far_apart_and_not_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("web.yaml");
    fs::write(&path, ONE).unwrap();
    let stamp = || Stamp::of(&fs::metadata(&path).unwrap());
    let (first, begun) = (stamp(), Instant::now());
    let mut seen = Seen { content: Vec::new(), problem: None, stamp: first, since: begun, read: begun };
    assert!(!seen.holds(first, begun + COARSE), "it was read once");
    seen.again(first, begun + COARSE / 2);
    assert!(!seen.holds(first, begun + COARSE), "the stamp may be too coarse to tell");
    seen.again(first, begun + COARSE);
    assert!(seen.holds(first, begun + 2 * COARSE) && seen.holds(stamp(), begun + REREAD));
    assert!(!seen.holds(first, begun + COARSE + REREAD), "it is read again now and then");
    // The same content, but it was written.
    fs::write(&path, ONE).unwrap();
    fs::rename(&path, dir.path().join("moved")).unwrap();
    fs::copy(dir.path().join("moved"), &path).unwrap();
    assert_ne!(stamp(), first);
    seen.again(stamp(), begun + 2 * COARSE);
    assert!(!seen.holds(stamp(), begun + 2 * COARSE), "another stamp begins anew");
}

#[test]
fn a_bad_file_is_reported_with_its_line_and_its_last_good_content_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("web.yaml");
    let pattern = path.display().to_string();
    fs::write(&path, ONE).unwrap();
    let mut registry = following(pattern.clone());
    registry.scan();
    for (bad, line, word) in [
        (ONE.replace("service:", "servise:"), 3, "servise"),
        (ONE.replace("number: 80", "number: 0"), 2, "ports[0].number"),
        (format!("{ONE}- id: web-1\n  service: web\n  addresses: [127.0.0.6]\n  ports: []\n"), 2, "twice"),
    ] {
        fs::write(&path, bad).unwrap();
        let changes = registry.scan();
        assert!(changes.events.is_empty(), "{word}");
        let [problem] = changes.problems.as_slice() else { panic!("{:?}", changes.problems) };
        assert_eq!(problem.line, line, "{problem}");
        assert!(problem.message.contains(word) && problem.to_string().starts_with(&pattern), "{problem}");
        assert_eq!(registry.scan().problems.len(), 1, "an unchanged bad file is still bad");
    }
    fs::write(&path, ONE).unwrap();
    assert!(registry.scan().problems.is_empty());
}

#[test]
fn a_directory_that_is_gone_is_no_proof_that_its_files_are() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("instances");
    fs::create_dir(&inner).unwrap();
    fs::write(inner.join("web.yaml"), ONE).unwrap();
    let mut registry = following(inner.display().to_string());
    assert_eq!(ids(&registry.scan()), [["web-1"]]);
    fs::remove_dir_all(&inner).unwrap();
    let found = registry.scan();
    assert!(
        found.events.is_empty() && found.problems[0].message.contains("the directory is gone"),
        "{found:?}"
    );
    fs::create_dir(&inner).unwrap();
    let found = registry.scan();
    assert_eq!((found.problems.len(), ids(&found)), (0, vec![Vec::new()]), "emptied, as it says");
}

#[test]
fn a_file_of_rules_says_rules_and_one_with_an_error_keeps_its_last_good_ones() {
    const RULE: &str = "# first\nkind: PeerAuthentication\napiVersion: security.istio.io/v1\nmetadata: {name: strict, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n";
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rules.yaml");
    fs::write(&path, RULE).unwrap();
    let json = r#"{"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": {"name": "json"}, "spec": {}}"#;
    fs::write(dir.path().join("json.json"), json).unwrap();
    let mut registry = following(dir.path().display().to_string());
    let found = registry.scan();
    assert_eq!(found.problems, []);
    assert_eq!(ids(&found), [["PeerAuthentication default/json"], ["PeerAuthentication shop/strict"]]);
    for (bad, line, word) in
        [(RULE.replace("STRICT", "STRONG"), 5, "STRONG"), (format!("{RULE}---\n{RULE}"), 6, "twice")]
    {
        fs::write(&path, bad).unwrap();
        let found = registry.scan();
        let [problem] = found.problems.as_slice() else { panic!("{found:?}") };
        assert!(problem.message.contains(word) && problem.line >= line, "{problem}");
        assert!(found.events.is_empty());
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(ids(&registry.scan()), [[""; 0]]);
}

#[test]
fn a_pattern_takes_what_it_matches() {
    assert!(matches("*.yaml", "a.yaml") && matches("a*c*e", "abcde") && matches("*", ""));
    assert!(!matches("*.yaml", "a.yml") && !matches("a*", "b") && !matches("a*b", "a"));
    let dir = tempfile::tempdir().unwrap();
    for name in ["one.reg", "two.reg", "three.yaml", ".hidden.reg"] {
        fs::write(dir.path().join(name), ONE).unwrap();
    }
    let paths = expand(&dir.path().join("*.reg").display().to_string()).unwrap();
    assert_eq!(paths, [dir.path().join("one.reg"), dir.path().join("two.reg")]);
}

#[tokio::test]
async fn a_watched_file_is_told_when_it_changes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("web.yaml");
    fs::write(&path, ONE).unwrap();
    let (voice, mut heard) = Voice::of_a_test();
    let mut registry = following(path.display().to_string());
    let watching = tokio::spawn(async move { registry.follow(&voice).await });
    let mut next = async || loop {
        match heard.recv().await.unwrap() {
            Word::Event(source, event) => break (source.part.clone(), ids_of(&event)),
            Word::Whole => {}
        }
    };
    let file = path.display().to_string();
    assert_eq!(next().await, (file.clone(), vec!["web-1".into()]));
    // As editors do: written aside, then renamed over it.
    let aside = dir.path().join(".web.yaml.new");
    fs::write(&aside, ONE.replace("web-1", "web-2")).unwrap();
    fs::rename(&aside, &path).unwrap();
    assert_eq!(next().await, (file, vec!["web-2".into()]));
    watching.abort();
}

#[tokio::test]
async fn scanning_does_not_call_for_the_next_scan() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.yaml");
    fs::write(&file, "instances: []").unwrap();
    let (tell, mut told) = mpsc::channel(64);
    let mut watcher = notify::recommended_watcher(move |event| {
        let _ = tell.try_send(is_news(&event));
    })
    .unwrap();
    watcher.watch(directory.path(), RecursiveMode::NonRecursive).unwrap();
    let mut registry = following(file.display().to_string());
    registry.scan();
    fs::write(&file, "instances: []\n").unwrap();
    // All that reading caused comes before what writing caused.
    let mut before = 0;
    while !told.recv().await.unwrap() {
        before += 1;
    }
    assert!(before > 0, "reading was told, and is no news");
}

#[test]
fn a_file_of_a_hundred_thousand_instances_is_read() {
    use std::fmt::Write;
    let dir = tempfile::tempdir().unwrap();
    let mut text = String::from("instances:\n");
    for n in 0..100_000 {
        let _ = writeln!(
            text,
            "- {{id: i{n}, service: s{}, addresses: [10.{}.{}.{}], ports: [{{number: 80, protocol: http}}], labels: {{app: s}}}}",
            n / 10,
            n >> 16,
            (n >> 8) & 255,
            n & 255
        );
    }
    fs::write(dir.path().join("all.yaml"), &text).unwrap();
    let changes = following(dir.path().display().to_string()).scan();
    assert_eq!(changes.problems, []);
    assert_eq!(ids(&changes)[0].len(), 100_000);
}
