//! A node's network configuration: which file counts, and our entry in it. Pure but for [`primary`]'s look into the directory.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::NAME;
use crate::spec::VERSIONS;

/// What runtimes read, by the ends of names (libcni's `ConfFiles`).
const ENDS: [&str; 3] = ["conf", "conflist", "json"];
/// Nobody's configuration is so long.
const MOST: u64 = 4 * 1024 * 1024;

/// The file that a runtime takes: the first by name that can be read as a network.
#[derive(Debug, Clone, PartialEq)]
pub struct Primary {
    /// Where.
    pub path: PathBuf,
    /// What is in it.
    pub network: Map<String, Value>,
    /// The same as it was read.
    pub text: Vec<u8>,
}

/// Looks for it. Files that are no network are passed over, as runtimes do.
///
/// # Errors
/// The directory cannot be read.
pub fn primary(directory: &Path) -> io::Result<Option<Primary>> {
    Ok(networks(directory)?.next())
}

fn networks(directory: &Path) -> io::Result<impl Iterator<Item = Primary>> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(directory)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|end| ENDS.iter().any(|known| end == *known)))
        .collect();
    paths.sort();
    Ok(paths.into_iter().filter_map(|path| {
        let small = path.metadata().is_ok_and(|file| file.is_file() && file.len() <= MOST);
        let text = std::fs::read(&path).ok().filter(|_| small)?;
        let network: Map<String, Value> = serde_json::from_slice(&text).ok()?;
        is_network(&path, &network).then_some(Primary { path, network, text })
    }))
}

fn is_network(path: &Path, network: &Map<String, Value>) -> bool {
    match network.get("plugins") {
        Some(plugins) => is_list(path) && plugins.as_array().is_some_and(|plugins| !plugins.is_empty()),
        None => !is_list(path) && network.get("type").is_some_and(Value::is_string),
    }
}

fn is_list(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "conflist")
}

/// A file that is to be, and one that it takes the place of.
#[derive(Debug, Clone, PartialEq)]
pub struct Edit {
    /// Where.
    pub path: PathBuf,
    /// What.
    pub text: String,
    /// What is to go, once it is there.
    pub instead_of: Option<PathBuf>,
}

/// Puts our entry at the end; `None`: it is there, as it is to be.
///
/// # Errors
/// There is nothing that it could stand behind, or what there is speaks another version.
pub fn insert(primary: &Primary, entry: &Value) -> Result<Option<Edit>, String> {
    let listed = is_list(&primary.path);
    let mut network = if listed { primary.network.clone() } else { list_of(primary.network.clone()) };
    let before = network.clone();
    let Some(plugins) = network.get_mut("plugins").and_then(Value::as_array_mut) else {
        return Err(format!("{}: plugins: is no list", primary.path.display()));
    };
    // Called in a version that it does not speak it would refuse every Pod.
    let version = before.get("cniVersion").and_then(Value::as_str).unwrap_or_default();
    if !VERSIONS.contains(&version) {
        return Err(format!(
            "{}: cniVersion: \"{version}\" is not spoken by {NAME}, only {}",
            primary.path.display(),
            VERSIONS.join(", ")
        ));
    }
    plugins.retain(|plugin| plugin["type"] != NAME);
    if plugins.is_empty() {
        return Err(format!(
            "{}: plugins: there is none but {NAME}, which needs one in front of it",
            primary.path.display()
        ));
    }
    plugins.push(entry.clone());
    if listed && before == network {
        return Ok(None);
    }
    let path = if listed { primary.path.clone() } else { list_in_place_of(&primary.path) };
    Ok(Some(Edit { text: text(&network), instead_of: (!listed).then(|| primary.path.clone()), path }))
}

/// A name that nobody but us gives: its owner may have a list of his own beside the single plugin, and may write that anew at any time. It
/// comes before such a list, and after the single plugin, so that what its owner has to say is heard.
fn list_in_place_of(single: &Path) -> PathBuf {
    let mut name = single.as_os_str().to_owned();
    name.push(".conflist");
    name.into()
}

/// All lists of a directory: a file that was the primary one may be another's now.
///
/// # Errors
/// The directory cannot be read.
pub fn lists(directory: &Path) -> io::Result<Vec<Primary>> {
    Ok(networks(directory)?.filter(|network| is_list(&network.path)).collect())
}

/// Takes our entry out; `None`: it is not there.
pub fn remove(primary: &Primary) -> Option<Edit> {
    let mut network = primary.network.clone();
    let plugins = network.get_mut("plugins")?.as_array_mut()?;
    let before = plugins.len();
    plugins.retain(|plugin| plugin["type"] != NAME);
    let gone = plugins.len() < before && !plugins.is_empty();
    gone.then(|| Edit { path: primary.path.clone(), text: text(&network), instead_of: None })
}

/// A list of one: what a list has of its own goes to the top (libcni's `ConfListFromConf`).
fn list_of(mut only: Map<String, Value>) -> Map<String, Value> {
    let mut list = Map::new();
    for field in ["cniVersion", "name", "disableCheck", "disableGC"] {
        if let Some(value) = only.remove(field) {
            list.insert(field.to_owned(), value);
        }
    }
    list.insert("plugins".to_owned(), json!([only]));
    list
}

fn text(network: &Map<String, Value>) -> String {
    format!("{:#}\n", Value::Object(network.clone()))
}

/// Our entry: what a runtime hands to the plugin.
pub fn entry(socket: &Path, exclude_namespaces: &[String]) -> Value {
    json!({
        "type": NAME, "socket": socket, "excludeNamespaces": exclude_namespaces,
        // Runtimes that know a Pod's name servers say them to whoever asks so.
        "capabilities": {"dns": true},
    })
}

#[cfg(test)]
mod tests;
