#![forbid(unsafe_code)]
//! Registries, the world, per-node compilation, store, CA service, management API.
//!
//! [`run`] is the whole program; [`ControlPlane::start`] embeds it. Changes go through the [`keeper`], which alone owns what
//! is mutable; everybody else reads immutable worlds.

pub mod api;
pub mod client;
pub mod cni;
pub mod compile;
pub mod explain;
pub mod inject;
pub mod install;
pub mod instance;
pub mod keeper;
mod keys;
mod outside;
pub mod provider;
mod recall;
pub mod registry;
pub mod rejections;
pub mod service_accounts;
pub mod settings;
pub mod sorted;
pub mod status;
pub mod store;
pub mod tokens;
pub mod traces;
pub mod virtual_address;
pub mod world;

mod app;
mod bell;
mod canonical;
mod debug;
pub mod described;
mod enforced;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod metrics;
mod others;
mod pace;
mod presence;
mod proofs;
pub mod replicas;
mod reports;
mod webhook;
mod xds_source;

use std::os::fd::AsFd;

use anyhow::Context;
use outrigger_telemetry::drain::{on_signals, parent_pipe};
use outrigger_telemetry::{descriptors, logging};

pub use app::{Addresses, ControlPlane, Running};
pub use client::{Client, ClientError};
pub use settings::{ControlArgs, PlaintextXds, Settings};

/// Runs a control plane until a signal, or until standard input ends if the settings say so.
///
/// # Errors
/// When it cannot start.
pub fn run(args: ControlArgs) -> anyhow::Result<()> {
    let settings = args.settings()?;
    let format = settings.log_format.as_deref().unwrap_or("text").parse()?;
    let logs = logging::init(format, settings.log.as_deref())?;
    descriptors::raise_limit();
    let runtime = |name: &str, threads: usize| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let built = builder.thread_name(name).worker_threads(threads).enable_all().build();
        built.context("the runtime cannot be started")
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    // One task decides what changes; sidecars are served by as many threads as there may be.
    let (runtime, streams) = (runtime("control", threads.min(2))?, runtime("streams", threads)?);
    let sidecars = streams.handle().clone();
    runtime.block_on(async move {
        let parent = settings.parent_pipe.then(|| std::io::stdin().as_fd().try_clone_to_owned()).transpose();
        let parent = parent.context("parentPipe: standard input cannot be watched")?;
        let running = ControlPlane::start_with(settings, Some(logs), None, sidecars).await?;
        let orphaned = async {
            match parent {
                Some(pipe) => parent_pipe(pipe).await,
                None => std::future::pending().await,
            }
        };
        let drain = running.drain().clone();
        tokio::select! {
            ended = on_signals(drain.clone()) => ended.context("signals cannot be watched")?,
            ended = orphaned => {
                ended.context("standard input cannot be watched")?;
                tracing::info!("the parent is gone: stopping");
            }
            () = drain.draining() => {}
        }
        running.stop().await;
        Ok(())
    })
}
