//! What runtimes write, right and wrong.

use crate::{Seed, seeds as of};

const RESULT: &str = r#"{
  "cniVersion": "1.1.0",
  "interfaces": [
    {"name": "esp0123456789a", "mac": "02:00:00:00:00:01", "mtu": 1408},
    {"name": "eth0", "sandbox": "/run/netns/pod", "socketPath": "/s", "pciID": "0000:00:01.0"}
  ],
  "ips": [{"address": "10.244.1.2/32", "gateway": "10.244.1.1", "interface": 1}],
  "routes": [{"dst": "0.0.0.0/0", "gw": "10.244.1.1", "mtu": 1408, "priority": 1, "scope": 0}],
  "dns": {"nameservers": ["10.96.0.10"], "search": ["svc.cluster.local"], "options": ["ndots:5"]}
}"#;

pub(crate) fn seeds() -> Vec<Seed> {
    [configurations(), results(), environments()]
        .into_iter()
        .flatten()
        .collect()
}

fn configuration(rest: &str) -> Vec<u8> {
    let head = r#""cniVersion": "1.1.0", "name": "mesh", "type": "espalier-cni""#;
    format!("{{{head}{rest}}}").into_bytes()
}

fn configurations() -> Vec<Seed> {
    let attachments = r#"[{"containerID": "c0ffee", "ifname": "eth0"}]"#;
    of(
        "cni_config",
        [
            ("plain", configuration("")),
            (
                "containerd",
                configuration(r#", "capabilities": {"portMappings": true}, "args": {}"#),
            ),
            (
                "previous",
                configuration(&format!(r#", "prevResult": {RESULT}"#)),
            ),
            (
                "previous-broken",
                configuration(r#", "prevResult": {"cniVersion": 3}"#),
            ),
            (
                "attachments",
                configuration(&format!(r#", "cni.dev/valid-attachments": {attachments}"#)),
            ),
            (
                "attachments-old",
                configuration(&format!(r#", "cni.dev/attachments": {attachments}"#)),
            ),
            (
                "attachments-broken",
                configuration(r#", "cni.dev/valid-attachments": [7]"#),
            ),
            (
                "dns",
                configuration(r#", "dns": {"nameservers": ["::1", ""], "domain": ""}"#),
            ),
            ("setting-of-other-type", configuration(r#", "socket": 7"#)),
            (
                "old-version",
                br#"{"cniVersion": "0.3.1", "name": "a", "type": "b"}"#.to_vec(),
            ),
            (
                "future-version",
                br#"{"cniVersion": "9.0.0", "name": "a", "type": "b"}"#.to_vec(),
            ),
            (
                "bad-name",
                br#"{"cniVersion": "1.1.0", "name": "../a", "type": "b"}"#.to_vec(),
            ),
            ("no-object", b"[]".to_vec()),
            ("deep", b"[".repeat(200)),
            ("cut", configuration("")[..40].to_vec()),
            ("empty", vec![]),
        ],
    )
}

fn results() -> Vec<Seed> {
    let swapped = |from, to| RESULT.replace(from, to).into_bytes();
    of(
        "cni_result",
        [
            ("full", RESULT.into()),
            ("version-0.3.1", swapped("1.1.0", "0.3.1")),
            ("version-0.4.0", swapped("1.1.0", "0.4.0")),
            (
                "bad-index",
                swapped(r#""interface": 1"#, r#""interface": 2"#),
            ),
            ("bad-address", swapped("10.244.1.2/32", "10.244.1.2/33")),
            ("no-prefix", swapped("10.244.1.2/32", "10.244.1.2")),
            ("negative-mtu", swapped("1408", "-1")),
            ("huge-mtu", swapped("1408", "4294967296")),
            ("null", swapped(r#""/s""#, "null")),
            ("minimal", br#"{"cniVersion": "1.0.0"}"#.to_vec()),
            ("no-version", b"{}".to_vec()),
        ],
    )
}

fn environments() -> Vec<Seed> {
    let pod = "CONTAINERID=c0ffee\nIFNAME=eth0\nNETNS=/run/netns/pod\n";
    let with = |command: &str, rest: &str| format!("COMMAND={command}\n{pod}{rest}").into_bytes();
    of(
        "cni_env",
        [
            (
                "add",
                with(
                    "ADD",
                    "ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=a;K8S_POD_NAME=b\n",
                ),
            ),
            ("del", with("DEL", "")),
            ("check", with("CHECK", "")),
            ("gc", b"COMMAND=GC\n".to_vec()),
            ("status", b"COMMAND=STATUS\n".to_vec()),
            ("version", b"COMMAND=VERSION\nNETNS=dummy\n".to_vec()),
            (
                "del-without-netns",
                b"COMMAND=DEL\nCONTAINERID=a\nIFNAME=eth0\nNETNS=\n".to_vec(),
            ),
            (
                "bad-id",
                b"COMMAND=ADD\nCONTAINERID=../x\nIFNAME=eth0\nNETNS=/n\n".to_vec(),
            ),
            (
                "long-ifname",
                b"COMMAND=ADD\nCONTAINERID=a\nIFNAME=0123456789abcdef\nNETNS=/n\n".to_vec(),
            ),
            ("bad-args", with("ADD", "ARGS=novalue\n")),
            ("args-only", b"K8S_POD_NAME=a;K8S_POD_UID=b;;x==y".to_vec()),
            (
                "not-utf8",
                b"COMMAND=ADD\nCONTAINERID=\xff\nIFNAME=\xfe\n".to_vec(),
            ),
            ("unknown", b"COMMAND=FROB\n".to_vec()),
            ("empty", vec![]),
        ],
    )
}
