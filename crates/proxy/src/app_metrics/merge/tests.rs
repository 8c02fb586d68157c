use super::*;

const TEXT: Reader = Reader { format: Format::Text, any_names: false };
const OPEN: Reader = Reader { format: Format::OpenMetrics, any_names: false };

fn lines(text: &str, reader: Reader) -> Result<String, String> {
    let all = merged(text.as_bytes(), reader, |name| matches!(name, "ours_total" | "took_bucket"));
    all.map(|all| String::from_utf8(all).unwrap())
}

/// A page of one line; it does not end where that is empty.
fn page(line: &str, reader: Reader) -> String {
    let end = if reader.format == Format::Text { "" } else { "# EOF\n" };
    format!("ok 1\n{line}\n{end}")
}

/// A Prometheus of 2.42 was asked about each of these lines, and reads it.
const READ_AS_TEXT: &[&str] = &[
    "a 1",
    "# HELP a Of \"a\" \\n.",
    "# HELP a",
    "# HELP a ",
    "# HELP a x\r",
    "  # HELP a x",
    "\t# TYPE a counter",
    "#\tHELP\ta\tx",
    "# TYPE a untyped",
    "# TYPE  a summary",
    "# TYPE a\tcounter",
    "a{b=\"c\"} 2 1700000000000",
    "a{b=\"}\\\"{ x\",c=\"\",} NaN",
    "a{ b = \"c\" , d = \"e\" }\t+Inf",
    "a {b=\"c\" }1\t5 ",
    "a{} 1.",
    "x:y_z -1.5e-7",
    "a nan",
    "a -Infinity",
    "a 1e-400",
    "a 1 00005",
    "a{b=\"\u{fc}\\q\"} .5",
];

/// And has refused the page for one of these.
const REFUSED_AS_TEXT: &[&str] = &[
    "<html>",
    "a",
    "a one",
    "a 1 2 3",
    "a 1 2.5",
    "a 1 -5",
    "a 1 +5",
    "a 1 99999999999999999999",
    "a 1 # x",
    "a 1 # {b=\"c\"} 1",
    " a 1",
    "a 1\r",
    "a\0 1",
    "\u{fc} 1",
    "1a 2",
    "a -NaN",
    "a +NaN",
    "a 1e400",
    "a 0x1p3",
    "a 1_0",
    "a{b} 1",
    "a{b=\"c\"} 1 x",
    "a{b=\"c} 1",
    "a{b=c} 1",
    "a{,} 1",
    "a{9=\"x\"} 1",
    "a{b:c=\"d\"} 1",
    "a{b=\"c\"}{d=\"e\"} 1",
    "a{b=\"1\",c=\"2\",b=\"3\"} 1",
    "a{__name__=\"b\"} 1",
    "a{\"b.c\"=\"d\"} 1",
    "{\"a.b\"} 1",
    "{b=\"c\"} 1",
    "# TYPE a number",
    "  # TYPE a nonsense",
    "# TYPE a info",
    "# TYPE a unknown",
    "# TYPE a counter ",
    "# TYPE a  counter",
    "# TYPE a counter\r",
    "# TYPE a",
    "# TYPE \"a.b\" counter",
    "# HELP 1 x",
    "# HELP ",
];

const READ_AS_OPEN_METRICS: &[&str] = &[
    "a 1",
    "a{} 1 -5.5",
    "a{b=\"}\\\"{ x #\"} 1",
    "# HELP a ",
    "# HELP a x",
    "# TYPE a info",
    "# TYPE a unknown",
    "# UNIT a ",
    "# UNIT a_seconds seconds",
    "a_total 1 # {x=\"y\"} 1",
    "a_total 1 17.5 # {trace_id=\"#1\"} 0.5 17.5",
    "a_total{b=\"c\"} 1 # {} NaN",
    "a_bucket 1 # {x=\"y\"} 1 -5.5",
];

const REFUSED_AS_OPEN_METRICS: &[&str] = &[
    "# TYPE a untyped",
    "# TYPE a counter ",
    "# TYPE a\tcounter",
    "# TYPE  a counter",
    "# HELP a",
    "# UNIT a",
    "# UNIT a seconds",
    "# UNIT aseconds seconds",
    "# UNIT seconds seconds",
    "# UNIT a_seconds seconds ",
    "a_total  1",
    "a_total\t1",
    "a_total 1 ",
    "a {b=\"c\"} 1",
    "a{b = \"c\"} 1",
    "a{ b=\"c\"} 1",
    "a{b=\"c\" } 1",
    "a{b=\"c\",} 1",
    "a{b=\"c\"d=\"e\"} 1",
    "a{b=\"c\"}1",
    "a{b=\"c\"}  1",
    "a{b=\"1\",b=\"2\"} 1",
    "a 1 NaN",
    "a 1 +Inf",
    "a 1 1e400",
    "a 1 5 6",
    "a 1 # x",
    "a 1e400",
    "a 1 # {x=\"y\"} 1",
    "a_sum 1 # {x=\"y\"} 1",
    "a_total 1 # 1",
    "a_total 1 # {x=\"y\"}",
    "a_total 1 #{x=\"y\"} 1",
    "a_total 1  # {x=\"y\"} 1",
    "a_total 1 #  {x=\"y\"} 1",
    "a_total 1 # {x=\"y\"}  1",
    "a_total 1 # {x=\"y\"} 1 ",
    "a_total 1 # {x=\"y\"} 1 NaN",
    "a_total 1 # {x=\"y\"} 1 Inf",
    "a_total 1 # {x=\"y\",} 1",
    "a_total 1 # {x=y} 1",
    "a_total 1 # {x:y=\"1\"} 1",
    "a_total 1 # {\"x\"} 1",
    "{\"a.b\"} 1",
];

#[test]
fn what_a_scraper_reads_is_kept_as_it_is() {
    for (reader, all) in [(TEXT, READ_AS_TEXT), (OPEN, READ_AS_OPEN_METRICS)] {
        for line in all {
            let page = page(line, reader);
            assert_eq!(lines(&page, reader).unwrap(), page);
        }
    }
    assert_eq!(lines("", TEXT).unwrap(), "");
    assert_eq!(lines("a 1", TEXT).unwrap(), "a 1\n");
}

#[test]
fn what_says_nothing_of_a_metric_is_left_out() {
    for line in [
        "",
        "  ",
        "\r",
        "# a remark",
        " # x",
        "#x",
        "# HELP",
        "# HELPa",
        "#TYPE a number",
        "# UNIT a seconds",
    ] {
        assert_eq!(lines(&page(line, TEXT), TEXT).unwrap(), "ok 1\n", "{line}");
    }
    // Some of it costs a scraper of OpenMetrics the page.
    for line in ["", "  ", "# a remark", "#x", "#TYPE a counter", "#  TYPE a counter"] {
        assert_eq!(lines(&page(line, OPEN), OPEN).unwrap(), "ok 1\n# EOF\n", "{line}");
    }
    assert_eq!(lines("a 1\n# EOF", OPEN).unwrap(), "a 1\n# EOF\n");
}

#[test]
fn one_line_that_cannot_be_read_is_named() {
    for (reader, all) in [(TEXT, REFUSED_AS_TEXT), (OPEN, REFUSED_AS_OPEN_METRICS)] {
        for line in all {
            let error = lines(&page(line, reader), reader).expect_err(line);
            assert!(error.starts_with("line 2 is "), "{line}: {error}");
        }
    }
    assert!(lines("a 1\n", OPEN).unwrap_err().contains("# EOF"), "it was cut off");
    assert!(merged(b"a \xff", TEXT, |_| false).unwrap_err().contains("UTF-8"));
    let long = lines(&"\u{fc}".repeat(1000), TEXT).unwrap_err();
    assert!(long.chars().count() < 2 * SHOWN, "{long}");
}

/// As Prometheus reads them from 3 on.
#[test]
fn names_of_any_letters_are_for_who_reads_them() {
    for reader in [TEXT, OPEN] {
        let reader = Reader { any_names: true, ..reader };
        for line in
            ["{\"a.b\"} 1", "{\"a.b\",c=\"d\"} 1", "{\"c.d\"=\"e\",\"a.b\"} 1", "# TYPE \"a.b\" counter"]
        {
            let page = page(line, reader);
            assert_eq!(lines(&page, reader).unwrap(), page);
        }
        for line in [
            "{b=\"c\"} 1",
            "{\"a\",\"b\"} 1",
            "a{\"b\"} 1",
            "{\"\"} 1",
            "{\"a\\n\"} 1",
            "{\"a\",__name__=\"b\"} 1",
            "{\"a\",b=\"1\",\"b\"=\"2\"} 1",
        ] {
            assert!(lines(&page(line, reader), reader).is_err(), "{line}");
        }
        let ours = page("{b=\"c\",\"ours_total\"} 1", reader);
        assert!(!lines(&ours, reader).unwrap().contains("ours"), "wherever the name stands");
    }
}

#[test]
fn what_is_ours_is_not_the_application_s_to_say() {
    let text = "# TYPE ours_total counter\nours_total{a=\"b\"} 1\ntook_bucket{le=\"1\"} 1\nourss_total 2\n";
    assert_eq!(lines(text, TEXT).unwrap(), "ourss_total 2\n");
    let open = "# TYPE ours counter\nours_total 1\n# TYPE theirs counter\ntheirs_total 1\n# EOF\nmore\n";
    assert_eq!(lines(open, OPEN).unwrap(), "# TYPE theirs counter\ntheirs_total 1\n# EOF\n");
}
