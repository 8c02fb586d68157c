//! The tour: each step sets a scene, measures, pushes a rule, measures again, judges, and undoes itself.

use std::collections::BTreeMap;
use std::time::Duration;

use outrigger_control::api::types::ApplyBody;

use super::load::Load;
use super::mesh::Mesh;
use super::steps::{STEPS, Seen, Step, Switch};

/// Requests of one measurement: enough that judged shares are far from their bounds.
const WINDOW: Duration = Duration::from_secs(6);

/// The steps of these names, in the tour's order; all without names.
///
/// # Errors
/// When there is no step of a name.
pub(super) fn choose(names: &[String]) -> anyhow::Result<Vec<&'static Step>> {
    if let Some(unknown) =
        names.iter().find(|name| *name != "none" && STEPS.iter().all(|step| step.name != **name))
    {
        let known: Vec<&str> = STEPS.iter().map(|step| step.name).collect();
        anyhow::bail!("--steps: no step `{unknown}`; there are {}, or `none`", known.join(", "));
    }
    Ok(STEPS.iter().filter(|step| names.is_empty() || names.iter().any(|name| name == step.name)).collect())
}

/// Runs steps; returns what was missed.
pub(super) async fn run(mesh: &Mesh, load: &Load, steps: &[&Step]) -> anyhow::Result<Vec<String>> {
    let mut missed = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        println!("\n▶ {}/{} {}", number + 1, steps.len(), step.title);
        for line in step.yaml.trim().lines() {
            println!("    {line}");
        }
        match take(mesh, load, step).await {
            Ok(lines) => lines.iter().for_each(|line| println!("  ✔ {line}")),
            Err(error) => {
                println!("  ✘ {error:#}");
                missed.push(format!("{}: {error:#}", step.title));
            }
        }
    }
    Ok(missed)
}

/// A step, after which the mesh is as it was, whatever came of it.
async fn take(mesh: &Mesh, load: &Load, step: &Step) -> anyhow::Result<Vec<String>> {
    let mut applied = None;
    let judged = play(mesh, load, step, &mut applied).await;
    let mut undone = match &applied {
        Some(applied) => mesh.undo(applied).await,
        None => Ok(()),
    };
    // Of what fails nothing keeps the rest from being undone.
    for (service, version, _) in step.scene.iter().chain(step.trouble) {
        undone = undone.and(mesh.switch(service, *version, "fail=0&delay=0").await);
    }
    let lines = judged?;
    undone.map(|()| lines)
}

/// The step itself; what it applied is to be undone.
async fn play(
    mesh: &Mesh,
    load: &Load,
    step: &Step,
    applied: &mut Option<ApplyBody>,
) -> anyhow::Result<Vec<String>> {
    throw(mesh, step.scene).await?;
    let mut seen =
        Seen { before: load.window(WINDOW, "measuring without the rule").await, ..Seen::default() };
    let applied = applied.insert(mesh.apply(step.yaml).await?);
    measure(mesh, load, step, &mut seen).await?;
    let in_force = applied.in_force.as_ref().map(|f| (f.proxies, f.of)).unwrap_or_default();
    let millis = applied.in_force_millis.unwrap_or_default();
    let effect = judge(step, &seen)?;
    Ok(vec![format!("in force on {}/{} proxies after {millis:.0} ms", in_force.0, in_force.1), effect])
}

/// What is seen with the rule in force.
async fn measure(mesh: &Mesh, load: &Load, step: &Step, seen: &mut Seen) -> anyhow::Result<()> {
    settle(load, step).await;
    let asked = |service| async move {
        match service {
            Some(service) => mesh.asked(service).await,
            None => Ok(BTreeMap::new()),
        }
    };
    let began = asked(step.counted).await?;
    seen.after = load.window(WINDOW, "measuring with the rule").await;
    seen.asked = asked(step.counted).await?;
    for (version, before) in began {
        seen.asked.entry(version).and_modify(|all| *all -= before);
    }
    if !step.trouble.is_empty() {
        throw(mesh, step.trouble).await?;
        settle(load, step).await;
        seen.trouble = load.window(WINDOW, "measuring with the trouble").await;
    }
    Ok(())
}

async fn settle(load: &Load, step: &Step) {
    if !step.settle.is_zero() {
        drop(load.window(step.settle, "waiting for it to settle").await);
    }
}

async fn throw(mesh: &Mesh, switches: &[Switch]) -> anyhow::Result<()> {
    for (service, version, setting) in switches {
        mesh.switch(service, *version, setting).await?;
    }
    Ok(())
}

fn judge(step: &Step, seen: &Seen) -> anyhow::Result<String> {
    anyhow::ensure!(
        seen.before.len() > 200 && seen.after.len() > 200,
        "too few requests were answered: {} before, {} after",
        seen.before.len(),
        seen.after.len()
    );
    (step.judge)(seen)
}
