//! Tests that run in a sandbox of their own.

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::sandbox::{command_inside, end_with_outside, inside, prepare, privilege};

/// A test that takes longer is stopped: a hanging test must not hang the machine that builds.
const TIME_LIMIT: Duration = Duration::from_secs(180);

/// Another limit, in seconds, for tests that are told to take long.
const TIME_LIMIT_TOLD: &str = "ESPALIER_TEST_LIMIT";

/// Runs a test's body in a private sandbox. `name` is the test's full name as `cargo test -- --list` prints it
/// (`tests::adds_an_address`, or `adds_an_address` in an integration test).
///
/// The outer run starts the same test program again in the sandbox, for this one test; there `body` runs.
///
/// # Panics
/// The inner run fails, or has not run the body (a wrong name): the panic's text holds its output.
pub fn isolated(name: &str, body: impl FnOnce()) {
    if inside() {
        return run_inner(name, body);
    }
    if let Err(error) = run_outer(name) {
        panic!("{error:#}");
    }
}

fn run_inner(name: &str, body: impl FnOnce()) {
    end_with_outside();
    end_in_time();
    if let Err(error) = prepare() {
        panic!("preparing the sandbox: {error:#}");
    }
    body();
    println!("{}", completion(name));
}

fn run_outer(name: &str) -> Result<()> {
    let program = std::env::current_exe().context("finding the test program's path")?;
    let mut command = command_inside(privilege()?)?;
    command
        .arg(program)
        .args([name, "--exact", "--nocapture", "--include-ignored"]);
    let output = run_held(&mut command)?;
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    if !output.status.success() {
        bail!("{name} failed in its sandbox ({}):\n{text}", output.status);
    }
    if !text.contains(&completion(name)) {
        bail!(
            "{name} did not run in its sandbox: the name must be the test's full path. Output:\n{text}"
        );
    }
    print!("{text}");
    Ok(())
}

/// Runs the command with a pipe as standard input that stays open as long as this process lives.
fn run_held(command: &mut Command) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting `unshare`")?;
    let held = child.stdin.take();
    let output = child
        .wait_with_output()
        .context("waiting for the sandbox")?;
    drop(held);
    Ok(output)
}

/// A hanging test ends after a while.
fn end_in_time() {
    let told = std::env::var(TIME_LIMIT_TOLD).ok();
    let told = told.and_then(|text| text.parse().ok());
    let limit = told.map_or(TIME_LIMIT, Duration::from_secs);
    std::thread::spawn(move || {
        std::thread::sleep(limit);
        eprintln!("stopped after {} s", limit.as_secs());
        std::process::exit(124);
    });
}

fn completion(name: &str) -> String {
    format!("sandbox: {name} completed")
}
