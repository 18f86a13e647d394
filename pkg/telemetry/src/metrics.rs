//! Metrics in Prometheus' text format (version 0.0.4), which every collector reads and `promtool check metrics` checks.

use std::fmt::{Display, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Value of the header `Content-Type`.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a family's samples mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, from 0 at start. Its name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// The text of one scrape, family by family.
#[derive(Debug, Default)]
pub struct Text(String);

impl Text {
    /// Begins a family; its samples follow.
    pub fn family(&mut self, name: &str, kind: Kind, help: &str) -> Family<'_> {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        self.head(name, kind, help);
        Family {
            text: &mut self.0,
            name: name.to_owned(),
        }
    }

    /// A family of one sample without labels.
    pub fn single(&mut self, name: &str, kind: Kind, help: &str, value: impl Display) {
        self.family(name, kind, help).sample(&[], value);
    }

    /// A whole histogram, in seconds.
    pub fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, "histogram", help);
        let mut family = Family {
            text: &mut self.0,
            name: format!("{name}_bucket"),
        };
        let mut up_to = 0;
        for (bound, count) in BOUNDS.iter().zip(&histogram.buckets) {
            up_to += count.load(Ordering::Relaxed);
            family.sample(&[("le", &bound.to_string())], up_to);
        }
        up_to += histogram.beyond.load(Ordering::Relaxed);
        family.sample(&[("le", "+Inf")], up_to);
        name.clone_into(&mut family.name);
        let sum = Duration::from_micros(histogram.sum_us.load(Ordering::Relaxed));
        family.suffixed("_sum", sum.as_secs_f64());
        family.suffixed("_count", up_to);
    }

    /// For the body of the answer.
    #[must_use]
    pub fn into_string(self) -> String {
        self.0
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }
}

/// One family that takes samples.
#[derive(Debug)]
pub struct Family<'a> {
    text: &'a mut String,
    name: String,
}

impl Family<'_> {
    /// Adds a sample with these labels.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<String> = labels
            .iter()
            .map(|(key, value)| format!("{key}=\"{}\"", escaped(value)))
            .collect();
        let labels = match labels.as_slice() {
            [] => String::new(),
            all => format!("{{{}}}", all.join(",")),
        };
        let _ = writeln!(self.text, "{}{labels} {value}", self.name);
    }

    fn suffixed(&mut self, suffix: &str, value: impl Display) {
        let _ = writeln!(self.text, "{}{suffix} {value}", self.name);
    }
}

fn escaped(value: &str) -> String {
    let value = value.replace('\\', "\\\\");
    value.replace('"', "\\\"").replace('\n', "\\n")
}

/// Upper bounds of buckets in seconds: handshakes take milliseconds, and up to minutes where packets are lost.
const BOUNDS: [f64; 12] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0, 60.0,
];

/// How long something took, counted by buckets.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS.len()],
    beyond: AtomicU64,
    sum_us: AtomicU64,
}

impl Histogram {
    /// Counts one.
    pub fn observe(&self, took: Duration) {
        let at = BOUNDS.iter().position(|bound| took.as_secs_f64() <= *bound);
        let bucket = at.and_then(|at| self.buckets.get(at));
        bucket
            .unwrap_or(&self.beyond)
            .fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.sum_us.fetch_add(micros, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_have_help_type_and_escaped_labels() {
        let mut text = Text::default();
        let mut family = text.family("espalier_x_total", Kind::Counter, "What \\ it\nis.");
        family.sample(&[("peer", "a\"b\\\n"), ("direction", "in")], 7);
        text.single("espalier_y", Kind::Gauge, "Y.", 0.5);
        assert_eq!(
            text.into_string(),
            "# HELP espalier_x_total What \\\\ it\\nis.\n# TYPE espalier_x_total counter\n\
             espalier_x_total{peer=\"a\\\"b\\\\\\n\",direction=\"in\"} 7\n\
             # HELP espalier_y Y.\n# TYPE espalier_y gauge\nespalier_y 0.5\n"
        );
    }

    #[test]
    fn buckets_of_a_histogram_are_cumulative() {
        let histogram = Histogram::default();
        for millis in [1, 2, 3, 100_000] {
            histogram.observe(Duration::from_millis(millis));
        }
        let mut text = Text::default();
        text.histogram("espalier_h_seconds", "H.", &histogram);
        let text = text.into_string();
        for line in [
            "espalier_h_seconds_bucket{le=\"0.001\"} 1",
            "espalier_h_seconds_bucket{le=\"0.0025\"} 2",
            "espalier_h_seconds_bucket{le=\"0.005\"} 3",
            "espalier_h_seconds_bucket{le=\"60\"} 3",
            "espalier_h_seconds_bucket{le=\"+Inf\"} 4",
            "espalier_h_seconds_sum 100.006",
            "espalier_h_seconds_count 4",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }
}
