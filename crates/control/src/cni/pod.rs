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
const NO_RULES: [&str; 5] = ["--dry-run", "--help", "-h", "--version", "-V"];

fn options(container: &Container) -> Result<Vec<String>, String> {
    let words: Vec<&str> = container.args.iter().flatten().map(String::as_str).collect();
    match words.as_slice() {
        ["intercept", "check", options @ ..] if !options.iter().any(|word| NO_RULES.contains(word)) => {
            Ok(options.iter().map(|word| (*word).to_owned()).collect())
        }
        _ => Err(format!(
            "container {VALIDATION} is to say `intercept check` and the options of the rules, not {words:?}"
        )),
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
        for args in [&[][..], &["intercept"], &["wait"], &["intercept", "check", "--dry-run"]] {
            let error =
                of(json!({"initContainers": [init(args), {"name": SIDECAR}], "containers": []})).unwrap_err();
            assert!(error.contains("intercept check"), "{error}");
        }
    }
}
