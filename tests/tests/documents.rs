//! What README's "Use it", the page of instances and the page for virtual machines tell people to type, typed line by line, on
//! hosts of their own: with the ports, the paths and the names that they say.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use cargo_metadata::MetadataCommand;
use outrigger_tests::netns::{Host, Net};
use outrigger_tests::require;
use outrigger_tests::wait::eventually;

use crate::BINARY;

fn page(name: &str) -> String {
    std::fs::read_to_string(repository().join(name)).unwrap()
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// The blocks of commands: lines that are indented so. One that ends in a backslash, or within quotes, goes on.
fn blocks(text: &str, indent: usize) -> Vec<Vec<String>> {
    let mut blocks: Vec<Vec<String>> = Vec::new();
    let (mut within, mut open) = (false, false);
    for line in text.lines() {
        let Some(line) = line.strip_prefix(&" ".repeat(indent)) else {
            within = false;
            continue;
        };
        if !within {
            blocks.push(Vec::new());
        }
        let block = blocks.last_mut().unwrap();
        match block.last_mut().filter(|_| within && open) {
            Some(command) => *command += &format!("\n{line}"),
            None => block.push(line.to_owned()),
        }
        let command = block.last().unwrap();
        open = command.ends_with('\\') || command.matches('\'').count() % 2 == 1;
        within = true;
    }
    blocks
}

/// A host with folders of its own where the pages put files, so that nothing of this machine is touched.
struct Machine {
    host: Host,
    root: PathBuf,
    /// Where somebody types.
    directory: PathBuf,
    /// What `export` said.
    exported: String,
    running: Vec<Child>,
}

/// Folders of the machine that a page writes to.
const FOLDERS: [&str; 3] = ["/etc", "/var/lib", "/usr/local/bin"];

impl Drop for Machine {
    fn drop(&mut self) {
        for child in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Machine {
    fn new(net: &Net, name: &str, directory: &Path) -> Self {
        let (host, root) = (net.host(name), directory.join(format!(".{name}")));
        for folder in FOLDERS {
            std::fs::create_dir_all(root.join(&folder[1..])).unwrap();
        }
        std::fs::write(root.join("usr/local/bin/program"), "").unwrap();
        let copy = host.ask(Path::new("cp"), &["-a", "/etc/.", &root.join("etc").display().to_string()]);
        copy.unwrap();
        let machine = Self {
            host,
            root,
            directory: directory.to_owned(),
            exported: String::new(),
            running: Vec::new(),
        };
        machine.program(&machine.root.join("usr/local/bin"), "systemctl", SYSTEMCTL);
        machine
    }

    fn program(&self, folder: &Path, name: &str, text: &str) {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    }

    fn shell(&self, command: &str) -> Command {
        let bind = |from: &Path, to: &str| format!("mount --bind '{}' {to} && ", from.display());
        let mut text: String = FOLDERS.iter().map(|f| bind(&self.root.join(&f[1..]), f)).collect();
        text += &bind(Path::new(BINARY), "/usr/local/bin/program");
        text += &format!("cd '{}' && {{\n{}{command}\n}}", self.directory.display(), self.exported);
        let mut shell = self.host.command("bash");
        shell.args(["-c", &text]).stdin(Stdio::null());
        for variable in ["OUTRIGGER_SERVER", "OUTRIGGER_TRACES", "OUTRIGGER_CONTROL_CONFIG"] {
            shell.env_remove(variable);
        }
        shell
    }

    /// Types one line. Somebody who is told to wait tries again; a program with `&` runs on.
    async fn types(&mut self, command: &str) -> String {
        if command.starts_with("export ") {
            self.exported += &format!("{command}\n");
            return String::new();
        }
        if let Some(program) = command.strip_suffix('&') {
            let log = std::fs::File::create(self.root.join(format!("{}.log", self.running.len()))).unwrap();
            let mut shell = self.shell(&format!("exec {program}"));
            self.running.push(shell.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
            return String::new();
        }
        eventually(command, || async {
            let Output { status, stdout, stderr } = self.shell(command).output().unwrap();
            let (out, err) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
            if status.success() { Ok(out.into_owned()) } else { Err(format!("{out}{err}\n{}", self.logs())) }
        })
        .await
    }

    /// What its programs said.
    fn logs(&self) -> String {
        let files = std::fs::read_dir(&self.root).unwrap().flatten().map(|entry| entry.path());
        files.filter_map(|file| std::fs::read_to_string(file).ok()).collect()
    }
}

/// What systemd does with the units of the page, as far as they say.
const SYSTEMCTL: &str = r#"#!/bin/bash
[ "$1" = daemon-reload ] && exit 0
[ "$1 $2" = "enable --now" ] || exit 64
shift 2
for unit in "$@"; do
  instance=${unit#*@} file=/etc/systemd/system/${unit%@*}@.service
  said() { sed -n "s/^$1=//p" "$file" | sed "s/%i/$instance/g"; }
  [ -f "$file" ] || { echo "no unit $file" >&2; exit 5; }
  [ ! -f "/etc/outrigger/$instance.intercept" ] || . "/etc/outrigger/$instance.intercept"
  if [ "$(said Type)" = oneshot ]; then
    eval "$(said ExecStart)" || exit 1
  else
    user=$(said User) state=/var/lib/$(said StateDirectory)
    install -d -m 755 "${state%/*}" && install -d -m "$(said StateDirectoryMode)" -o "$user" -g "$user" "$state"
    setsid setpriv --reuid "$user" --regid "$user" --clear-groups $(said ExecStart) > "$state.log" 2>&1 &
  fi
done
"#;

/// The programs of a release build, by the names that they have in it.
const PROGRAMS: [(&str, &str); 3] = [
    ("outrigger", "exec /usr/local/bin/program \"$@\""),
    ("outrigger-control", "exec /usr/local/bin/program control-plane \"$@\""),
    (
        "outrigger-proxy",
        "[ \"$1\" = intercept ] && exec /usr/local/bin/program \"$@\"\nexec /usr/local/bin/program proxy \"$@\"",
    ),
];

fn place_programs(machine: &Machine, folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    for (name, text) in PROGRAMS {
        machine.program(folder, name, &format!("#!/bin/sh\n{text}\n"));
    }
}

fn can_type() -> bool {
    require::netns() && ["curl", "nft", "setpriv"].iter().all(|name| require::tool(name).is_some())
}

#[test]
fn the_build_command_of_the_readme_builds_all_programs() {
    assert!(page("README.md").contains("\n    cargo build --release --workspace --bins\n"));
    let metadata = MetadataCommand::new().no_deps().exec().unwrap();
    let built: Vec<String> = metadata
        .packages
        .iter()
        .flat_map(|package| &package.targets)
        .filter(|target| target.is_bin() && target.required_features.is_empty())
        .map(|target| target.name.to_string())
        .collect();
    for (name, _) in PROGRAMS {
        assert!(built.iter().any(|built| built == name), "{name} is not among {built:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_page_of_the_readme_can_be_typed_line_by_line() {
    if !can_type() {
        return;
    }
    let (net, directory) = (Net::new(), tempfile::tempdir().unwrap());
    let mut machine = Machine::new(&net, "readme", directory.path());
    symlink(repository().join("config"), directory.path().join("config")).unwrap();
    let readme = page("README.md");
    let text = readme.split("## Use it").nth(1).unwrap().split("\n## ").next().unwrap().to_owned();
    let mut typed = 0;
    for command in blocks(&text, 4).into_iter().flatten() {
        typed += 1;
        if command.starts_with("cargo build") {
            // What it builds is the test's above.
            place_programs(&machine, &directory.path().join("target/release"));
            continue;
        }
        if command.starts_with("outrigger traces") {
            let waterfall = eventually("a trace that says what both sidecars did", || async {
                let Output { stdout, .. } = machine.shell(&command).output().unwrap();
                let text = String::from_utf8_lossy(&stdout).into_owned();
                if text.contains("catalog.shop") { Ok(text) } else { Err(text + &machine.logs()) }
            })
            .await;
            assert!(waterfall.contains("web.shop"), "{waterfall}");
            continue;
        }
        let said = machine.types(&command).await;
        match command.as_str() {
            "outrigger status" => assert!(said.contains("catalog-1") && said.contains("web-1"), "{said}"),
            explain if explain.starts_with("outrigger explain") => {
                assert!(
                    said.contains("goes to outbound|8080||catalog.shop.svc.cluster.local, catalog-1"),
                    "{said}"
                );
                assert!(said.contains("route catalog[0] (VirtualService shop/catalog)"), "{said}");
            }
            "outrigger get virtualservice" => assert!(said.contains("catalog"), "{said}"),
            _ => {}
        }
    }
    assert!(typed >= 14, "{typed} commands were found");
    let rules = std::fs::read_to_string(directory.path().join("all-rules.yaml")).unwrap();
    assert!(rules.contains("VirtualService"), "{rules}");
    let join = std::fs::read_to_string(directory.path().join("catalog.join")).unwrap();
    assert!(join.contains(&machine.host.v4().to_string()), "an address that others reach: {join}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_of_instances_can_be_typed_line_by_line() {
    if !can_type() {
        return;
    }
    let (net, directory) = (Net::new(), tempfile::tempdir().unwrap());
    let mut machine = Machine::new(&net, "instances", directory.path());
    symlink(repository().join("config"), directory.path().join("config")).unwrap();
    // What it says is on the path.
    place_programs(&machine, &directory.path().join("programs"));
    machine.exported = format!("export PATH='{}':\"$PATH\"\n", directory.path().join("programs").display());
    let mut typed = Vec::new();
    for command in blocks(&page("docs/instances.md"), 4).into_iter().flatten() {
        let said = machine.types(&command).await;
        match command.as_str() {
            "outrigger instance list" => {
                assert!(said.contains("catalog-1") && said.contains("shop/web"), "{said}");
            }
            "outrigger service list -n shop" => {
                let there = ["pay.example.com", "443/tls", "ServiceEntry shop/ledger", "catalog.shop.svc"];
                assert!(there.iter().all(|word| said.contains(word)), "{said}");
            }
            _ if command.contains("%{http_code}") => assert_eq!(said.trim(), "503", "{}", machine.logs()),
            _ => {}
        }
        typed.push(command);
    }
    let verbs = ["register catalog", "list", "drain", "get", "deregister", "register -f", "heartbeat"];
    let services = ["list", "get", "register", "deregister"].map(|verb| format!("outrigger service {verb}"));
    for verb in verbs.map(|verb| format!("outrigger instance {verb}")).into_iter().chain(services) {
        assert!(typed.iter().any(|command| command.starts_with(&verb)), "{verb}: {typed:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_for_virtual_machines_can_be_typed_line_by_line() {
    if !can_type() || require::tool("systemd-sysusers").is_none() {
        return;
    }
    let (net, directory) = (Net::new(), tempfile::tempdir().unwrap());
    let control = Machine::new(&net, "control", directory.path());
    let machine = Machine::new(&net, "vm", directory.path());
    let (control_ip, own) = (control.host.v4(), machine.host.v4().to_string());
    let hosts = machine.root.join("etc/hosts");
    let known = std::fs::read_to_string(&hosts).unwrap_or_default();
    std::fs::write(&hosts, format!("{known}\n{control_ip} control.example\n")).unwrap();
    place_programs(&control, &control.root.join("usr/local/bin"));
    place_programs(&machine, directory.path());
    symlink(repository().join("deploy"), directory.path().join("deploy")).unwrap();

    // Who types each block, and what the last of it says.
    let says = ["", "", "registered", "LIVE", "catalog-1"];
    let mut places = [control, machine];
    let blocks = blocks(&page("deploy/vm/README.md"), 7);
    assert_eq!(blocks.len(), says.len(), "{blocks:?}");
    for ((block, expected), place) in blocks.iter().zip(says).zip([0, 1, 0, 1, 0]) {
        for command in block {
            // The page cannot know what address the machine has.
            let said = places[place].types(&command.replace("10.0.0.7", &own)).await;
            assert!(*command != block[block.len() - 1] || said.contains(expected), "{command}: {said}");
        }
    }
}
