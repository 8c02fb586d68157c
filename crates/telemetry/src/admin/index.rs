//! The index page and the help text, both derived from the table.

use std::fmt::Write;

use super::endpoint::Row;

/// `/help`: one line per endpoint.
pub(super) fn text(title: &str, rows: &[Row]) -> String {
    let mut out = format!("{title}: admin endpoints\n\n");
    let width = rows.iter().map(|row| row.path.len()).max().unwrap_or(0);
    for row in rows {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "  {:width$}  {:9}  {}", row.path, row.methods.join(","), row.help);
    }
    let _ = writeln!(out, "  {:width$}  {:9}  this text", "/help", "GET");
    out
}

/// `/`: the same with links; what changes something is a button.
pub(super) fn html(title: &str, rows: &[Row]) -> String {
    let title = escape(title);
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title><style>\
         body{{font:15px/1.5 system-ui,sans-serif;margin:2rem;max-width:60rem}}td,th{{padding:.2rem 1rem .2rem 0;\
         text-align:left;vertical-align:top}}code{{font-family:ui-monospace,monospace}}</style></head>\n\
         <body><h1>{title}</h1>\n<table><tr><th>Endpoint</th><th>Methods</th><th></th></tr>\n"
    );
    for row in rows {
        let path = escape(&row.path);
        let cell = if row.path.ends_with('*') {
            format!("<code>{path}</code>")
        } else if row.methods.contains(&"GET") {
            format!("<a href=\"{path}\"><code>{path}</code></a>")
        } else {
            format!("<form method=\"post\" action=\"{path}\"><button><code>{path}</code></button></form>")
        };
        let (methods, help) = (row.methods.join(", "), escape(&row.help));
        // Writing to a String cannot fail.
        let _ = writeln!(out, "<tr><td>{cell}</td><td>{methods}</td><td>{help}</td></tr>");
    }
    out.push_str(
        "</table>\n<p>The same as text: <a href=\"/help\"><code>/help</code></a></p></body></html>\n",
    );
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
