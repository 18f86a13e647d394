//! What the demo tells while it runs, and what it claims at the end.

use std::io::{IsTerminal as _, Write as _, stdout};
use std::time::Instant;

use crate::status::align;

/// Progress lines and claims.
#[derive(Debug)]
pub(super) struct Board {
    terminal: bool,
    begin: Instant,
    step: String,
    claims: Vec<Claim>,
}

/// Something that is promised, and what was measured.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    text: String,
    value: String,
    bound: String,
    holds: bool,
}

impl Board {
    pub(super) fn new() -> Self {
        Self {
            terminal: stdout().is_terminal(),
            begin: Instant::now(),
            step: String::new(),
            claims: Vec::new(),
        }
    }

    /// Seconds since the start.
    pub(super) fn seconds(&self) -> f64 {
        self.begin.elapsed().as_secs_f64()
    }

    /// Begins a step.
    pub(super) fn step(&mut self, text: &str) {
        text.clone_into(&mut self.step);
        self.live("");
    }

    /// Shows how the step gets on; on a terminal only.
    pub(super) fn live(&self, text: &str) {
        if self.terminal {
            let line = format!("{:6.1} s  {} {text}", self.seconds(), self.step);
            let line: String = line.chars().take(100).collect();
            print!("\r\x1b[K{line}");
            let _ = stdout().flush();
        }
    }

    /// Ends the step with its result.
    pub(super) fn done(&self, result: &str) {
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        println!("{clear}{:6.1} s  {}: {result}", self.seconds(), self.step);
    }

    /// A line between the steps.
    pub(super) fn note(&self, text: &str) {
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        println!("{clear}{text}");
    }

    /// Records a claim.
    pub(super) fn claim(&mut self, text: &str, value: impl ToString, bound: &str, holds: bool) {
        self.claims.push(Claim {
            text: text.to_owned(),
            value: value.to_string(),
            bound: bound.to_owned(),
            holds,
        });
    }

    /// Records the claim that nothing of a kind happened; `details` are shown at once when it did.
    pub(super) fn claim_none(&mut self, text: &str, count: u64, details: &[String]) {
        self.claim(text, count, "0", count == 0);
        if count > 0 {
            for detail in details.iter().take(8) {
                self.note(&format!("          {detail}"));
            }
        }
    }

    /// The claims that do not hold.
    pub(super) fn broken(&self) -> impl Iterator<Item = &str> {
        let broken = self.claims.iter().filter(|claim| !claim.holds);
        broken.map(|claim| claim.text.as_str())
    }

    /// All claims as a table.
    pub(super) fn table(&self) -> String {
        let header = ["CLAIM", "MEASURED", "BOUND", ""].map(str::to_owned);
        let rows = self.claims.iter().map(|claim| {
            let verdict = if claim.holds { "PASS" } else { "FAIL" };
            [
                claim.text.clone(),
                claim.value.clone(),
                claim.bound.clone(),
                verdict.to_owned(),
            ]
        });
        align(std::iter::once(header).chain(rows).collect())
    }
}
