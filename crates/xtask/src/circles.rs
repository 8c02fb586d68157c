//! Circles among the files of a crate: who uses whom, read from the `use` lines and paths of what ships.
//!
//! A module and its children may know each other: rows and their table, a type and what is done with it. Any other circle
//! makes of its files one file, which nobody can hold in mind; what many need belongs below all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result};

/// Every circle of a crate under `crates`.
pub fn offences(root: &Path) -> Result<Vec<String>> {
    let mut offences = Vec::new();
    let crates = root.join("crates");
    let entries = std::fs::read_dir(&crates).with_context(|| format!("cannot list {}", crates.display()))?;
    for entry in entries {
        let dir = entry?.path();
        let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let mut modules = Modules::default();
        modules.read(&dir.join("src"), &[])?;
        for circle in modules.circles() {
            let files = circle.join(", ");
            offences.push(format!("crates/{name}: a circle of {} files: {files}", circle.len()));
        }
    }
    Ok(offences)
}

/// The files of a crate by module path, `a::b`; the crate's root is the empty path.
#[derive(Default)]
struct Modules {
    tokens: BTreeMap<String, Vec<String>>,
    /// What a module's `use` lines bring into it, by the name that it has there.
    names: BTreeMap<String, BTreeMap<String, Vec<String>>>,
}

impl Modules {
    fn read(&mut self, dir: &Path, path: &[&str]) -> Result<()> {
        let Ok(entries) = std::fs::read_dir(dir) else { return Ok(()) };
        for entry in entries {
            let file = entry?.path();
            let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            let inner: Vec<&str> = path.iter().copied().chain([stem]).collect();
            if file.is_dir() {
                self.read(&file, &inner)?;
            } else if file.extension().is_some_and(|ext| ext == "rs") && stem != "main" {
                let text = std::fs::read_to_string(&file)
                    .with_context(|| format!("cannot read {}", file.display()))?;
                let name = if stem == "lib" && path.is_empty() { String::new() } else { inner.join("::") };
                self.add(&name, &text);
            }
        }
        Ok(())
    }

    fn add(&mut self, module: &str, text: &str) {
        let tokens = without_tests(&tokens(text));
        self.names.insert(module.to_owned(), imports(&tokens, module));
        self.tokens.insert(module.to_owned(), tokens);
    }

    /// Files that what ships declares: those of tests are not among them.
    fn shipped(&self) -> BTreeSet<&str> {
        let mut shipped: BTreeSet<&str> = BTreeSet::from([""]);
        // A parent is before its children, as `a` is before `a::b`.
        for module in self.tokens.keys() {
            let (parent, stem) = module.rsplit_once("::").unwrap_or(("", module));
            // A crate without a library declares its modules in `main.rs`, which is not read.
            let declared = match self.tokens.get(parent) {
                Some(tokens) => tokens.windows(3).any(|t| t[0] == "mod" && t[1] == stem && t[2] == ";"),
                None => parent.is_empty(),
            };
            if declared && shipped.contains(parent) {
                shipped.insert(module);
            }
        }
        shipped
    }

    /// The module in which a path ends, re-exports followed. `None`: of another crate.
    fn resolve(&self, module: &str, path: &[String], depth: usize) -> Option<String> {
        let mut at: Vec<&str> = module.split("::").filter(|part| !part.is_empty()).collect();
        let mut rest = path;
        match path.first()?.as_str() {
            "crate" => (at, rest) = (Vec::new(), &path[1..]),
            "self" => rest = &path[1..],
            "super" => {
                while rest.first().is_some_and(|part| part == "super") {
                    at.pop()?;
                    rest = &rest[1..];
                }
            }
            first => {
                if let Some(full) = self.names.get(module).and_then(|names| names.get(first)) {
                    let full: Vec<String> = full.iter().chain(&path[1..]).cloned().collect();
                    let same = full.first().is_some_and(|f| f == first);
                    return if same || depth == 0 { None } else { self.resolve(module, &full, depth - 1) };
                }
                let child = at.iter().copied().chain([first]).collect::<Vec<_>>().join("::");
                self.tokens.get(&child)?;
            }
        }
        for (i, part) in rest.iter().enumerate() {
            let inner = at.iter().copied().chain([part.as_str()]).collect::<Vec<_>>().join("::");
            if self.tokens.contains_key(&inner) {
                at.push(part);
                continue;
            }
            let here = at.join("::");
            if here != module
                && depth > 0
                && let Some(full) = self.names.get(&here).and_then(|names| names.get(part))
            {
                let full: Vec<String> = full.iter().chain(&rest[i + 1..]).cloned().collect();
                return self.resolve(&here, &full, depth - 1);
            }
            break;
        }
        Some(at.join("::"))
    }

    fn edges(&self) -> BTreeMap<&str, BTreeSet<String>> {
        let shipped = self.shipped();
        let of = |module: &str| {
            let paths = paths(&self.tokens[module]);
            let imported = self.names[module].values();
            let used = paths.iter().chain(imported).filter_map(|path| self.resolve(module, path, 4));
            used.filter(|to| to != module && !to.is_empty() && shipped.contains(to.as_str())).collect()
        };
        shipped.iter().filter(|module| self.tokens.contains_key(**module)).map(|m| (*m, of(m))).collect()
    }

    /// Sets of files that all reach each other, but for a parent with its children.
    fn circles(&self) -> Vec<Vec<String>> {
        let edges = self.edges();
        let mut circles = Vec::new();
        for circle in knots(&edges) {
            let root = circle.iter().min_by_key(|module| module.len()).cloned().unwrap_or_default();
            let family = circle.iter().all(|m| *m == root || m.starts_with(&format!("{root}::")));
            let inside = |from: &str| -> BTreeSet<String> {
                let up = |to: &String| from.starts_with(&format!("{to}::"));
                edges[from].iter().filter(|to| circle.contains(to.as_str()) && !up(to)).cloned().collect()
            };
            let downwards: BTreeMap<&str, BTreeSet<String>> =
                circle.iter().map(|module| (module.as_str(), inside(module))).collect();
            if !family || !knots(&downwards).is_empty() {
                circles.push(circle.into_iter().collect());
            }
        }
        circles
    }
}

/// The strongly connected components of more than one.
fn knots(edges: &BTreeMap<&str, BTreeSet<String>>) -> Vec<BTreeSet<String>> {
    let reach = |from: &str| {
        let mut seen = BTreeSet::new();
        let mut left = vec![from];
        while let Some(next) = left.pop() {
            for to in edges.get(next).into_iter().flatten() {
                if seen.insert(to.clone()) {
                    left.push(to);
                }
            }
        }
        seen
    };
    let reached: BTreeMap<&str, BTreeSet<String>> = edges.keys().map(|from| (*from, reach(from))).collect();
    let mut found: BTreeSet<BTreeSet<String>> = BTreeSet::new();
    for (from, to) in &reached {
        let back = |other: &&String| reached.get(other.as_str()).is_some_and(|r| r.contains(*from));
        let mut knot: BTreeSet<String> = to.iter().filter(back).cloned().collect();
        knot.insert((*from).to_owned());
        if knot.len() > 1 {
            found.insert(knot);
        }
    }
    found.into_iter().collect()
}

/// Words, `::` and single signs; comments, texts and lifetimes are left out.
fn tokens(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = Vec::new();
    let mut i = 0;
    while i < chars.len() {
        match at(i) {
            '/' if at(i + 1) == '/' => {
                while i < chars.len() && at(i) != '\n' {
                    i += 1;
                }
            }
            'r' if at(i + 1) == '#' && at(i + 2) == '"' => {
                i += 3;
                while i < chars.len() && !(at(i) == '"' && at(i + 1) == '#') {
                    i += 1;
                }
                i += 2;
            }
            '"' => {
                i += 1;
                while i < chars.len() && at(i) != '"' {
                    i += if at(i) == '\\' { 2 } else { 1 };
                }
                i += 1;
            }
            '\'' if at(i + 1) == '\\' => {
                i += 3;
                while i < chars.len() && at(i) != '\'' {
                    i += 1;
                }
                i += 1;
            }
            '\'' if at(i + 2) == '\'' => i += 3,
            '\'' => i += 1,
            ':' if at(i + 1) == ':' => {
                found.push("::".to_owned());
                i += 2;
            }
            c if is_word(c) => {
                let from = i;
                while is_word(at(i)) {
                    i += 1;
                }
                found.push(chars[from..i].iter().collect());
            }
            c if c.is_whitespace() => i += 1,
            c => {
                found.push(c.to_string());
                i += 1;
            }
        }
    }
    found
}

/// Leaves out what only tests compile: items behind a `#[cfg(…test…)]`, and the visibility of others.
fn without_tests(tokens: &[String]) -> Vec<String> {
    let is = |i: usize, what: &str| tokens.get(i).is_some_and(|token| token == what);
    let past = |mut i: usize, open: &str, close: &str| {
        let mut depth = 0;
        while i < tokens.len() {
            depth += usize::from(is(i, open));
            depth -= usize::from(is(i, close) && depth > 0);
            i += 1;
            if depth == 0 {
                break;
            }
        }
        i
    };
    let mut kept = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        if is(i, "#") && is(i + 1, "[") && is(i + 2, "cfg") {
            let end = past(i + 1, "[", "]");
            if !tokens[i..end].iter().any(|token| token == "test") {
                i = end;
                continue;
            }
            i = end;
            while i < tokens.len() && !is(i, ";") && !is(i, "{") {
                i += 1;
            }
            // `use a::{b};` ends with its semicolon, a body with its brace.
            i = if is(i, "{") { past(i, "{", "}") } else { i };
            i += usize::from(is(i, ";"));
        } else if is(i, "pub") && is(i + 1, "(") {
            kept.push("pub".to_owned());
            i = past(i + 1, "(", ")");
        } else {
            kept.push(tokens[i].clone());
            i += 1;
        }
    }
    kept
}

/// What the `use` lines bring in, by name.
fn imports(tokens: &[String], module: &str) -> BTreeMap<String, Vec<String>> {
    let mut found = BTreeMap::new();
    let mut i = 0;
    while i < tokens.len() {
        if tokens[i] == "use" {
            let end = (i..tokens.len()).find(|j| tokens[*j] == ";").unwrap_or(tokens.len());
            tree(&tokens[i + 1..end], &mut Vec::new(), &mut found);
            i = end;
        }
        i += 1;
    }
    // A glob of the parent, as modules of one family use it, is the parent.
    found.entry("*".to_owned()).or_insert_with(|| module.split("::").map(str::to_owned).collect());
    found
}

/// One branch of a `use`: `a::b::{c, d as e}`. Gives back what follows it.
fn tree<'t>(
    tokens: &'t [String],
    path: &mut Vec<String>,
    found: &mut BTreeMap<String, Vec<String>>,
) -> &'t [String] {
    let depth = path.len();
    let mut rest = tokens;
    while let Some(token) = rest.first() {
        rest = &rest[1..];
        match token.as_str() {
            "::" => {}
            "{" => {
                while !rest.is_empty() && rest[0] != "}" {
                    rest = tree(rest, path, found);
                    rest = if rest.first().is_some_and(|t| t == ",") { &rest[1..] } else { rest };
                }
                path.truncate(depth);
                return rest.get(1..).unwrap_or_default();
            }
            "," | "}" => {
                rest = &tokens[tokens.len() - rest.len() - 1..];
                break;
            }
            "as" => {
                let name = rest.first().cloned().unwrap_or_default();
                found.insert(name, path.clone());
                path.truncate(depth);
                return rest.get(1..).unwrap_or_default();
            }
            part => path.push(part.to_owned()),
        }
    }
    if path.last().is_some_and(|last| last == "self") {
        path.pop();
    }
    if let Some(name) = path.last().cloned() {
        found.insert(name, path.clone());
    }
    path.truncate(depth);
    rest
}

/// Paths of at least two parts, outside of `use` lines.
fn paths(tokens: &[String]) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        if tokens[i] == "use" {
            i = (i..tokens.len()).find(|j| tokens[*j] == ";").unwrap_or(tokens.len());
            continue;
        }
        let begins = tokens[i].chars().all(|c| c.is_alphanumeric() || c == '_');
        let mut path = vec![tokens[i].clone()];
        let mut end = i + 1;
        while begins && end + 1 < tokens.len() && tokens[end] == "::" && tokens[end + 1] != "{" {
            path.push(tokens[end + 1].clone());
            end += 2;
        }
        if path.len() > 1 {
            found.push(path);
        }
        i = end;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circles(files: &[(&str, &str)]) -> Vec<String> {
        let mut modules = Modules::default();
        files.iter().for_each(|(name, text)| modules.add(name, text));
        modules.circles().iter().map(|circle| circle.join(" ")).collect()
    }

    #[test]
    fn no_circle_comes_back() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        assert_eq!(offences(&root).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_parent_and_its_children_may_know_each_other_and_siblings_may_not() {
        let root = ("", "mod a; mod b;");
        let a = ("a", "mod x; mod y; use x::X; fn f() { y::g() } struct T;");
        let x = ("a::x", "use super::T; pub struct X;");
        assert_eq!(circles(&[root, a, x, ("a::y", "use super::T; use super::x::X;")]), [""; 0]);
        let knows_y = ("a::x", "use super::{T, y::{self, Y as Z}}; pub struct X;");
        let found = circles(&[root, a, knows_y, ("a::y", "use super::x::X;"), ("b", "")]);
        assert_eq!(found, ["a a::x a::y"]);
    }

    #[test]
    fn re_exports_and_imported_modules_are_followed_and_tests_are_not() {
        let root = ("", "mod a; mod b;");
        let a = ("a", "mod x; pub use x::X; use crate::b; fn f() { b::inner::g() }");
        let b = ("b", "pub mod inner;");
        let x = ("a::x", "pub struct X;");
        let inner = |text: &'static str| ("b::inner", text);
        assert_eq!(circles(&[root, a, b, x, inner("use crate::a::X;")]), [""; 0], "X is not a's own");
        assert_eq!(circles(&[root, a, b, x, inner("fn g() { crate::a::f() } // crate::a")]), ["a b::inner"]);
        let tested =
            inner("#[cfg(test)] mod tests { use crate::a::f; } fn g(_: &'static str) { \"crate::a\" }");
        assert_eq!(circles(&[root, a, b, x, tested]), [""; 0]);
    }
}
