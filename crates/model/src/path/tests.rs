//! The table against a real Envoy is `tests/tests/paths.rs`; here is what must hold of every path.

use proptest::prelude::*;

use super::*;

fn form(mode: PathNormalization, path: &str) -> Result<String, PathRefusal> {
    Ok(mode.apply(path)?.unwrap_or_else(|| path.to_owned()))
}

fn default(path: &str) -> String {
    form(PathNormalization::default(), path).unwrap()
}

#[test]
fn every_spelling_of_a_path_is_one_path() {
    for spelling in [
        "/admin",
        "//admin",
        "///admin",
        "/./admin",
        "/x/../admin",
        "/../admin",
        "/%61dmin",
        "/%61%64%6D%69%6e",
        "/x/%2e%2e/admin",
        "/x/.%2E/admin",
        "/%2e/admin",
        "/x/..;/admin",
        "/x/..;a=b/admin",
        "/x/%2e%2e;/admin",
        "/x\\..\\admin",
    ] {
        assert_eq!(default(spelling), "/admin", "{spelling}");
    }
}

#[test]
fn what_is_in_its_form_stays_and_costs_no_allocation() {
    for path in [
        "/",
        "/a/b.c/d..e",
        "/pkg.Service/Method",
        "/a;b=c/d",
        "/a%2Fb",
        "/@scope%2fname",
        "/100%25",
        "/%2541",
        "/a%20b",
        "/a?x=//../%61\\..;",
        "/...",
        "*",
        "",
    ] {
        assert_eq!(PathNormalization::default().apply(path), Ok(None), "{path}");
    }
}

#[test]
fn the_query_is_never_touched() {
    assert_eq!(default("//a/%2e?p=//b/../%61&q=%2f..%2f%00?"), "/a/?p=//b/../%61&q=%2f..%2f%00?");
    assert_eq!(default("/a/..?"), "/?");
}

#[test]
fn ends_of_paths_keep_their_slash() {
    for (path, wanted) in [
        ("/a/.", "/a/"),
        ("/a/b/..", "/a/"),
        ("/a/..", "/"),
        ("/..", "/"),
        ("/.", "/"),
        ("//", "/"),
        ("/a///b//", "/a/b/"),
        ("/a//../b", "/a/b"),
        ("/a/b/../../../c", "/c"),
    ] {
        assert_eq!(default(path), wanted, "{path}");
    }
}

#[test]
fn the_modes_do_what_istio_says_of_them() {
    use PathNormalization as P;
    for (path, none, base, merge, decode) in [
        ("//a/../b", "//a/../b", "//b", "/b", "/b"),
        ("/a/./b", "/a/./b", "/a/b", "/a/b", "/a/b"),
        ("/%61", "/%61", "/a", "/a", "/a"),
        ("/a//b", "/a//b", "/a//b", "/a/b", "/a/b"),
        ("/a%2fb%5Cc", "/a%2fb%5Cc", "/a%2fb%5Cc", "/a%2fb%5Cc", "/a/b/c"),
    ] {
        for (mode, wanted) in [
            (P::NONE, none),
            (P::BASE, base),
            (P::MERGE_SLASHES, merge),
            (P::DECODE_AND_MERGE_SLASHES, decode),
        ] {
            assert_eq!(form(mode, path).as_deref(), Ok(wanted), "{path} by {mode:?}");
        }
    }
    assert_eq!(form(P::DECODE_AND_MERGE_SLASHES, "/a%2f..%2f%2fb").as_deref(), Ok("/b"));
}

#[test]
fn what_has_no_one_form_is_refused() {
    let refused = |mode: PathNormalization, path: &str| mode.apply(path).unwrap_err();
    let default = PathNormalization::default();
    assert_eq!(refused(default, "/a%00b"), PathRefusal::Nul);
    for path in ["/a%2f../b", "/a/..%2fb", "/%2e%2e%5cb", "/a%2f.%2fb", "/a%5c..", "/x/..%3b/a"] {
        assert_eq!(refused(default, path), PathRefusal::HiddenDotSegment, "{path}");
    }
    for path in ["/;/admin", "/;x=1/admin", "/a/;b/c", "/%3b/admin", "//;/admin", "/x/../;/admin"] {
        assert_eq!(refused(default, path), PathRefusal::NamelessSegment, "{path}");
    }
    for path in ["/;jsessionid=1", "/a;b/c", "/a/;", "/a/;x?y=/;/z"] {
        assert_eq!(form(default, path).as_deref(), Ok(path));
    }
    let reject = PathNormalization { escaped_slashes: EscapedSlashes::Reject, ..default };
    assert_eq!(refused(reject, "/a%2Fb"), PathRefusal::EscapedSlash);
    assert_eq!(refused(reject, "/a%5cb"), PathRefusal::EscapedSlash);
    assert_eq!(form(reject, "/a?%2f").as_deref(), Ok("/a?%2f"));
}

#[test]
fn decoding_makes_no_new_escape() {
    assert_eq!(default("/%%36%31dmin"), "/%2561dmin");
    assert_eq!(default("/a%4%31"), "/a%2541");
    assert_eq!(default("/%%36zz"), "/%6zz");
    assert_eq!(default("/a%zz"), "/a%zz");
    assert_eq!(default("/a%"), "/a%");
    assert_eq!(default("/a|\"b"), "/a%7C%22b");
}

fn path() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "/", "//", ".", "..", "%2e", "%2E.", "%61", "a", "b", "%2f", "%5C", "\\", ";", ";x=1", "%", "%25",
        "4", "1", "%00", "|", "%41", "%3b", "?", "é", "~", "%7E",
    ]);
    prop::collection::vec(piece, 0..14).prop_map(|pieces| format!("/{}", pieces.concat()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn the_form_of_a_form_is_itself(path in path()) {
        for (_, mode) in PathNormalization::NAMES {
            if let Ok(once) = form(mode, &path) {
                prop_assert_eq!(form(mode, &once), Ok(once), "{:?} of {}", mode, path);
            }
        }
    }

    #[test]
    fn no_dot_segment_and_no_doubled_slash_is_left(path in path()) {
        if let Ok(form) = form(PathNormalization::default(), &path) {
            let path = form.split('?').next().unwrap();
            prop_assert!(path.starts_with('/') && !path.contains("//") && !path.contains('\\'), "{}", path);
            prop_assert!(path.split('/').all(|s| !matches!(bare(s.as_bytes()), b"." | b"..")), "{}", path);
        }
    }

    #[test]
    fn an_application_that_decodes_everything_finds_no_dot_segment(path in path()) {
        if let Ok(form) = form(PathNormalization::default(), &path) {
            let path = form.split('?').next().unwrap().as_bytes();
            let (mut decoded, mut at) = (Vec::new(), 0);
            while at < path.len() {
                let escaped = if path[at] == b'%' { escape_at(path, at) } else { None };
                decoded.push(escaped.unwrap_or(path[at]));
                at += if escaped.is_some() { 3 } else { 1 };
            }
            let mut segments = decoded.split(|b| matches!(b, b'/' | b'\\'));
            prop_assert!(segments.all(|s| !matches!(bare(s), b"." | b"..")), "{}", form);
        }
    }
}
