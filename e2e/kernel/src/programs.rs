//! Tests of other programs as cases.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::host::absolute;

/// A test program, with Rust's own test harness.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Tests {
    /// Before the names of its tests, with `::`.
    pub(crate) group: String,
    program: PathBuf,
    names: Vec<String>,
    /// Its tests are ignored elsewhere.
    ignored: bool,
}

/// GROUP=PROGRAM.
pub(crate) fn parse(text: &str) -> Result<Tests, String> {
    let (group, program) = text
        .split_once('=')
        .filter(|(group, program)| !group.is_empty() && !program.is_empty())
        .ok_or("expected GROUP=PROGRAM, as in mesh=target/debug/deps/mesh-1a2b")?;
    Ok(Tests {
        group: group.to_owned(),
        program: program.into(),
        names: Vec::new(),
        ignored: false,
    })
}

impl Tests {
    /// Asks the program for its tests: those that are ignored, or all if none is.
    ///
    /// # Errors
    /// It does not start, or has no tests.
    pub(crate) fn find(&self) -> Result<Self> {
        let program = absolute(&self.program)?;
        let ignored = list(&program, &["--ignored"])?;
        let (names, ignored) = if ignored.is_empty() {
            (list(&program, &[])?, false)
        } else {
            (ignored, true)
        };
        ensure!(!names.is_empty(), "{} has no tests", program.display());
        Ok(Self {
            group: self.group.clone(),
            program,
            names,
            ignored,
        })
    }

    /// GROUP::TEST of each.
    pub(crate) fn names(&self) -> impl Iterator<Item = String> {
        let full = |name: &String| format!("{}::{name}", self.group);
        self.names.iter().map(full)
    }

    /// Runs the test of that full name, if it is one of these.
    pub(crate) fn command(&self, name: &str) -> Option<Command> {
        let test = name.strip_prefix(&self.group)?.strip_prefix("::")?;
        self.names.iter().find(|own| *own == test)?;
        let mut command = Command::new(&self.program);
        command.args([test, "--exact", "--nocapture"]);
        if self.ignored {
            command.arg("--ignored");
        }
        Some(command)
    }
}

fn list(program: &Path, more: &[&str]) -> Result<Vec<String>> {
    let mut command = Command::new(program);
    let output = command.args(["--list", "--format", "terse"]).args(more);
    let output = output
        .output()
        .with_context(|| format!("starting {}", program.display()))?;
    let said = String::from_utf8(output.stdout)?;
    let names = said.lines().filter_map(|line| line.strip_suffix(": test"));
    Ok(names.map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_is_run_by_its_group_and_name() {
        let mut tests = parse("xfrm=/bin/t").unwrap();
        tests.names = vec!["a::b".to_owned()];
        tests.ignored = true;
        assert_eq!(tests.names().collect::<Vec<_>>(), ["xfrm::a::b"]);
        let command = tests.command("xfrm::a::b").unwrap();
        let arguments: Vec<_> = command.get_args().collect();
        assert_eq!(arguments, ["a::b", "--exact", "--nocapture", "--ignored"]);
        for other in ["xfrm::a", "mesh::a::b", "xfrma::b"] {
            assert!(tests.command(other).is_none(), "{other}");
        }
        assert!(parse("xfrm").is_err() && parse("=x").is_err());
    }
}
