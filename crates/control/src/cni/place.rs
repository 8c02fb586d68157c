//! The plugin's place on a node: its binary, and its entry in the network configuration, put back whenever somebody else has written that.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrigger_cni::conflist::{self, Edit, Primary};
use outrigger_telemetry::ready::Condition;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde_json::Value;

use crate::bell::Bell;

/// Whoever writes a file may write two.
const SETTLE: Duration = Duration::from_millis(100);
/// What is written before it takes a name that runtimes read.
const UNFINISHED: &str = ".outrigger-cni.unfinished";
/// After which it is nobody's any more.
const LEFT: Duration = Duration::from_secs(600);

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
        let mut bell = Bell::but_for("the network configuration", SETTLE, is_unfinished);
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
        self.write(&edit, &primary)?;
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
                self.write(&edit, &list)?;
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
        Unfinished::write(&self.plugins, &own, fs::Permissions::from_mode(0o755))
            .and_then(|new| fs::rename(&new.0, &to))
            .map_err(|error| format!("the plugin cannot be put to {}: {error}", to.display()))?;
        tracing::info!(plugin = %to.display(), "the plugin was put there");
        Ok(())
    }

    /// Writes what was made of `read`, if that is still what there is.
    fn write(&self, edit: &Edit, read: &Primary) -> Result<(), String> {
        let wrong = |error: io::Error| format!("{} cannot be written: {error}", edit.path.display());
        let changed = |path: &Path| format!("{} was written by somebody else meanwhile", path.display());
        let before = match &edit.instead_of {
            None => Some(read.text.clone()),
            // One that we have made of what was there before its owner wrote that anew; the name is ours.
            Some(_) => there(&edit.path).map_err(wrong)?,
        };
        if before.as_deref() != Some(edit.text.as_bytes()) {
            let permissions = read.path.metadata().map_err(wrong)?.permissions();
            let new =
                Unfinished::write(&self.configurations, edit.text.as_bytes(), permissions).map_err(wrong)?;
            if !new.take_place(&edit.path, before.as_deref()).map_err(wrong)? {
                return Err(changed(&edit.path));
            }
        }
        // Only now: in between there are two, and never none.
        if let Some(old) = &edit.instead_of {
            let aside = Unfinished::named(&self.configurations);
            fs::rename(old, &aside.0)
                .map_err(|error| format!("{} cannot be removed: {error}", old.display()))?;
            if fs::read(&aside.0).map_err(wrong)? != read.text {
                // Theirs is the first by name again, and is read next.
                fs::rename(&aside.0, old).map_err(wrong)?;
                return Err(changed(old));
            }
        }
        Ok(())
    }
}

/// A file that is whole or not there; what is left of it goes with this. No other agent has its name.
struct Unfinished(PathBuf);

impl Unfinished {
    fn named(directory: &Path) -> Self {
        Self(directory.join(format!("{UNFINISHED}.{:016x}", fastrand::u64(..))))
    }

    fn write(directory: &Path, text: &[u8], permissions: fs::Permissions) -> io::Result<Self> {
        sweep(directory);
        let new = Self::named(directory);
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new.0)?;
        // First: some networks have secrets in their configuration.
        file.set_permissions(permissions)?;
        file.write_all(text)?;
        file.sync_all()?;
        Ok(new)
    }

    /// Whether it is in the place of what was there `before`. Whoever was quicker keeps the place, however often he writes.
    fn take_place(&self, path: &Path, before: Option<&[u8]>) -> io::Result<bool> {
        let Some(before) = before else {
            let placed = match renameat_with(CWD, &self.0, CWD, path, RenameFlags::NOREPLACE) {
                // A file system that cannot: a second name replaces nothing either, and the first goes with this.
                Err(error) if is_unable(error) => fs::hard_link(&self.0, path),
                done => done.map_err(io::Error::from),
            };
            return match placed {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
                done => done.map(|()| true),
            };
        };
        let mut placed = fs::read(&self.0)?;
        match renameat_with(CWD, &self.0, CWD, path, RenameFlags::EXCHANGE) {
            Ok(()) => {}
            // A file system that cannot: a moment is left in which somebody is not seen.
            Err(error) if is_unable(error) => {
                let is_same = fs::read(path)? == before;
                return if is_same { fs::rename(&self.0, path).map(|()| true) } else { Ok(false) };
            }
            Err(error) => return Err(error.into()),
        }
        let mut out = fs::read(&self.0)?;
        if out == before {
            return Ok(true);
        }
        // What came out is somebody's later word: it goes back, until what comes out then is what went in before.
        loop {
            renameat_with(CWD, &self.0, CWD, path, RenameFlags::EXCHANGE)?;
            let next = fs::read(&self.0)?;
            if next == placed {
                return Ok(false);
            }
            (placed, out) = (out, next);
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Of a way to rename that not all file systems know.
fn is_unable(error: Errno) -> bool {
    matches!(error, Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP)
}

/// What is in a file, if it is there.
fn there(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Ours, or another agent's. What becomes of such a file is no news of the configuration: heard as news, each look that writes in vain would
/// call for the next.
fn is_unfinished(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(UNFINISHED.as_bytes()))
}

/// Takes away what agents that were killed have left.
fn sweep(directory: &Path) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        // Since it has this name: what is in it may be somebody's configuration, as old as the node.
        let since = entry.metadata().map(|file| u64::try_from(file.ctime()).unwrap_or_default());
        let is_left = since.is_ok_and(|since| now.saturating_sub(since) > LEFT.as_secs());
        if is_left && is_unfinished(&entry.path()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests;
