//! Contents of lease files and queued releases.

use crate::{Seed, seeds as of};

const LEASE: &str = r#"{"key":{"container_id":"c0ffee","ifname":"eth0"},
"owner":{"netns":"/run/netns/pod","pod_namespace":"a","pod_name":"b"},
"addresses":[{"address":"10.244.1.2","gateway":"10.244.1.1"}],"allocated_at_ms":1}"#;

fn state(leases: &str, freed: &str, next: &str) -> Vec<u8> {
    format!(r#"{{"leases":[{leases}],"freed":[{freed}],"next":[{next}]}}"#).into_bytes()
}

pub(crate) fn seeds() -> Vec<Seed> {
    let freed = r#"{"address":"10.244.1.3","at_ms":5}"#;
    let next = r#"["10.244.1.0/28","10.244.1.4"]"#;
    let outside = LEASE.replace("10.244.1.2", "203.0.113.9");
    let same_key = LEASE.replace("10.244.1.2", "10.244.1.9");
    let other_key = LEASE.replace("c0ffee", "decaf");
    let one_line = |lease: &str| format!(r#"{{"Leased":{}}}"#, lease.replace('\n', ""));
    let (leased, again) = (one_line(LEASE), one_line(&other_key));
    let released = r#"{"Released":{"key":{"container_id":"c0ffee","ifname":"eth0"},"at_ms":9}}"#;
    let lines = |lines: &[&str]| lines.join("\n").into_bytes();
    of(
        "ipam_store",
        [
            ("empty-state", state("", "", "")),
            ("lease", state(LEASE, freed, next)),
            ("outside", state(&outside, "", "")),
            (
                "address-twice",
                state(&format!("{LEASE},{other_key}"), "", ""),
            ),
            ("key-twice", state(&format!("{LEASE},{same_key}"), "", "")),
            (
                "freed-and-leased",
                state(LEASE, &freed.replace("1.3", "1.2"), ""),
            ),
            ("freed-twice", state("", &format!("{freed},{freed}"), "")),
            ("freed-gateway", state("", &freed.replace("1.3", "1.1"), "")),
            (
                "freed-in-future",
                state("", &freed.replace(":5", ":18446744073709551615"), ""),
            ),
            ("next-gateway", state("", "", &next.replace("1.4", "1.1"))),
            (
                "next-broadcast",
                state("", "", &next.replace("1.4", "1.15")),
            ),
            (
                "next-outside",
                state("", "", &next.replace("10.244.1.4", "10.0.0.0")),
            ),
            (
                "next-other-family",
                state("", "", &next.replace("10.244.1.4", "fd00::1")),
            ),
            (
                "release",
                br#"{"container_id":"c0ffee","ifname":"eth0"}"#.to_vec(),
            ),
            ("journal", lines(&[&leased, released, &again])),
            ("journal-address-twice", lines(&[&leased, &again])),
            (
                "journal-released-twice",
                lines(&[&leased, released, released]),
            ),
            (
                "journal-end-of-time",
                lines(&[&leased, &released.replace(":9}", ":18446744073709551615}")]),
            ),
            ("journal-unknown-change", br#"{"Moved":{}}"#.to_vec()),
            ("first-line", b"espalier-leases 1 2 0000\n{}".to_vec()),
            ("other-version", b"espalier-leases 2 2 0000\n{}".to_vec()),
            ("first-line-cut", b"espalier-lea".to_vec()),
            ("not-json", b"leases".to_vec()),
            ("empty", vec![]),
        ],
    )
}
