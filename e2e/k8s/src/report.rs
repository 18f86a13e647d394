//! `target/e2e/report.json` and the table.

use std::fmt::Write as _;

use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    Pass,
    Fail,
}

/// What a case counted. `None`: it does not count that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Measured {
    /// Packets of the flows while the case did its work.
    pub(crate) sent: Option<u64>,
    /// Those that did not arrive.
    pub(crate) lost: Option<u64>,
    /// ESP packets on the underlay.
    pub(crate) esp_packets: Option<u64>,
    /// Packets between pods on the underlay in clear where none may be.
    pub(crate) clear_packets: Option<u64>,
    /// The same at the default gateway.
    pub(crate) gateway_clear_packets: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Row {
    pub(crate) case: String,
    pub(crate) result: Outcome,
    /// How long it took.
    pub(crate) seconds: f64,
    #[serde(flatten)]
    pub(crate) measured: Measured,
    pub(crate) detail: String,
}

/// One line per row.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut out = String::new();
    let longest = rows.iter().map(|row| row.case.len()).max().unwrap_or(4);
    let _ok = writeln!(
        out,
        "{:<longest$} result {:>7} {:>8} {:>6} {:>8} {:>6} {:>7}",
        "case", "seconds", "sent", "lost", "ESP", "clear", "gateway"
    );
    for row in rows {
        let _ok = writeln!(out, "{}", line(row, longest));
    }
    out
}

fn line(row: &Row, longest: usize) -> String {
    let count = |count: Option<u64>| count.map_or_else(|| "-".into(), |n| n.to_string());
    let m = &row.measured;
    let result = match row.result {
        Outcome::Pass => "pass",
        Outcome::Fail => "FAIL",
    };
    format!(
        "{:<longest$} {result:<6} {:>7.1} {:>8} {:>6} {:>8} {:>6} {:>7}",
        row.case,
        row.seconds,
        count(m.sent),
        count(m.lost),
        count(m.esp_packets),
        count(m.clear_packets),
        count(m.gateway_clear_packets),
    )
}

/// The closing line.
pub(crate) fn summary(rows: &[Row]) -> String {
    let passed = rows.iter().filter(|row| row.result == Outcome::Pass);
    let passed = passed.count();
    format!("{passed} passed, {} failed", rows.len() - passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_flat_and_counted() {
        let row = |result| Row {
            case: "toggle".to_owned(),
            result,
            seconds: 1.5,
            measured: Measured {
                sent: Some(5),
                ..Measured::default()
            },
            detail: String::new(),
        };
        let json = serde_json::to_value(row(Outcome::Pass)).unwrap();
        assert_eq!((&json["sent"], &json["lost"]), (&5.into(), &().into()));
        let rows = [row(Outcome::Pass), row(Outcome::Fail)];
        assert_eq!(summary(&rows), "1 passed, 1 failed");
        assert_eq!(table(&rows).lines().count(), 3);
    }
}
