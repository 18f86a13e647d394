//! `target/interop/report.json` and the table.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    Pass,
    /// The foreign implementation cannot do it; the detail is the evidence.
    PeerLimit,
    Fail,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) peer: String,
    pub(crate) version: String,
    pub(crate) role: String,
    pub(crate) auth: String,
    pub(crate) case: String,
    pub(crate) result: Outcome,
    pub(crate) detail: String,
}

/// One line per case and peer; the four cells are role/authentication.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut out = String::new();
    let mut keys: Vec<(String, String)> = Vec::new();
    for row in rows {
        let key = (format!("{} {}", row.peer, row.version), row.case.clone());
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let columns = [
        "initiator/psk",
        "initiator/ecdsa",
        "responder/psk",
        "responder/ecdsa",
        "none/none",
    ];
    let _ok = writeln!(
        out,
        "{:<34} {:<22} {}",
        "peer",
        "case",
        columns.map(|column| format!("{column:<16}")).concat()
    );
    for (peer, case) in keys {
        let cell = |column: &str| {
            let found = rows.iter().find(|row| {
                let of = format!("{}/{}", row.role, row.auth);
                format!("{} {}", row.peer, row.version) == peer && row.case == case && of == column
            });
            match found.map(|row| row.result) {
                Some(Outcome::Pass) => "pass",
                Some(Outcome::PeerLimit) => "peer-limit",
                Some(Outcome::Fail) => "FAIL",
                None => "-",
            }
        };
        let cells = columns
            .map(|column| format!("{:<16}", cell(column)))
            .concat();
        let _ok = writeln!(out, "{peer:<34} {case:<22} {}", cells.trim_end());
    }
    out
}

/// The closing line.
pub(crate) fn summary(rows: &[Row]) -> String {
    let count = |outcome| rows.iter().filter(|row| row.result == outcome).count();
    format!(
        "{} passed, {} peer-limit, {} failed",
        count(Outcome::Pass),
        count(Outcome::PeerLimit),
        count(Outcome::Fail)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(role: &str, result: Outcome) -> Row {
        let text = str::to_owned;
        Row {
            peer: text("strongSwan"),
            version: text("5.9.8"),
            role: text(role),
            auth: text("psk"),
            case: text("tunnel"),
            result,
            detail: String::new(),
        }
    }

    #[test]
    fn rows_of_one_case_share_a_line_and_are_counted() {
        let rows = [
            row("initiator", Outcome::Pass),
            row("responder", Outcome::PeerLimit),
        ];
        let table = table(&rows);
        let line = table.lines().nth(1).unwrap();
        let cells: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(cells[2..], ["tunnel", "pass", "-", "peer-limit", "-", "-"]);
        assert_eq!(summary(&rows), "1 passed, 1 peer-limit, 0 failed");
    }
}
