//! What one replica of the control plane may not keep from the other, nor from an operator: a release that does not start is taken back, and where
//! the node of one is lost the other is made anew. The real StatefulSet controller does it, and does it in turn unless it is told otherwise.

use super::installed::{BROKEN, Installed, REPLICAS, SYSTEM, outrigger};
use super::*;

/// A finalizer keeps a Pod as a node does that answers no longer: it is to end, and nobody can say that it has.
const LOST: &str = r#"{"metadata": {"finalizers": ["outrigger.io/lost-node"]}}"#;
const FOUND: &str = r#"{"metadata": {"finalizers": null}}"#;

impl Installed {
    fn of_pod(&self, replica: &str, path: &str) -> Result<String, String> {
        let path = format!("jsonpath={path}");
        self.place.cluster.kubectl(&["-n", SYSTEM, "get", "pod", replica, "--ignore-not-found", "-o", &path])
    }

    fn install(&self, image: &str) {
        let release = outrigger(&["install", "--crds", "none", "--set", &format!("image={image}")]);
        self.place.cluster.kubectl_with(&release, &["apply", "--server-side"]).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_does_not_start_is_taken_back_and_a_lost_node_keeps_nobody_back() {
    let Some(installed) = Installed::start_beside(&[]).await else { return };
    installed.serves().await;

    // The new release ends wherever it starts, so one replica has it, and the other goes on as it was.
    installed.install(BROKEN);
    let [first, second] = REPLICAS;
    eventually("the second has the new release, and does not get beyond its start", || async {
        let image = installed.of_pod(second, "{.spec.containers[0].image}")?;
        let restarts = installed.of_pod(second, "{.status.containerStatuses[0].restartCount}")?;
        match image == BROKEN && restarts.parse::<u32>().is_ok_and(|times| times > 0) {
            true => Ok(()),
            false => Err(format!("{image} {restarts}")),
        }
    })
    .await;
    let shipped = "outrigger:0.1.0";
    assert_eq!(installed.of_pod(first, "{.spec.containers[0].image}").unwrap(), shipped);
    // What everybody does then, and nothing else: nobody has to delete a Pod.
    installed.install(shipped);
    eventually("the second has the old release", || async {
        match installed.of_pod(second, "{.spec.containers[0].image}")? {
            image if image == shipped => Ok(()),
            image => Err(image),
        }
    })
    .await;
    installed.serves().await;

    // The first is to end for ever, and the second is made anew meanwhile.
    let patch = |patch: &str| {
        let words = ["-n", SYSTEM, "patch", "pod", first, "--type=merge", "-p", patch];
        installed.place.cluster.kubectl(&words).unwrap()
    };
    patch(LOST);
    let delete = |replica: &str| {
        installed.place.cluster.kubectl(&["-n", SYSTEM, "delete", "pod", replica, "--wait=false"]).unwrap()
    };
    delete(first);
    eventually("the first is to end", || async {
        match installed.of_pod(first, "{.metadata.deletionTimestamp}")? {
            at if at.is_empty() => Err("it is not".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    let before = installed.of_pod(second, "{.metadata.uid}").unwrap();
    delete(second);
    eventually("another second serves", || async {
        let uid = installed.of_pod(second, "{.metadata.uid}")?;
        let ready = installed.of_pod(second, r#"{.status.conditions[?(@.type=="Ready")].status}"#)?;
        let still = installed.of_pod(first, "{.metadata.deletionTimestamp}")?;
        match uid != before && ready == "True" && !still.is_empty() {
            true => Ok(()),
            false => Err(format!("{uid} {before} {ready:?} {still:?}")),
        }
    })
    .await;
    patch(FOUND);
    installed.serves().await;
}
