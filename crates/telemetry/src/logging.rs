//! The process's own log: format, destination (stderr) and a filter that can be changed while it runs.
//!
//! Access logs are not written here: they have their own formatter and writer. The subscriber is global to the
//! process, so it is installed once; every later call to [`init`] returns the control of the first.

use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, reload};

mod throttle;

pub use throttle::Throttle;

/// Environment variable that sets the filter where no explicit one is given, e.g. `info,outrigger_proxy=debug`.
pub const LOG_ENV: &str = "OUTRIGGER_LOG";

/// Filter used when neither the caller nor [`LOG_ENV`] says otherwise.
pub const DEFAULT_DIRECTIVES: &str = "info";

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// One line of text per event; coloured when stderr is a terminal.
    #[default]
    Text,
    /// One JSON object per line, for log collectors.
    Json,
}

impl std::str::FromStr for LogFormat {
    type Err = LogError;

    fn from_str(text: &str) -> Result<Self, LogError> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(LogError::Format(other.to_owned())),
        }
    }
}

/// Why a log setting was refused.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter does not parse.
    #[error(
        "log filter \"{directives}\" is not valid: {reason}; write comma-separated `target=level` pairs, \
         for example `info,outrigger_proxy=debug`"
    )]
    Directives {
        /// What was given.
        directives: String,
        /// What the parser says about it.
        reason: String,
    },
    /// The format is neither `text` nor `json`.
    #[error("log format \"{0}\" is unknown; use `text` or `json`")]
    Format(String),
    /// Another subscriber owns the process's log (a test or an embedding program installed its own).
    #[error("the log filter cannot be changed: another subscriber was installed before Outrigger's")]
    NotOurs,
}

/// Handle on the filter of the running process; cheap to clone.
#[derive(Clone)]
pub struct LogControl {
    /// `None` when another subscriber was there first.
    handle: Option<reload::Handle<EnvFilter, tracing_subscriber::Registry>>,
}

impl LogControl {
    /// Replaces the filter; the old one stays in force when the new one does not parse.
    pub fn set(&self, directives: &str) -> Result<(), LogError> {
        let filter = parse(directives)?;
        let handle = self.handle.as_ref().ok_or(LogError::NotOurs)?;
        let (before, after) = (self.current(), filter.to_string());
        // On either side: one of the two filters may hide it.
        tracing::error!(before, after, "the log filter is being changed");
        handle.reload(filter).map_err(|_| LogError::NotOurs)?;
        tracing::error!(before, after, "the log filter was changed");
        Ok(())
    }

    /// The filter in force, in the notation that [`LogControl::set`] takes.
    pub fn current(&self) -> String {
        let current = self.handle.as_ref().and_then(|handle| handle.with_current(ToString::to_string).ok());
        current.unwrap_or_else(|| "unknown (another subscriber is installed)".to_owned())
    }
}

static CONTROL: OnceLock<LogControl> = OnceLock::new();

/// Installs the subscriber with `directives`, else [`LOG_ENV`], else [`DEFAULT_DIRECTIVES`].
///
/// Only the first call of a process installs; a later one changes nothing and returns the same control. A filter
/// that does not parse is an error in every call.
pub fn init(format: LogFormat, directives: Option<&str>) -> Result<LogControl, LogError> {
    let from_env = std::env::var(LOG_ENV).ok().filter(|value| !value.trim().is_empty());
    let chosen = directives.or(from_env.as_deref()).unwrap_or(DEFAULT_DIRECTIVES);
    let filter = parse(chosen)?;
    Ok(CONTROL.get_or_init(|| install(format, filter)).clone())
}

fn install(format: LogFormat, filter: EnvFilter) -> LogControl {
    let (filter, handle) = reload::Layer::new(filter);
    // `log_internal_errors(false)`: a failed write would be reported with eprintln!, which panics when stderr is
    // the broken thing, for instance because the parent that read it is gone.
    let base = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).log_internal_errors(false);
    let layer = match format {
        LogFormat::Text => base.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => base.json().flatten_event(true).with_ansi(false).boxed(),
    };
    let installed = tracing_subscriber::registry()
        .with(filter)
        .with(throttle::Strangers::default())
        .with(layer)
        .try_init()
        .is_ok();
    LogControl { handle: installed.then_some(handle) }
}

fn parse(directives: &str) -> Result<EnvFilter, LogError> {
    // EnvFilter takes the empty string for "errors only", which nobody means who sends an empty form field.
    if directives.trim().is_empty() {
        let reason = "it is empty".to_owned();
        return Err(LogError::Directives { directives: directives.to_owned(), reason });
    }
    EnvFilter::builder().parse(directives).map_err(|error| LogError::Directives {
        directives: directives.to_owned(),
        reason: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // One test, because the subscriber belongs to the process.
    #[test]
    fn filter_is_replaced_at_runtime_and_a_second_init_is_harmless() {
        let first = init(LogFormat::Text, Some("warn")).unwrap();
        assert_eq!(first.current(), "warn");
        let second = init(LogFormat::Json, Some("debug")).unwrap();
        assert_eq!(second.current(), "warn", "only the first call installs");

        second.set("info,outrigger_proxy=debug").unwrap();
        assert!(first.current().contains("outrigger_proxy=debug"), "{}", first.current());
        assert!(tracing::enabled!(target: "outrigger_proxy", tracing::Level::DEBUG));
        assert!(!tracing::enabled!(target: "elsewhere", tracing::Level::DEBUG));

        let before = first.current();
        for bad in ["outrigger_proxy=loud", "", "a=b=c"] {
            let error = first.set(bad).unwrap_err().to_string();
            assert!(error.contains("log filter") && error.contains("for example"), "{error}");
        }
        assert_eq!(first.current(), before, "a bad filter leaves the old one in force");
        assert!(init(LogFormat::Text, Some("x=nonsense")).is_err());
    }

    #[test]
    fn unknown_format_names_the_two_that_exist() {
        let error = "xml".parse::<LogFormat>().unwrap_err().to_string();
        assert!(error.contains("xml") && error.contains("text") && error.contains("json"), "{error}");
        assert_eq!("json".parse::<LogFormat>().unwrap(), LogFormat::Json);
    }
}
