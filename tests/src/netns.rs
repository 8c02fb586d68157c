//! Hosts of their own on one machine: network namespaces joined by veth to a bridge in one more namespace.
//!
//! Owns the namespaces, their addresses, and ways to run programs and futures in them; nothing of it touches the namespace of the
//! machine, and all of it goes when the [`Net`] and its hosts are dropped. Names carry our pid, so that a net whose test was killed is
//! swept by the next one. What is on the wire is in [`capture`], sidecars under interception in [`workload`].

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

pub mod capture;
pub mod workload;

const PREFIX: &str = "outrigger-test";
/// The bridge's place in every network; the default gateway.
const GATEWAY: u8 = 254;

static COUNT: AtomicU32 = AtomicU32::new(0);
/// Making namespaces is not safe against itself on every iproute2.
static MAKING: Mutex<()> = Mutex::new(());

/// A network: one bridge. Every net has the same addresses, because no two see each other.
pub struct Net {
    tag: String,
    bridge: Namespace,
    hosts: AtomicU8,
    families: Families,
}

/// Which of their addresses Pods on its hosts are known by.
#[derive(Clone, Copy)]
enum Families {
    V4,
    /// Both, and that of IPv6 first.
    Both,
}

/// A host of a [`Net`]; clones are the same host.
#[derive(Clone)]
pub struct Host(Arc<Inner>);

struct Inner {
    // Sockets are closed before the namespace goes.
    inside: Inside,
    namespace: Namespace,
    name: String,
    place: u8,
    families: Families,
}

/// A namespace by name; it and the processes in it end together.
struct Namespace(String);

/// A thread that has moved into the namespace: what its runtime opens, is opened there.
struct Inside {
    runtime: Handle,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Net {
    /// A bridge without hosts. Ask [`crate::require::netns`] first.
    #[allow(clippy::new_without_default, reason = "it makes namespaces; nothing of it is a default")]
    pub fn new() -> Self {
        Self::of(Families::V4)
    }

    /// One whose Pods are known by addresses of both families, of which that of IPv6 is the first.
    pub fn dual() -> Self {
        Self::of(Families::Both)
    }

    fn of(families: Families) -> Self {
        sweep();
        let tag = format!("{PREFIX}-{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed));
        let bridge = Namespace::add(format!("{tag}-bridge"));
        bridge.configure(&format!(
            "link set lo up
link add br0 type bridge stp_state 0 mcast_snooping 0
addr add {}/24 dev br0
addr add {}/64 dev br0 nodad
link set br0 up
",
            v4(GATEWAY),
            v6(GATEWAY)
        ));
        Self { tag, bridge, hosts: AtomicU8::new(0), families }
    }

    /// One more host: addresses 10.77.0.N and fd77::N, a default route, a resolv.conf of its own.
    pub fn host(&self, name: &str) -> Host {
        let place = self.hosts.fetch_add(1, Relaxed) + 1;
        let namespace = Namespace::add(format!("{}-{name}", self.tag));
        self.bridge.configure(&format!(
            "link add port{place} type veth peer name eth0 netns {}
link set port{place} master br0 up
",
            namespace.0
        ));
        namespace.configure(&format!(
            "link set lo up
addr add {}/24 dev eth0
addr add {}/64 dev eth0 nodad
link set eth0 up
route add default via {}
route add default via {}
",
            v4(place),
            v6(place),
            v4(GATEWAY),
            v6(GATEWAY)
        ));
        let inside = Inside::enter(&namespace.0);
        let host = Host(Arc::new(Inner {
            inside,
            namespace,
            name: name.to_owned(),
            place,
            families: self.families,
        }));
        host.resolv_conf(&format!("nameserver {}\n", v4(GATEWAY)));
        host
    }
}

impl Net {
    /// Has the bridge pass on what its hosts send to networks beyond, by these rules of a packet filter, in place of those before.
    ///
    /// # Errors
    /// What `nft` said.
    pub fn route(&self, rules: &str) -> Result<(), String> {
        let inside = |program: &str| {
            let mut command = ip();
            command.args(["netns", "exec", &self.bridge.0, program]);
            command
        };
        // No word to hosts that there is a shorter way: it is not the same.
        let settings =
            "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 0 | tee /proc/sys/net/ipv4/conf/*/send_redirects";
        let set = inside("sh").args(["-c", settings]).output().map_err(|error| error.to_string())?;
        if !set.status.success() {
            return Err(String::from_utf8_lossy(&set.stderr).into_owned());
        }
        let mut command = inside("nft");
        command.args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| error.to_string())?;
        let mut stdin = child.stdin.take().expect("it was asked for");
        stdin.write_all(rules.as_bytes()).map_err(|error| error.to_string())?;
        drop(stdin);
        let output = child.wait_with_output().map_err(|error| error.to_string())?;
        match output.status.success() {
            true => Ok(()),
            false => Err(format!("{rules}\n{}", String::from_utf8_lossy(&output.stderr))),
        }
    }
}

fn v4(place: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, place)
}

fn v6(place: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, place.into())
}

impl Host {
    /// What it was called.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its network namespace.
    pub fn netns(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0.namespace.0)
    }

    /// Its IPv4 address.
    pub fn v4(&self) -> IpAddr {
        v4(self.0.place).into()
    }

    /// Its IPv6 address.
    pub fn v6(&self) -> IpAddr {
        v6(self.0.place).into()
    }

    /// Both addresses.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4(), self.v6()]
    }

    /// Those of a Pod on it, the first first.
    pub fn pod_addresses(&self) -> Vec<IpAddr> {
        match self.0.families {
            Families::V4 => vec![self.v4()],
            Families::Both => vec![self.v6(), self.v4()],
        }
    }

    /// Sets what `/etc/resolv.conf` is for programs that are started from now on.
    pub fn resolv_conf(&self, text: &str) {
        let directory = etc(&self.0.namespace.0);
        // Another test that ends takes /etc/netns away while it is empty.
        let made = (0..100).any(|_| std::fs::create_dir_all(&directory).is_ok());
        assert!(made, "root can make the folder {}", directory.display());
        std::fs::write(directory.join("resolv.conf"), text).expect("a file of our own can be written");
    }

    /// A program on this host, as root. The pid of the child is the program's, and it is killed when we are.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.command_with(&[], &[], program)
    }

    /// As [`Host::command`], as a user and group of this number.
    pub fn command_as(&self, user: u32, program: impl AsRef<OsStr>) -> Command {
        let user = user.to_string();
        self.command_with(&[], &["--reuid", &user, "--regid", &user, "--clear-groups"], program)
    }

    /// As [`Host::command`], behind programs that execute their arguments, such as `prlimit`, and with more words for `setpriv`.
    pub fn command_with(&self, before: &[&str], setpriv: &[&str], program: impl AsRef<OsStr>) -> Command {
        let mut command = ip();
        command.args(["netns", "exec", &self.0.namespace.0]).args(before);
        // After all others, because whoever changes the user loses the signal.
        command.args(["setpriv", "--pdeathsig", "KILL"]).args(setpriv).arg(program);
        command
    }

    /// Runs a program on this host to its end: what it wrote to standard output.
    ///
    /// # Errors
    /// When it fails or takes more than 20 seconds: all that it wrote.
    pub fn ask(&self, program: &Path, args: &[&str]) -> Result<String, String> {
        self.ask_for(program, args, Duration::from_secs(20))
    }

    /// As [`Host::ask`], with another patience.
    ///
    /// # Errors
    /// As there.
    pub fn ask_for(&self, program: &Path, args: &[&str], patience: Duration) -> Result<String, String> {
        let before = ["timeout", "--kill-after=1", &patience.as_secs().to_string()];
        let mut command = self.command_with(&before, &[], program);
        let output = command.args(args).stdin(Stdio::null()).output().map_err(|e| e.to_string())?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if output.status.success() {
            return Ok(out.into_owned());
        }
        Err(format!(
            "{} {} on {}: {}\n{out}{err}",
            program.display(),
            args.join(" "),
            self.0.name,
            output.status
        ))
    }

    /// Runs a future on this host: sockets that it opens are opened there, tasks that it spawns run there.
    pub async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        match self.0.inside.runtime.spawn(work).await {
            Ok(value) => value,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(error) => panic!("the host {} has ended: {error}", self.0.name),
            },
        }
    }

    /// The ruleset of its packet filter.
    pub fn ruleset(&self) -> String {
        self.ask(Path::new("nft"), &["list", "ruleset"]).expect("root may list the rules of its namespace")
    }
}

impl Inside {
    fn enter(namespace: &str) -> Self {
        let file = File::open(Path::new("/run/netns").join(namespace)).expect("the namespace was just made");
        let (send, receive) = std::sync::mpsc::channel();
        let (end, ended) = oneshot::channel();
        let work = move || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("root may enter its own namespace");
            let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
            let _ = send.send(runtime.handle().clone());
            let _ = runtime.block_on(ended);
        };
        let thread = std::thread::Builder::new().name(namespace.to_owned()).spawn(work);
        let thread = Some(thread.expect("a thread for the host"));
        let runtime = receive.recv().expect("the host's thread has a runtime");
        Self { runtime, end: Some(end), thread }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        drop(self.end.take());
        // The last clone may be held by a task of the host itself, and a thread cannot wait for itself.
        if let Some(thread) = self.thread.take().filter(|t| t.thread().id() != std::thread::current().id()) {
            let _ = thread.join();
        }
    }
}

impl Namespace {
    fn add(name: String) -> Self {
        let _one = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
        let made = ip().args(["netns", "add", &name]).output().expect("ip starts");
        assert!(made.status.success(), "ip netns add {name}: {}", String::from_utf8_lossy(&made.stderr));
        Self(name)
    }

    /// Lines for `ip -batch`.
    fn configure(&self, lines: &str) {
        let mut child = ip()
            .args(["-n", &self.0, "-batch", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("ip starts");
        let mut stdin = child.stdin.take().expect("it was asked for");
        stdin.write_all(lines.as_bytes()).expect("ip reads what it is told");
        drop(stdin);
        let output = child.wait_with_output().expect("ip ends");
        assert!(output.status.success(), "{lines}\n{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

fn ip() -> Command {
    let mut command = Command::new("ip");
    command.stdin(Stdio::null());
    command
}

fn etc(namespace: &str) -> PathBuf {
    Path::new("/etc/netns").join(namespace)
}

/// Whatever still runs in a namespace ends, then it goes itself.
fn remove(namespace: &str) {
    if let Ok(output) = ip().args(["netns", "pids", namespace]).output() {
        let pids = String::from_utf8_lossy(&output.stdout);
        for pid in pids.split_whitespace().filter_map(|pid| rustix::process::Pid::from_raw(pid.parse().ok()?))
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    // A folder is never without its namespace: the others look for such.
    let _ = std::fs::remove_dir_all(etc(namespace));
    let _ = ip().args(["netns", "del", namespace]).stderr(Stdio::null()).status();
    // Only when it was the last: somebody else's folders stay.
    let _ = std::fs::remove_dir("/etc/netns");
}

/// Removes what a killed test has left: namespaces whose name has the pid of a process that is no more.
fn sweep() {
    for entry in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').nth(1)?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            remove(name);
        }
    }
}
