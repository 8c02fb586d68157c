//! A source file, and what is said at a place of it: a constant, a sum of several, or what stands in the hole of a snippet.

use std::time::Duration;

use super::number::Value;

/// What shall be read of a snippet.
const HOLE: &str = "{}";
/// In a snippet: anything.
const ANYTHING: &str = "…";
/// What a hole holds is no longer than this, nor is what does not matter.
const LONGEST: usize = 80;
/// Constants of constants.
const DEEPEST: usize = 4;

/// Code without its comments and tests, each break of a line a space.
pub struct Source(String);

impl Source {
    pub fn new(text: &str) -> Self {
        let shipped = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let lines = shipped.lines().filter(|line| !line.trim_start().starts_with("//"));
        let code = lines.map(|line| line.split_once(" // ").map_or(line, |(code, _)| code));
        let words: Vec<&str> = code.flat_map(str::split_ascii_whitespace).collect();
        Self(words.join(" "))
    }

    /// The value at a place: a snippet with a hole, or an expression of constants of the file.
    pub fn value(&self, place: &str) -> Result<Value, String> {
        if place.contains(HOLE) {
            self.evaluate(&self.hole(place)?, DEEPEST)
        } else {
            self.evaluate(place, DEEPEST)
        }
    }

    fn evaluate(&self, expression: &str, depth: usize) -> Result<Value, String> {
        let mut terms = Terms { source: self, tokens: tokens(expression), at: 0, depth };
        let value = terms.shifted()?;
        match terms.tokens.get(terms.at) {
            None => Ok(value),
            Some(token) => Err(format!("`{expression}`: `{token}` is not understood")),
        }
    }

    fn constant(&self, name: &str, depth: usize) -> Result<Value, String> {
        let depth = depth.checked_sub(1).ok_or_else(|| format!("`{name}` leads too far"))?;
        self.evaluate(&self.hole(&format!("const {name}: {ANYTHING} = {HOLE};"))?, depth)
    }

    /// What stands in the hole of the one place that looks like this.
    fn hole(&self, snippet: &str) -> Result<String, String> {
        let (before, after) = snippet.split_once(HOLE).unwrap_or((snippet, ""));
        let (mut before, mut after) = (before.split(ANYTHING), after.split(ANYTHING));
        let (first, end) = (before.next().unwrap_or_default(), after.next().unwrap_or_default());
        let skip = |rest, part| Some(until(rest, part)?.1);
        let held = |(at, _): (usize, _)| {
            let rest = before.clone().try_fold(&self.0[at + first.len()..], skip)?;
            let (held, rest) = until(rest, end)?;
            after.clone().try_fold(rest, skip).map(|_| held)
        };
        let found: Vec<&str> = self.0.match_indices(first).filter_map(held).collect();
        match found.as_slice() {
            [one] => Ok((*one).to_owned()),
            [] => Err(format!("nothing looks like `{snippet}`")),
            many => Err(format!("{} places look like `{snippet}`", many.len())),
        }
    }
}

/// What is before the next such part, of this statement, and what is behind it.
fn until<'s>(text: &'s str, part: &str) -> Option<(&'s str, &'s str)> {
    let (before, after) = text.split_once(part)?;
    (before.len() <= LONGEST && !before.contains(';')).then_some((before, after))
}

/// Words with their paths, signs, and `<<`.
fn tokens(expression: &str) -> Vec<String> {
    let mut tokens: Vec<String> = Vec::new();
    let mut chars = expression.chars().peekable();
    while let Some(c) = chars.next() {
        let is_word = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '.');
        let mut token = String::from(c);
        if is_word(&c) {
            while let Some(c) = chars.next_if(is_word) {
                token.push(c);
            }
        } else if c == '<' {
            token.extend(chars.next_if_eq(&'<'));
        }
        if !c.is_whitespace() {
            tokens.push(token);
        }
    }
    tokens
}

/// `a << b`, `a + b`, `a * b`, in brackets, of numbers and constants; times in units of `Duration`.
struct Terms<'s> {
    source: &'s Source,
    tokens: Vec<String>,
    at: usize,
    depth: usize,
}

impl Terms<'_> {
    fn shifted(&mut self) -> Result<Value, String> {
        let mut value = self.sum()?;
        while self.takes("<<") {
            let by = count(self.sum()?)?;
            value = u32::try_from(by)
                .ok()
                .and_then(|by| count(value).ok()?.checked_shl(by))
                .map(Value::Count)
                .ok_or("a shift too far")?;
        }
        Ok(value)
    }

    fn sum(&mut self) -> Result<Value, String> {
        let mut value = self.product()?;
        loop {
            let made = if self.takes("+") {
                count(value)?.checked_add(count(self.product()?)?)
            } else if self.takes("-") {
                count(value)?.checked_sub(count(self.product()?)?)
            } else {
                return Ok(value);
            };
            value = Value::Count(made.ok_or("a sum that no number holds")?);
        }
    }

    fn product(&mut self) -> Result<Value, String> {
        let mut value = self.single()?;
        loop {
            let made = if self.takes("*") {
                count(value)?.checked_mul(count(self.single()?)?)
            } else if self.takes("/") {
                count(value)?.checked_div(count(self.single()?)?)
            } else {
                return Ok(value);
            };
            value = Value::Count(made.ok_or("a product that no number holds")?);
        }
    }

    fn single(&mut self) -> Result<Value, String> {
        if self.takes("(") {
            return self.closed();
        }
        let token = self.tokens.get(self.at).cloned().ok_or("an expression without an end")?;
        self.at += 1;
        let millis = match token.rsplit_once("Duration::from_").map(|(_, unit)| unit) {
            Some("millis") => 1,
            Some("secs") => 1000,
            Some("mins") => 60_000,
            Some("hours") => 3_600_000,
            _ if token.starts_with(|c: char| c.is_ascii_digit()) => {
                let number = token.replace('_', "").parse().map_err(|_| format!("`{token}` is no number"))?;
                return Ok(Value::Count(number));
            }
            _ if token.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_') => {
                return self.source.constant(&token, self.depth);
            }
            _ => return Err(format!("`{token}` is not understood")),
        };
        match self.takes("(") {
            true => Ok(Value::Time(Duration::from_millis(count(self.closed()?)?.saturating_mul(millis)))),
            false => Err(format!("`{token}` of nothing")),
        }
    }

    fn closed(&mut self) -> Result<Value, String> {
        let value = self.shifted()?;
        if self.takes(")") { Ok(value) } else { Err("a bracket is open".into()) }
    }

    fn takes(&mut self, sign: &str) -> bool {
        let found = self.tokens.get(self.at).is_some_and(|token| token == sign);
        self.at += usize::from(found);
        found
    }
}

fn count(value: Value) -> Result<u64, String> {
    match value {
        Value::Count(count) => Ok(count),
        Value::Time(time) => Err(format!("{time:?} is no count")),
    }
}
