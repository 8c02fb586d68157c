//! What a client refused, in words.

use super::Refusal;

/// What a client says has no end of its own.
pub(crate) fn cut(mut text: String, most: usize) -> String {
    text.truncate(text.floor_char_boundary(most));
    text.shrink_to_fit();
    text
}

impl Refusal {
    pub(super) fn text(&self) -> String {
        let field = if self.field.is_empty() { String::new() } else { format!("{}: ", self.field) };
        format!("{} \"{}\": {field}{}", self.kind, self.name, self.reason)
    }
}
