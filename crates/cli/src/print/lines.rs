//! The difference of two texts by lines, for people.

/// Lines around a change that are shown, too.
const AROUND: usize = 3;
/// Of what is compared line by line; longer texts are shown as gone and come.
const MOST: usize = 4000;

/// Lines that go with `-`, lines that come with `+`, those around them with a blank; `@@` where some are left out.
pub(crate) fn diff(before: &str, after: &str) -> String {
    let (before, after): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let all = compared(&before, &after);
    let changes: Vec<usize> =
        all.iter().enumerate().filter(|(_, (sign, _))| *sign != ' ').map(|(at, _)| at).collect();
    let mut out = String::new();
    let mut last = None;
    for (at, (sign, line)) in all.iter().enumerate() {
        // The changes before and behind are the nearest ones.
        let next = changes.partition_point(|change| *change < at);
        let near = [next.checked_sub(1), Some(next)].into_iter().flatten().filter_map(|n| changes.get(n));
        if !near.into_iter().any(|change| change.abs_diff(at) <= AROUND) {
            continue;
        }
        if last.is_none_or(|last: usize| last + 1 != at) && at > 0 {
            out.push_str("@@\n");
        }
        out.push_str(&format!("{sign}{line}\n"));
        last = Some(at);
    }
    out
}

/// By the longest common subsequence of what is between a common beginning and a common end.
fn compared<'t>(before: &[&'t str], after: &[&'t str]) -> Vec<(char, &'t str)> {
    let first = before.iter().zip(after).take_while(|(a, b)| a == b).count();
    let rest = before[first..].iter().rev().zip(after[first..].iter().rev());
    let last = rest.take_while(|(a, b)| a == b).count();
    let (a, b) = (&before[first..before.len() - last], &after[first..after.len() - last]);
    let same = |line: &&'t str| (' ', *line);
    let mut all: Vec<(char, &str)> = before[..first].iter().map(same).collect();
    if a.len().max(b.len()) > MOST {
        all.extend(a.iter().map(|line| ('-', *line)).chain(b.iter().map(|line| ('+', *line))));
    } else {
        // The length of the longest one of what is left, by where either is.
        let mut longest = vec![vec![0_u16; b.len() + 1]; a.len() + 1];
        for i in (0..a.len()).rev() {
            for j in (0..b.len()).rev() {
                longest[i][j] = if a[i] == b[j] {
                    longest[i + 1][j + 1] + 1
                } else {
                    longest[i + 1][j].max(longest[i][j + 1])
                };
            }
        }
        let (mut i, mut j) = (0, 0);
        while i < a.len() || j < b.len() {
            if i < a.len() && j < b.len() && a[i] == b[j] {
                all.push((' ', a[i]));
                (i, j) = (i + 1, j + 1);
            } else if i < a.len() && (j == b.len() || longest[i + 1][j] >= longest[i][j + 1]) {
                all.push(('-', a[i]));
                i += 1;
            } else {
                all.push(('+', b[j]));
                j += 1;
            }
        }
    }
    all.extend(before[before.len() - last..].iter().map(same));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_and_comes_is_shown_with_what_is_around() {
        let text = |lines: &[&str]| lines.join("\n");
        let before = text(&["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12"]);
        let after = text(&["1", "2", "3", "4", "new", "6", "7", "8", "9", "10", "11", "12", "13"]);
        assert_eq!(diff(&before, &after), "@@\n 2\n 3\n 4\n-5\n+new\n 6\n 7\n 8\n@@\n 10\n 11\n 12\n+13\n");
        assert_eq!(diff(&before, &before), "");
    }
}
