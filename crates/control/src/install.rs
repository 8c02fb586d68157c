//! What is installed into a cluster, as YAML.

use crate::inject::{InjectError, yaml};

/// The definitions of our own kinds of rules.
///
/// # Errors
/// They cannot be written.
pub fn definitions() -> Result<String, InjectError> {
    let mut text = "# Our own kinds of rules, as `outrigger manifest --crds` writes them.\n".to_owned();
    for (i, definition) in outrigger_rules::definitions().iter().enumerate() {
        text.push_str(if i == 0 { "" } else { "---\n" });
        text.push_str(&yaml(definition)?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_definitions_is_what_the_code_says() {
        let file = include_str!("../../../deploy/kubernetes/crds.yaml");
        let wanted = definitions().unwrap();
        assert_eq!(file, wanted, "run `outrigger manifest --crds > deploy/kubernetes/crds.yaml`");
    }
}
