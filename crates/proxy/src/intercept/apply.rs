//! Puts the rules in force and takes them back, with `nft` and, for `tproxy`, `ip`. Needs CAP_NET_ADMIN.
//!
//! Each step may be repeated: applying twice is applying once, and removing works whatever is left.

use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command as Process, Output, Stdio};

use anyhow::{Context, bail};

use super::{Command, Method, Options, rules};

/// Runs `intercept …`; says whether the answer is yes: `show` says no when there are no rules.
///
/// # Errors
/// `nft` or `ip` is absent, or did not do it; then nothing is half done that applying or removing again would not mend.
pub fn run(command: &Command) -> anyhow::Result<bool> {
    match command {
        Command::Apply(options) if options.dry_run => print(&plan(options)?),
        Command::Apply(options) => apply(options),
        Command::Show => show(),
        Command::Remove => remove(),
        Command::Check(check) => super::check::run(check),
    }
}

fn print(text: &str) -> anyhow::Result<bool> {
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(true)
}

/// What a dry run prints.
fn plan(options: &Options) -> anyhow::Result<String> {
    let mut text = rules::apply(options, &name_servers(options)?);
    if options.mode == Method::Tproxy {
        for words in rules::routing(options.mark, "add") {
            text.push_str(&format!("# ip {}\n", words.join(" ")));
        }
    }
    Ok(text)
}

fn apply(options: &Options) -> anyhow::Result<bool> {
    super::check_ports(options.inbound_port, options.outbound_port).map_err(anyhow::Error::msg)?;
    let script = rules::apply(options, &name_servers(options)?);
    // Before the rules that mark: a marked packet without its route would be lost.
    let mark = (options.mode == Method::Tproxy).then_some(options.mark);
    unroute(mark)?;
    if let Some(mark) = mark {
        route(mark)?;
    }
    nft(&["-f", "-"], &script)?;
    tracing::debug!("interception applied");
    Ok(true)
}

fn remove() -> anyhow::Result<bool> {
    nft(&["-f", "-"], &rules::remove())?;
    unroute(None)?;
    Ok(true)
}

fn show() -> anyhow::Result<bool> {
    let mut words = vec!["list", "table"];
    words.extend(rules::TABLE.split(' '));
    let output = output("nft", "nftables", &words, "")?;
    if output.status.success() {
        return print(&String::from_utf8_lossy(&output.stdout));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("No such file or directory") {
        writeln!(
            io::stderr(),
            "no interception in this network namespace: table {} is absent",
            rules::TABLE
        )?;
        return Ok(false);
    }
    bail!("nft: {}", hint(&said));
}

fn name_servers(options: &Options) -> anyhow::Result<Vec<IpAddr>> {
    const FILE: &str = "/etc/resolv.conf";
    if !options.dns || !options.dns_servers.is_empty() {
        return Ok(options.dns_servers.clone());
    }
    let text =
        std::fs::read_to_string(FILE).with_context(|| format!("{FILE}; name them with --dns-servers"))?;
    let servers: Vec<IpAddr> = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|rest| rest.trim().parse().ok())
        .collect();
    if servers.is_empty() {
        bail!("{FILE} names no name server; name them with --dns-servers");
    }
    Ok(servers)
}

fn nft(words: &[&str], script: &str) -> anyhow::Result<()> {
    let output = output("nft", "nftables", words, script)?;
    if !output.status.success() {
        bail!("nft refused the rules: {}", hint(&String::from_utf8_lossy(&output.stderr)));
    }
    Ok(())
}

/// The routing rules of ours that are there and not `keep`'s; gone after it.
fn unroute(keep: Option<u32>) -> anyhow::Result<()> {
    let mut stale = Vec::new();
    for family in ["-4", "-6"] {
        // Without `ip` there cannot be any that we made.
        let Ok(listed) = output("ip", "iproute2", &[family, "rule", "show"], "") else { return Ok(()) };
        let marks =
            String::from_utf8_lossy(&listed.stdout).lines().filter_map(rules::our_rule).collect::<Vec<_>>();
        stale.extend(marks.into_iter().filter(|mark| Some(*mark) != keep));
    }
    for mark in stale {
        for words in rules::routing(mark, "del") {
            // The other family's may be gone already; what is left would be seen the next time.
            ip(&words)?;
        }
    }
    Ok(())
}

fn route(mark: u32) -> anyhow::Result<()> {
    for words in rules::routing(mark, "add") {
        let output = ip(&words)?;
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.success() || said.contains("File exists") {
            continue;
        }
        // A host without IPv6 has nothing to route there.
        if words[0] == "-6" && (said.contains("not supported") || said.contains("Cannot assign")) {
            continue;
        }
        bail!("ip {}: {}", words.join(" "), hint(&said));
    }
    Ok(())
}

fn ip(words: &[String]) -> anyhow::Result<Output> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    output("ip", "iproute2", &words, "")
}

fn hint(said: &str) -> String {
    let said = said.trim();
    match said.contains("not permitted") {
        true => format!("{said} (CAP_NET_ADMIN in this network namespace is needed: run it as root)"),
        false => said.to_owned(),
    }
}

/// Runs a program of the system to its end.
fn output(program: &str, package: &str, words: &[&str], input: &str) -> anyhow::Result<Output> {
    let mut child = Process::new(find(program))
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{program} cannot be run (Debian's package is {package})"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends early says why on its standard error.
        let _ = stdin.write_all(input.as_bytes());
    }
    child.wait_with_output().with_context(|| format!("{program} cannot be waited for"))
}

/// Where administrators' programs are, which the PATH of others often lacks.
fn find(program: &str) -> PathBuf {
    let places = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(|folder| PathBuf::from(folder).join(program));
    places.into_iter().find(|path| path.exists()).unwrap_or_else(|| program.into())
}
