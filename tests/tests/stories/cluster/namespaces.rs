//! The README's cluster, command by command, on machines that are network namespaces: each with an address, a name and folders
//! of its own, joined by a bridge. Needs root and `ip`.

use super::machines::{Machine, Started, events, until};
use crate::harness::{argosy_to_end_in, my_turn, program, text};
use crate::{Stage, stage};
use argosy_common::events::RunEvent;
use argosy_test_stores::{Faults, Kind, S3Double};
use nix::sys::signal::Signal;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

const README: &str = include_str!("../../../../README.md");
const HEADING: &str = "## A cluster in ten minutes";
/// What stands in the README for the run's address.
const EXAMPLE_URL: &str = "s3://bucket/runs/my-clip-0a1b2c3d";
const MACHINES: [&str; 8] = ["desk", "etcd-1", "head-1", "head-2", "gpu-1", "gpu-2", "gpu-3", "gpu-4"];
const EPOCHS: u32 = 120;

/// The section's commands with the machines they are for, in order.
fn commands() -> Vec<(Vec<String>, String)> {
    let (_, section) = README.split_once(HEADING).expect("the section");
    let section = section.split("\n## ").next().expect("its text");
    let mut found = Vec::new();
    for block in section.split("```console\n").skip(1) {
        let block = block.split("```").next().expect("its end").replace("\\\n", " ");
        let mut hosts = Vec::new();
        for line in block.lines() {
            if let Some(named) = line.strip_prefix("# on ") {
                hosts = named.split(", ").map(str::to_owned).collect();
            } else if let Some(command) = line.strip_prefix("$ ") {
                found.push((hosts.clone(), command.to_owned()));
            }
        }
    }
    found
}

/// A bridge and the namespaces on it; taken down with its guard.
struct Net {
    /// Told from others' by the process id.
    tag: String,
    subnet: String,
}

fn ip(args: &str) {
    let status = Command::new("ip").args(args.split(' ')).status().expect("ip starts");
    assert!(status.success(), "ip {args}");
}

impl Net {
    fn new() -> Self {
        let pid = std::process::id();
        let net = Self {
            tag: format!("a{:x}", pid & 0xffff),
            subnet: format!("10.{}.{}", 128 + pid % 100, pid / 100 % 250),
        };
        let (bridge, subnet) = (net.bridge(), &net.subnet);
        ip(&format!("link add {bridge} type bridge"));
        ip(&format!("addr add {subnet}.1/24 dev {bridge}"));
        ip(&format!("link set {bridge} up"));
        let mut hosts = String::from("127.0.0.1 localhost\n");
        for (i, name) in MACHINES.iter().enumerate() {
            let _ = writeln!(hosts, "{subnet}.{} {name}", 10 + i);
        }
        for (i, name) in MACHINES.iter().enumerate() {
            let (space, cable) = (net.space(name), net.cable(name));
            ip(&format!("netns add {space}"));
            ip(&format!("link add {cable} type veth peer name eth0 netns {space}"));
            ip(&format!("link set {cable} master {bridge} up"));
            ip(&format!("-n {space} addr add {subnet}.{}/24 dev eth0", 10 + i));
            ip(&format!("-n {space} link set eth0 up"));
            ip(&format!("-n {space} link set lo up"));
            // `ip netns exec` lays it over /etc/hosts.
            std::fs::create_dir_all(format!("/etc/netns/{space}")).expect("a folder for names");
            std::fs::write(format!("/etc/netns/{space}/hosts"), &hosts).expect("names");
        }
        net
    }

    fn bridge(&self) -> String {
        format!("{}br", self.tag)
    }

    fn space(&self, name: &str) -> String {
        format!("{}-{name}", self.tag)
    }

    fn cable(&self, name: &str) -> String {
        let at = MACHINES.iter().position(|m| *m == name).expect("a machine");
        format!("{}v{at}", self.tag)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let quietly = |args: &[&str]| {
            let _ = Command::new("ip").args(args).output();
        };
        for name in MACHINES {
            let space = self.space(name);
            quietly(&["link", "del", &self.cable(name)]);
            quietly(&["netns", "del", &space]);
            let _ = std::fs::remove_dir_all(format!("/etc/netns/{space}"));
        }
        quietly(&["link", "del", &self.bridge()]);
    }
}

/// The machines, and how a command of the README is run on one of them.
struct Site {
    net: Net,
    stage: Stage,
    double: S3Double,
    url: String,
}

impl Site {
    fn new() -> Self {
        let net = Net::new();
        let stage = stage(
            EPOCHS,
            "[workers]\nmin = 2\ntarget = 4\n[checkpoint]\nurl = \"s3://bucket/runs\"\nevery_samples = 4800\n",
        );
        let address = format!("{}.1:0", net.subnet).parse().expect("an address");
        let double = S3Double::start_at(address, Kind::S3, Faults::default(), 1000).expect("a server");
        for entry in std::fs::read_dir(stage.path("shards")).expect("shards") {
            let path = entry.expect("a shard").path();
            let key = format!("squares/{}", path.file_name().expect("a name").to_string_lossy());
            double.insert("data", &key, std::fs::read(&path).expect("a shard"));
        }
        let site = Self {
            net,
            stage,
            double,
            url: String::new(),
        };
        for name in MACHINES {
            for folder in ["etc", "var"] {
                std::fs::create_dir_all(site.root(name).join(folder)).expect("a folder");
            }
        }
        let job = std::fs::read_to_string(&site.stage.job).expect("a job");
        let job = job.replace("\"shards\"", "\"s3://data/squares/\"");
        std::fs::write(site.root("desk").join("job.toml"), job).expect("a job");
        site.write_tools();
        site
    }

    fn root(&self, name: &str) -> PathBuf {
        self.stage.path("machines").join(name)
    }

    /// Programs where a shell finds them, and a `scp` that copies to a machine's own folder.
    fn write_tools(&self) {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        let tools = self.stage.path("tools");
        std::fs::create_dir(&tools).expect("a folder");
        for name in ["argosy", "argosy-worker", "argosy-coordinator"] {
            symlink(program(name), tools.join(name)).expect("a link");
        }
        let etcd = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/toolchain/etcd/bin/etcd");
        symlink(std::env::var_os("ETCD").map_or(etcd, PathBuf::from), tools.join("etcd")).expect("a link");
        let machines = self.stage.path("machines");
        let script = format!(
            "#!/bin/sh\n# scp OPTIONS FROM MACHINE:/etc/argosy/NAME\nmachine=${{3%%:*}}\nexec cp -rp \"$2\" \
             \"{}/$machine/etc/${{3##*/etc/argosy/}}\"\n",
            text(&machines)
        );
        let path = tools.join("scp");
        std::fs::write(&path, script).expect("a script");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("its mode");
    }

    /// As the machine has it: its own folders, this run's address.
    fn localised(&self, name: &str, command: &str) -> String {
        let command = command.replace(EXAMPLE_URL, &self.url);
        if command.contains("scp ") {
            return command;
        }
        let root = self.root(name);
        command
            .replace("/etc/argosy", text(&root.join("etc")))
            .replace("/var/lib/argosy", text(&root.join("var")))
    }

    fn on(&self, name: &str, command: &str) -> Command {
        let path = format!(
            "{}:{}",
            text(&self.stage.path("tools")),
            std::env::var("PATH").unwrap_or_default()
        );
        let mut shell = Command::new("ip");
        shell
            .args(["netns", "exec", &self.net.space(name), "bash", "-c"])
            .arg(format!(
                "cd '{}' && exec_it() {{ {command}; }} && exec_it",
                text(&self.root(name))
            ))
            .env("PATH", path)
            .env("OMP_NUM_THREADS", "1");
        shell
    }

    /// Runs a command to its end; its stdout.
    fn carry_out(&self, name: &str, command: &str) -> String {
        let output = self
            .on(name, &self.localised(name, command))
            .envs(self.double.environment())
            .output()
            .expect("a shell");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}$ {command}\n{said}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Starts a command that stays; its shell gives way to it, so that a signal reaches it.
    fn begin(&self, name: &str, command: &str) -> Started {
        let machine = Machine {
            name: name.to_owned(),
            folder: self.root(name),
            environment: self.double.environment(),
        };
        machine.spawn(self.on(name, &format!("exec {}", self.localised(name, command))))
    }

    fn events(&self, head: &str) -> Vec<RunEvent> {
        events(&self.root(head).join("var/coordinator"))
    }

    fn any(&self, is: impl Fn(&RunEvent) -> bool) -> bool {
        ["head-1", "head-2"]
            .iter()
            .any(|head| self.events(head).iter().any(&is))
    }

    /// The coordinator that began to lead last, and its last step.
    fn last_step(&self, head: &str) -> u64 {
        let steps = self.events(head).into_iter().filter_map(|e| match e {
            RunEvent::StepDone { report, .. } => Some(report.name.step),
            _ => None,
        });
        steps.max().unwrap_or(0)
    }
}

fn of_members(event: &RunEvent, count: usize) -> bool {
    matches!(event, RunEvent::GenerationFormed { members, .. } if members.len() == count)
}

fn may_run() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    root && Command::new("ip")
        .args(["netns", "list"])
        .output()
        .is_ok_and(|o| o.status.success())
}

#[test]
#[ignore = "eight network namespaces: the long tier"]
fn story_readme_cluster_in_namespaces_survives_a_cut_cable_and_a_dead_leader() {
    if !may_run() {
        println!("SKIP root and the program ip, for network namespaces");
        return;
    }
    let _turn = my_turn();
    let mut site = Site::new();
    let mut running: Vec<Started> = Vec::new();
    let mut commands = commands();
    let (at_the_end, audit) = commands.pop().expect("commands");
    assert!(
        audit.starts_with("argosy audit") && commands.len() >= 10,
        "{commands:?}"
    );
    for (hosts, command) in &commands {
        assert!(hosts.iter().all(|host| MACHINES.contains(&host.as_str())), "{hosts:?}");
        let stays = ["etcd ", "argosy-coordinator ", "argosy-worker "]
            .iter()
            .any(|p| command.starts_with(p));
        for host in hosts {
            if stays {
                running.push(site.begin(host, command));
            } else {
                let out = site.carry_out(host, command);
                if command.starts_with("argosy prepare") {
                    site.url = out;
                }
            }
        }
    }
    assert_eq!(running.len(), 7);
    let mut all: Vec<&mut Started> = running.iter_mut().collect();
    until("a generation of four", &mut all, || site.any(|e| of_members(e, 4)));
    let leader = if site.events("head-1").is_empty() {
        "head-2"
    } else {
        "head-1"
    };
    let other = if leader == "head-1" { "head-2" } else { "head-1" };
    let at = site.last_step(leader);
    until("steps of it", &mut all, || site.last_step(leader) > at + 20);

    // A cable is pulled: no reset comes, and the others go on.
    ip(&format!("link set {} down", site.net.cable("gpu-2")));
    until("a generation without gpu-2", &mut all, || {
        site.events(leader).iter().any(|e| of_members(e, 3))
    });
    let at = site.last_step(leader);
    until("steps of it", &mut all, || site.last_step(leader) > at + 5);
    ip(&format!("link set {} up", site.net.cable("gpu-2")));

    let dead = running.iter().position(|p| p.name == leader).expect("it runs");
    running[dead].signal(Signal::SIGKILL);
    running.remove(dead).wait();
    let mut all: Vec<&mut Started> = running.iter_mut().filter(|p| p.name != "gpu-2").collect();
    until("the standby leads", &mut all, || site.last_step(other) > 0);

    let ends = |p: &Started| p.name.starts_with("head") || p.name.starts_with("gpu") && p.name != "gpu-2";
    for process in running.iter_mut().filter(|p| ends(p)) {
        assert_eq!(process.wait(), 0, "{}: {}", process.name, process.said());
    }
    assert_eq!(at_the_end, ["head-1"]);
    let report = site.carry_out(other, &format!("{audit} -o json"));
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    let positions = u64::from(EPOCHS) * (crate::SHARDS * crate::ROWS) as u64;
    assert_eq!(
        (&report["trained"], &report["finished"]),
        (&positions.into(), &true.into()),
        "{report:#}"
    );
    let from_afar = argosy_to_end_in(
        &site.double.environment(),
        &["checkpoints", text(&site.root(other).join("var/coordinator"))],
    );
    assert_eq!(from_afar.0, Some(0), "{}", from_afar.2);
}

#[test]
fn readme_cluster_has_its_commands_in_the_order_of_a_cluster() {
    let commands = commands();
    let first = |program: &str| {
        commands
            .iter()
            .position(|(_, c)| c.starts_with(program))
            .unwrap_or(usize::MAX)
    };
    let order = [
        "argosy pki init",
        "etcd ",
        "argosy prepare",
        "argosy-coordinator ",
        "argosy-worker ",
        "argosy audit",
    ];
    let places: Vec<usize> = order.iter().map(|program| first(program)).collect();
    assert!(
        places.is_sorted() && places[5] < commands.len(),
        "{places:?}: {commands:?}"
    );
    let (hosts, join) = &commands[places[4]];
    assert_eq!(hosts.len(), 4);
    assert_eq!(
        join.split_whitespace().filter(|word| word.starts_with("--")).count(),
        2,
        "all that a new machine runs: {join}"
    );
}
