//! `target/kernel/report.json` and the table.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    Pass,
    Fail,
}

/// What a case counted. `None`: it does not count that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Packets of the flows between pods while the case did its work.
    pub(crate) sent: Option<u64>,
    /// Those of them that did not arrive.
    pub(crate) lost: Option<u64>,
    /// By how much all counters of /proc/net/xfrm_stat grew meanwhile, over all nodes.
    pub(crate) xfrm_errors: Option<u64>,
    /// Pod packets on the wire in clear where none may be.
    pub(crate) clear_packets: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) kernel: String,
    pub(crate) case: String,
    pub(crate) result: Outcome,
    #[serde(flatten)]
    pub(crate) measured: Measured,
    pub(crate) detail: String,
}

impl Row {
    /// Of a case that left nothing behind.
    pub(crate) fn failed(kernel: &str, case: &str, detail: impl Into<String>) -> Self {
        Self {
            kernel: kernel.to_owned(),
            case: case.to_owned(),
            result: Outcome::Fail,
            measured: Measured::default(),
            detail: detail.into(),
        }
    }
}

/// One line per row.
pub(crate) fn table(rows: &[Row]) -> String {
    let heads = [
        "kernel", "case", "result", "sent", "lost", "errors", "clear",
    ];
    let mut lines = vec![heads.map(str::to_owned)];
    lines.extend(rows.iter().map(cells));
    let longest = |at: usize| lines.iter().map(|cells| cells[at].chars().count()).max();
    let [kernel, case] = [0, 1].map(|at| longest(at).unwrap_or_default());
    let mut out = String::new();
    for [of, name, result, sent, lost, errors, clear] in &lines {
        let _ok = writeln!(
            out,
            "{of:<kernel$} {name:<case$} {result:<6} {sent:>7} {lost:>5} {errors:>6} {clear:>5}"
        );
    }
    out
}

fn cells(row: &Row) -> [String; 7] {
    let count = |count: Option<u64>| count.map_or_else(|| "-".into(), |n| n.to_string());
    let result = match row.result {
        Outcome::Pass => "pass",
        Outcome::Fail => "FAIL",
    };
    let measured = &row.measured;
    let counts = [
        measured.sent,
        measured.lost,
        measured.xfrm_errors,
        measured.clear_packets,
    ];
    let [sent, lost, errors, clear] = counts.map(count);
    [
        row.kernel.clone(),
        row.case.clone(),
        result.into(),
        sent,
        lost,
        errors,
        clear,
    ]
}

/// The closing line.
pub(crate) fn summary(rows: &[Row]) -> String {
    let passed = rows
        .iter()
        .filter(|row| row.result == Outcome::Pass)
        .count();
    format!("{passed} passed, {} failed", rows.len() - passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_flat_and_counted() {
        let measured = Measured {
            sent: Some(5),
            lost: Some(0),
            ..Measured::default()
        };
        let passed = Row {
            result: Outcome::Pass,
            measured,
            ..Row::failed("6.1", "basic", "")
        };
        let json = serde_json::to_value(&passed).unwrap();
        assert_eq!(
            (&json["sent"], &json["xfrm_errors"]),
            (&5.into(), &serde_json::Value::Null)
        );
        assert_eq!(json["result"], "pass");
        let rows = [passed, Row::failed("6.1", "udp", "why")];
        assert_eq!(summary(&rows), "1 passed, 1 failed");
        let table = table(&rows);
        let cells: Vec<&str> = table
            .lines()
            .nth(1)
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        assert_eq!(cells, ["6.1", "basic", "pass", "5", "0", "-", "-"]);
    }
}
