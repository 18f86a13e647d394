//! Messages recorded from kernel 7.2 (`pkg/xfrm/testdata`), and lists of peers.

use crate::bytes::{cut, with};
use crate::{Seed, seeds as of};

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .chars()
        .filter_map(|c| c.to_digit(16))
        .map(|digit| u8::try_from(digit).unwrap())
        .collect();
    digits
        .chunks(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}

macro_rules! recorded {
    ($name:literal) => {
        unhex(include_str!(concat!(
            "../../../pkg/xfrm/testdata/",
            $name,
            ".hex"
        )))
    };
}

const PEER: &str = r#"{"put":{"reqid":1163067393,"id":"node-b","local":"192.0.2.1","remote":"192.0.2.2","pod_cidrs":["10.244.2.0/24"],"own_cidrs":["10.244.1.0/24"],"overlay":{"vxlan":{"vni":4789,"port":4789}},"local_mac":[2,0,0,0,0,1],"remote_mac":[2,0,0,0,0,2]}}"#;
const OTHER: &str = r#"{"put":{"reqid":1163067394,"id":"node-c","local":"fd00::1","remote":"fd00::3","pod_cidrs":[],"own_cidrs":[],"overlay":"ipip","local_mac":[2,0,0,0,0,1],"remote_mac":[2,0,0,0,0,3]}}"#;

fn kernel() -> Vec<Seed> {
    let state = recorded!("answer-in-udp");
    of(
        "xfrm_kernel",
        [
            ("empty", Vec::new()),
            ("state-in-udp", state.clone()),
            ("state-in-udp-cut", cut(&state, 300)),
            ("state-family", with(&state, 212, &[99, 0])),
            ("state-attribute-length", with(&state, 224, &[3, 0])),
            ("state-key-length", with(&state, 292, &[0xff; 4])),
            ("state-used", recorded!("answer-used")),
            ("state-tunnel", recorded!("answer-tunnel")),
            ("state-gmac-ipv6", recorded!("answer-gmac")),
            ("state-ah", recorded!("answer-ah")),
            ("state-cbc", recorded!("answer-cbc")),
            ("state-larval", recorded!("answer-larval")),
            ("policy", recorded!("answer-policy")),
            ("policy-probe", recorded!("answer-policy-probe")),
            ("acquire", recorded!("event-acquire")),
            ("expire-soft", recorded!("event-expire-soft")),
            ("expire-hard", recorded!("event-expire-hard")),
        ],
    )
}

fn peers() -> Vec<Seed> {
    let lines = |lines: &[&str]| lines.join("\n").into_bytes();
    let header =
        |version: u32| format!("{{\"version\":{version},\"instance\":\"0000000000000007\"}}");
    of(
        "xfrm_peers",
        [
            ("empty", Vec::new()),
            ("two", lines(&[&header(1), PEER, OTHER, ""])),
            (
                "removed",
                lines(&[&header(1), PEER, r#"{"remove":"node-b"}"#, ""]),
            ),
            ("torn", lines(&[&header(1), PEER, &OTHER[..60]])),
            ("version", lines(&[&header(2), PEER, ""])),
            ("no-header", lines(&[PEER, OTHER, ""])),
            (
                "reqid-twice",
                lines(&[&header(1), PEER, &OTHER.replace("394", "393"), ""]),
            ),
            (
                "reqid-of-others",
                lines(&[&header(1), &PEER.replace("1163067393", "42"), ""]),
            ),
        ],
    )
}

pub(crate) fn seeds() -> Vec<Seed> {
    kernel().into_iter().chain(peers()).collect()
}
