//! The plugin's place on a node: its binary, and its entry in the network configuration, put back whenever somebody else has written that.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use outrigger_cni::conflist::{self, Edit};
use outrigger_telemetry::ready::Condition;
use serde_json::Value;

use crate::bell::Bell;

/// Whoever writes a file may write two.
const SETTLE: Duration = Duration::from_millis(100);
/// What is written before it takes a name that runtimes read.
const UNFINISHED: &str = ".outrigger-cni.unfinished";

/// Where, and what.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// Of network configurations, as it is seen here.
    pub(super) configurations: PathBuf,
    /// Of plugins, as it is seen here.
    pub(super) plugins: PathBuf,
    /// The plugin's binary.
    pub(super) binary: PathBuf,
    /// What is to be at the end of the list.
    pub(super) entry: Value,
}

impl Place {
    /// Keeps everything in place, and says in `condition` whether it is.
    pub(super) async fn keep(self, condition: Condition) {
        let mut bell = Bell::new("the network configuration", SETTLE);
        let mut said = None;
        loop {
            for directory in [&self.configurations, &self.plugins] {
                bell.watch(directory);
            }
            let own = self.clone();
            let done = tokio::task::spawn_blocking(move || own.put()).await;
            let done = done.unwrap_or_else(|error| Err(error.to_string()));
            match &done {
                Ok(_) => condition.set_ready(),
                Err(why) => condition.set_not_ready(why.clone()),
            }
            if said.as_ref() != Some(&done) {
                match &done {
                    Ok(path) => tracing::info!(configuration = %path.display(), "the plugin is in its place"),
                    Err(why) => tracing::warn!("the plugin is not in its place: {why}"),
                }
                said = Some(done);
            }
            bell.rings().await;
        }
    }

    /// Puts everything where it is to be; says which file has the entry now.
    fn put(&self) -> Result<PathBuf, String> {
        self.put_binary()?;
        let directory = self.configurations.display();
        let primary = conflist::primary(&self.configurations)
            .map_err(|error| format!("{directory} cannot be read: {error}"))?
            .ok_or_else(|| format!("{directory} has no network configuration yet"))?;
        let Some(edit) = conflist::insert(&primary, &self.entry)? else { return Ok(primary.path) };
        self.write(&edit, &primary.path)?;
        tracing::info!(configuration = %edit.path.display(), "the plugin was put into the network configuration");
        Ok(edit.path)
    }

    /// Takes the entry out wherever it is. The binary stays: runtimes ask the plugins that a Pod came with when it ends.
    pub(super) fn take_out(&self) -> Result<(), String> {
        let directory = self.configurations.display();
        let lists = conflist::lists(&self.configurations)
            .map_err(|error| format!("{directory} cannot be read: {error}"))?;
        for list in lists {
            if let Some(edit) = conflist::remove(&list) {
                self.write(&edit, &list.path)?;
                tracing::info!(configuration = %edit.path.display(), "the plugin was taken out of the network configuration");
            }
        }
        Ok(())
    }

    fn put_binary(&self) -> Result<(), String> {
        let to = self.plugins.join(outrigger_cni::NAME);
        let own = fs::read(&self.binary)
            .map_err(|error| format!("the plugin {} cannot be read: {error}", self.binary.display()))?;
        let is_executable =
            |path: &Path| path.metadata().is_ok_and(|file| file.permissions().mode() & 0o111 == 0o111);
        if is_executable(&to) && fs::read(&to).is_ok_and(|there| there == own) {
            return Ok(());
        }
        // A program that runs cannot be written to, but its name can be given away.
        replace(&self.plugins, &to, &own, fs::Permissions::from_mode(0o755))
            .map_err(|error| format!("the plugin cannot be put to {}: {error}", to.display()))?;
        tracing::info!(plugin = %to.display(), "the plugin was put there");
        Ok(())
    }

    fn write(&self, edit: &Edit, like: &Path) -> Result<(), String> {
        let wrong = |error: io::Error| format!("{} cannot be written: {error}", edit.path.display());
        let permissions = like.metadata().map_err(wrong)?.permissions();
        replace(&self.configurations, &edit.path, edit.text.as_bytes(), permissions).map_err(wrong)?;
        // Only now: in between there are two, and never none.
        if let Some(before) = &edit.instead_of {
            fs::remove_file(before)
                .map_err(|error| format!("{} cannot be removed: {error}", before.display()))?;
        }
        Ok(())
    }
}

/// A file is whole or it is not there.
fn replace(directory: &Path, path: &Path, text: &[u8], permissions: fs::Permissions) -> io::Result<()> {
    let unfinished = directory.join(UNFINISHED);
    let mut file = File::create(&unfinished)?;
    // First: some networks have secrets in their configuration.
    file.set_permissions(permissions)?;
    file.write_all(text)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&unfinished, path)
}

#[cfg(test)]
mod tests;
