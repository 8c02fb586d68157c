//! What the plugin asks the agent of its node: a line of JSON over a socket, and one back.

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::spec::{Error, code};

/// Where the agent listens, unless it is told otherwise. Its directory is root's alone.
pub const SOCKET: &str = "/run/outrigger-cni/agent.sock";
/// What is understood. The agent brings the plugin of its own version; one of before may still run.
pub const PROTOCOL: u32 = 1;
/// Of a line.
pub const MOST: u64 = 64 * 1024;

/// The agent may be restarting.
const RESTART: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);
/// Longer than the agent waits for an API server and a program.
const PATIENCE: Duration = Duration::from_secs(40);

/// What is wanted of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wanted {
    /// The Pod's rules, if it is to have any.
    Add,
    /// Whether they are there.
    Check,
    /// Whether there could be any.
    Status,
}

/// A question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// What.
    pub wanted: Wanted,
    /// The Pod's namespace.
    #[serde(default)]
    pub namespace: String,
    /// Its name.
    #[serde(default)]
    pub pod: String,
    /// Its uid, where the runtime says it.
    #[serde(default)]
    pub uid: Option<String>,
    /// Its network namespace.
    #[serde(default)]
    pub netns: String,
    /// Its name servers, where the runtime says them.
    #[serde(default)]
    pub name_servers: Vec<String>,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// The rules are there.
    Intercepted,
    /// There are none to be, because.
    LeftAlone(String),
    /// It can be asked.
    Ready,
    /// It did not work.
    Failed {
        /// Of [`code`].
        code: u32,
        /// Why.
        msg: String,
    },
}

/// Asks the agent.
///
/// # Errors
/// It cannot be asked, or says why it could not.
pub fn ask(socket: &Path, question: &Question) -> Result<Answer, Error> {
    let wrong = |error: std::io::Error| {
        Error::new(
            code::TRY_AGAIN,
            format!("the agent of this node did not answer at {}: {error}", socket.display()),
        )
        .hint("see the log of the DaemonSet outrigger-cni; the runtime tries again")
    };
    let stream = connect(socket, if question.wanted == Wanted::Status { Duration::ZERO } else { RESTART })
        .map_err(|error| {
            Error::new(code::TRY_AGAIN, format!("the agent of this node is away ({}: {error})", socket.display()))
                .hint("see the DaemonSet outrigger-cni; the runtime tries again, and no Pod starts without its rules meanwhile")
        })?;
    let mut line =
        serde_json::to_vec(question).map_err(|error| Error::new(code::TRY_AGAIN, error.to_string()))?;
    line.push(b'\n');
    let talk = |mut stream: UnixStream| {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(&line)?;
        let mut answer = String::new();
        BufReader::new(stream.take(MOST)).read_line(&mut answer)?;
        Ok(answer)
    };
    let answer = talk(stream).map_err(wrong)?;
    match serde_json::from_str(&answer) {
        Ok(Answer::Failed { code, msg }) => Err(Error::new(code, msg)),
        Ok(answer) => Ok(answer),
        Err(error) => Err(wrong(std::io::Error::new(ErrorKind::InvalidData, error))),
    }
}

fn connect(socket: &Path, patience: Duration) -> std::io::Result<UnixStream> {
    let end = Instant::now() + patience;
    loop {
        match UnixStream::connect(socket) {
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
                    && Instant::now() < end =>
            {
                thread::sleep(PAUSE);
            }
            done => return done,
        }
    }
}
