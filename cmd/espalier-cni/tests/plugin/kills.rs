//! SIGKILL at every step: after each system call of the plugin that can change something outside of it. What is left then, the
//! next DEL or GC takes away.

use std::collections::HashMap;
use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use espalier_testnet::isolated;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::{FakeAgent, TestNode};
use crate::with;

const CIDRS: &str = "10.244.1.0/24,fd00:1::/64";
/// More calls than a verb makes.
const MANY: usize = 400;

#[test]
fn an_add_killed_anywhere_leaves_nothing_that_del_does_not_remove() {
    isolated(
        "kills::an_add_killed_anywhere_leaves_nothing_that_del_does_not_remove",
        || killed_add("DEL"),
    );
}

#[test]
fn an_add_killed_anywhere_leaves_nothing_that_gc_does_not_remove() {
    isolated(
        "kills::an_add_killed_anywhere_leaves_nothing_that_gc_does_not_remove",
        || killed_add("GC"),
    );
}

fn killed_add(cure: &str) {
    let node = TestNode::new();
    let agent = FakeAgent::start(&node, CIDRS);
    let config = node.config("1.1.0");
    let nobody = with(config.clone(), "cni.dev/valid-attachments", json!([]));
    let before = node.traces();
    let mut had_veth = 0;
    for call in 1..MANY {
        let killed = killed_after(&node, "ADD", &config, call);
        // The agent may be at the request still.
        std::thread::sleep(Duration::from_millis(5));
        had_veth += usize::from(!espalier_podnet::list().unwrap().is_empty());
        let unfinished = espalier_podnet::list().unwrap();
        assert!(
            unfinished.iter().all(|veth| veth.owner.is_some()),
            "call {call}: {unfinished:?} does not say whose it is"
        );
        node.call(cure, if cure == "GC" { &nobody } else { &config })
            .succeeded();
        assert_eq!(node.traces(), before, "call {call}");
        assert_eq!((agent.leases(), node.queued()), (0, 0), "call {call}");
        if !killed {
            // Killed before, with and after the interface.
            assert!(had_veth > 3 && call > had_veth + 3, "{call}, {had_veth}");
            return;
        }
    }
    panic!("ADD made more than {MANY} calls");
}

#[test]
fn a_del_killed_anywhere_is_finished_by_the_next() {
    isolated(
        "kills::a_del_killed_anywhere_is_finished_by_the_next",
        || {
            let node = TestNode::new();
            let config = node.config("1.1.0");
            let before = node.traces();
            for old in [false, true] {
                let agent = FakeAgent::start(&node, CIDRS);
                agent.mood(crate::support::Mood {
                    old,
                    ..Default::default()
                });
                for call in 1..MANY {
                    node.add("1.1.0");
                    let killed = killed_after(&node, "DEL", &config, call);
                    std::thread::sleep(Duration::from_millis(5));
                    node.call("DEL", &config).succeeded();
                    assert_eq!(node.traces(), before, "call {call}");
                    assert_eq!((agent.leases(), node.queued()), (0, 0), "call {call}");
                    if !killed {
                        assert!(call > 3);
                        break;
                    }
                }
            }
        },
    );
}

/// Queued releases are files: neither half of one nor a lost one.
#[test]
fn a_del_without_agent_killed_anywhere_owes_what_the_next_says() {
    isolated(
        "kills::a_del_without_agent_killed_anywhere_owes_what_the_next_says",
        || {
            let node = TestNode::new();
            let config = node.config("1.1.0");
            for call in 1..MANY {
                let agent = FakeAgent::start(&node, CIDRS);
                node.add("1.1.0");
                drop(agent);
                let killed = killed_after(&node, "DEL", &config, call);
                let listed = espalier_ipam::pending::list(&node.state);
                assert!(listed.iter().all(Result::is_ok), "call {call}: {listed:?}");
                node.call("DEL", &config).succeeded();
                assert_eq!(node.queued(), 1, "call {call}");
                let agent = FakeAgent::start(&node, CIDRS);
                assert_eq!(agent.consume(&node).released.len(), 1);
                assert_eq!((agent.leases(), node.queued()), (0, 0), "call {call}");
                if !killed {
                    return;
                }
            }
            panic!("DEL made more than {MANY} calls");
        },
    );
}

/// Runs a verb and kills it after so many calls that change something. False: it had ended before.
#[allow(
    clippy::zombie_processes,
    reason = "`follow` waits, for all its threads"
)]
fn killed_after(node: &TestNode, verb: &str, config: &Value, calls: usize) -> bool {
    let mut child = node
        .command(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let main = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let options =
        Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL;
    // It cannot go on without its configuration.
    ptrace::seize(main, options).unwrap();
    ptrace::interrupt(main).unwrap();
    let stopped = waitpid(main, Some(WaitPidFlag::__WALL)).unwrap();
    assert!(
        matches!(stopped, WaitStatus::PtraceEvent(..)),
        "{stopped:?}"
    );
    go_on(main, None);
    let mut input = child.stdin.take().unwrap();
    input.write_all(config.to_string().as_bytes()).unwrap();
    drop(input);
    follow(main, calls)
}

fn follow(main: Pid, calls: usize) -> bool {
    let (mut inside, mut left) = (HashMap::new(), calls);
    let mut reading = false;
    loop {
        match waitpid(None, Some(WaitPidFlag::__WALL)).unwrap() {
            WaitStatus::PtraceSyscall(thread) => {
                let changes = match inside.remove(&thread) {
                    None => {
                        inside.insert(thread, call_of(thread));
                        false
                    }
                    Some(call) => {
                        // What the dynamic loader does before is not the plugin's.
                        reading |= call == STDIN;
                        reading && CHANGES.contains(&call.0)
                    }
                };
                left -= usize::from(changes);
                if left == 0 {
                    kill(main, Signal::SIGKILL).unwrap();
                    return !reap(main);
                }
                go_on(thread, None);
            }
            WaitStatus::PtraceEvent(thread, ..) => go_on(thread, None),
            WaitStatus::Stopped(thread, signal) => go_on(thread, Some(signal)),
            WaitStatus::Exited(process, _) | WaitStatus::Signaled(process, ..)
                if process == main =>
            {
                return false;
            }
            _ => {}
        }
    }
}

/// A thread that is just ending is not there any more.
fn go_on(thread: Pid, signal: Option<Signal>) {
    let _ = ptrace::syscall(thread, signal);
}

/// Waits until the process is gone; true: it had ended by itself.
fn reap(main: Pid) -> bool {
    loop {
        match waitpid(None, Some(WaitPidFlag::__WALL)).unwrap() {
            WaitStatus::Signaled(process, Signal::SIGKILL, _) if process == main => return false,
            WaitStatus::Exited(process, _) if process == main => return true,
            _ => {}
        }
    }
}

/// Number and first argument: proc_pid_syscall(5).
fn call_of(thread: Pid) -> (i64, u64) {
    let path = format!("/proc/{thread}/syscall");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let mut words = text.split_whitespace();
    let number = words.next().and_then(|n| n.parse().ok());
    let first = words.next().and_then(|n| n.strip_prefix("0x"));
    let first = first.and_then(|n| u64::from_str_radix(n, 16).ok());
    (number.unwrap_or(-1), first.unwrap_or(u64::MAX))
}

/// The plugin's first call: it reads its configuration.
const STDIN: (i64, u64) = (libc::SYS_read, 0);

const CHANGES: &[i64] = &[
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_connect,
    libc::SYS_openat,
    libc::SYS_renameat2,
    libc::SYS_unlinkat,
    libc::SYS_mkdirat,
    libc::SYS_fsync,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
];
