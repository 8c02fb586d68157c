//! Whether a Pod's connections are to be brought to its sidecar by us, and with which options. Pure.
//!
//! The injector has said it all: where a CNI plugin is to make the rules, it has put in a container that checks for them, and that has their
//! options. So the two cannot differ, whatever annotations and settings there were.

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::inject::{INIT, SIDECAR, VALIDATION};

/// What is to become of a Pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Rules, with these options of `intercept apply`.
    Intercept(Vec<String>),
    /// Nothing, because.
    LeftAlone(&'static str),
}

/// Judges it.
///
/// # Errors
/// It is to have rules, and they cannot be made so.
pub(super) fn verdict(pod: &Pod) -> Result<Verdict, String> {
    let Some(spec) = &pod.spec else { return Ok(Verdict::LeftAlone("it has no containers")) };
    if spec.host_network == Some(true) {
        return Ok(Verdict::LeftAlone("it is in the network of its node"));
    }
    let init = spec.init_containers.as_deref().unwrap_or_default();
    if !init.iter().chain(&spec.containers).any(|container| container.name == SIDECAR) {
        return Ok(Verdict::LeftAlone("it has no sidecar of this mesh"));
    }
    if let Some(container) = init.iter().find(|container| container.name == VALIDATION) {
        return options(container).map(Verdict::Intercept);
    }
    Ok(Verdict::LeftAlone(match init.iter().any(|container| container.name == INIT) {
        true => "it makes its rules itself",
        false => "it was injected for no CNI plugin",
    }))
}

/// With these there are words and no rules.
const NO_RULES: [&str; 3] = ["--dry-run", "--help", "--version"];
/// Bytes of all words: whoever may make a Pod writes them. What the program says of them fits a pipe that is read when it has ended.
const MOST: usize = 16 << 10;
/// Bytes that an error shows of them.
const SHOWN: usize = 200;

fn options(container: &Container) -> Result<Vec<String>, String> {
    let words: Vec<&str> = container.args.iter().flatten().map(String::as_str).collect();
    let length: usize = words.iter().map(|word| word.len() + 1).sum();
    match words.as_slice() {
        ["intercept", "check", options @ ..]
            if length <= MOST && options.iter().all(|word| is_meant(word)) =>
        {
            Ok(options.iter().map(|word| (*word).to_owned()).collect())
        }
        _ => {
            let said = words.join(" ");
            let shown = &said[..said.floor_char_boundary(SHOWN)];
            Err(format!(
                "container {VALIDATION} is to say `intercept check` and the options of the rules, not {shown:?} ({length} bytes)"
            ))
        }
    }
}

/// An option of the rules, or its value: names, numbers, addresses.
fn is_meant(word: &str) -> bool {
    let plain =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".,:/_=*-".contains(&byte));
    match word.strip_prefix("--") {
        Some(option) => !NO_RULES.contains(&word) && plain(option),
        None => !word.starts_with('-') && plain(word),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(spec: Value) -> Result<Verdict, String> {
        verdict(&serde_json::from_value(json!({"spec": spec})).unwrap())
    }

    fn init(args: &[&str]) -> Value {
        json!({"name": VALIDATION, "args": args})
    }

    #[test]
    fn rules_are_for_whom_the_injector_has_put_in_a_check_and_have_its_options() {
        let (sidecar, app) = (json!({"name": SIDECAR}), json!({"name": "app"}));
        let args = ["intercept", "check", "--dns", "--exclude-outbound-ports=3306"];
        let native = of(json!({"initContainers": [init(&args), sidecar], "containers": [app]}));
        assert_eq!(native, Ok(Verdict::Intercept(args[2..].iter().map(|word| (*word).to_owned()).collect())));
        let plain = of(json!({"initContainers": [init(&args[..2])], "containers": [sidecar, app]}));
        assert_eq!(plain, Ok(Verdict::Intercept(vec![])));
        for (spec, why) in [
            (json!({"containers": [app]}), "no sidecar"),
            (json!({"initContainers": [init(&args)], "containers": [app]}), "no sidecar"),
            (json!({"initContainers": [{"name": INIT}, sidecar], "containers": [app]}), "itself"),
            (json!({"initContainers": [sidecar], "containers": [app]}), "no CNI plugin"),
            (
                json!({"hostNetwork": true, "initContainers": [init(&args), sidecar], "containers": [app]}),
                "of its node",
            ),
        ] {
            assert!(matches!(of(spec.clone()), Ok(Verdict::LeftAlone(said)) if said.contains(why)), "{spec}");
        }
    }

    #[test]
    fn a_check_of_which_no_rules_can_be_made_is_an_error() {
        let (long, strange) = (format!("--uid={}", "1".repeat(20_000)), "--uid=1;x");
        let said = |word| ["intercept", "check", word];
        let of_words = [said("--dry-run"), said("-hV"), said("-h"), said(strange), said(&long)];
        let others = [&[][..], &["intercept"], &["wait"]];
        for args in others.into_iter().chain(of_words.iter().map(|words| words.as_slice())) {
            let error =
                of(json!({"initContainers": [init(args), {"name": SIDECAR}], "containers": []})).unwrap_err();
            assert!(error.contains("intercept check") && error.len() < 500, "{error}");
        }
    }
}
