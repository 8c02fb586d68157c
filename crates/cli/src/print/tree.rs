//! A tree for people: lines below lines.

/// A line and what belongs to it.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    line: String,
    below: Vec<Tree>,
}

impl Tree {
    pub(crate) fn new(line: impl Into<String>) -> Self {
        Self { line: line.into(), below: Vec::new() }
    }

    /// Puts a line below this one.
    pub(crate) fn add(&mut self, line: impl Into<String>) -> &mut Self {
        self.push(Self::new(line));
        self
    }

    /// Puts lines below this one, under a line of their own; nothing where there are none.
    pub(crate) fn group(&mut self, name: &str, lines: impl IntoIterator<Item = String>) -> &mut Self {
        let below: Vec<_> = lines.into_iter().map(Self::new).collect();
        if !below.is_empty() {
            self.push(Self { line: name.to_owned(), below });
        }
        self
    }

    pub(crate) fn push(&mut self, tree: Self) {
        self.below.push(tree);
    }

    /// With its lines, the first at the left margin.
    pub(crate) fn text(&self) -> String {
        let mut out = format!("{}\n", self.line);
        self.write(&mut out, "");
        out
    }

    fn write(&self, out: &mut String, margin: &str) {
        for (at, tree) in self.below.iter().enumerate() {
            let last = at + 1 == self.below.len();
            let (branch, trunk) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            *out += &format!("{margin}{branch}{}\n", tree.line);
            tree.write(out, &format!("{margin}{trunk}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_hang_below_what_they_belong_to() {
        let mut tree = Tree::new("a");
        let mut b = Tree::new("b");
        b.add("c").add("d");
        tree.push(b);
        tree.group("none", []).add("e");
        assert_eq!(tree.text(), "a\n├─ b\n│  ├─ c\n│  └─ d\n└─ e\n");
    }
}
