//! Bytes made by an independent implementation (tests/vectors/make.py): sealed to the same bytes, opened to the same packet.

use serde::Deserialize;

use crate::aead::{Aead, AwsLc, Portable};
use crate::framing::Framing;
use crate::framing::vxlan::{self, Vxlan};
use crate::{Algorithm, HEADER_LEN, InboundSa, OutboundSa};

#[derive(Deserialize)]
struct Vector {
    algorithm: String,
    esn: bool,
    sequence: u64,
    spi: u32,
    key: String,
    overlay: String,
    local: String,
    remote: String,
    local_mac: String,
    remote_mac: String,
    next_header: u8,
    pod_packet: String,
    payload: String,
    esp: String,
}

impl Vector {
    fn algorithm(&self) -> Algorithm {
        let known = [
            Algorithm::Aes128Gcm16,
            Algorithm::Aes256Gcm16,
            Algorithm::ChaCha20Poly1305,
        ];
        known
            .into_iter()
            .find(|algorithm| algorithm.name() == self.algorithm)
            .unwrap()
    }

    fn outbound<A: Aead>(&self) -> OutboundSa<A> {
        OutboundSa::new(self.spi, self.algorithm(), &bytes(&self.key), self.esn)
            .unwrap()
            .at(self.sequence - 1)
    }

    /// A receiver that has seen the packet before this one's window, as one in the middle of its life has.
    fn inbound<A: Aead>(&self) -> InboundSa<A> {
        let mut sa = InboundSa::new(
            self.spi,
            self.algorithm(),
            &bytes(&self.key),
            self.esn,
            4096,
        )
        .unwrap();
        sa.set_top(self.sequence - 1);
        sa
    }

    fn framing(&self) -> Framing {
        let between = (self.local.parse().unwrap(), self.remote.parse().unwrap());
        let mac = |hex: &str| bytes(hex).try_into().unwrap();
        match self.overlay.as_str() {
            "vxlan" => Framing::Vxlan(Vxlan::new(
                4789,
                4789,
                mac(&self.local_mac),
                mac(&self.remote_mac),
                between,
            )),
            _ => Framing::Ipip,
        }
    }

    fn name(&self) -> String {
        format!(
            "{} esn={} sequence={} {}",
            self.algorithm, self.esn, self.sequence, self.overlay
        )
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    hex::decode(hex).unwrap()
}

fn vectors() -> Vec<Vector> {
    let vectors: Vec<Vector> =
        serde_json::from_str(include_str!("../tests/vectors/esp.json")).unwrap();
    assert_eq!(vectors.len(), 15);
    vectors
}

fn seals_and_opens<A: Aead>(vector: &Vector) {
    let (payload, expected) = (bytes(&vector.payload), bytes(&vector.esp));
    let mut packet = vec![0; expected.len()];
    let len = vector
        .outbound::<A>()
        .seal(vector.next_header, &[], &payload, &mut packet)
        .unwrap();
    assert_eq!(
        (len, hex::encode(&packet)),
        (expected.len(), vector.esp.clone()),
        "{}",
        vector.name()
    );

    let mut sa = vector.inbound::<A>();
    let opened = sa.open(&mut packet).unwrap();
    assert_eq!(
        (opened.next_header, opened.sequence),
        (vector.next_header, vector.sequence),
        "{}",
        vector.name()
    );
    assert_eq!(opened.payload, payload, "{}", vector.name());
}

#[test]
fn the_hot_path_seals_to_the_same_bytes_and_opens_them() {
    vectors().iter().for_each(seals_and_opens::<AwsLc>);
}

#[test]
fn the_reference_seals_to_the_same_bytes_and_opens_them() {
    let aes = |vector: &&Vector| vector.algorithm() != Algorithm::ChaCha20Poly1305;
    vectors()
        .iter()
        .filter(aes)
        .for_each(seals_and_opens::<Portable>);
}

#[test]
fn framing_is_built_and_parsed_as_there() {
    for vector in vectors() {
        let (framing, pod_packet, payload) = (
            vector.framing(),
            bytes(&vector.pod_packet),
            bytes(&vector.payload),
        );
        let parsed = framing.parse(vector.next_header, &payload).unwrap();
        assert_eq!(parsed.bytes, pod_packet, "{}", vector.name());

        let mut built = vec![0; framing.headroom()];
        built.extend_from_slice(&pod_packet);
        assert_eq!(
            framing.emit(&mut built),
            Ok(vector.next_header),
            "{}",
            vector.name()
        );
        assert_eq!(
            without_source_port(&framing, built),
            without_source_port(&framing, payload),
            "{}",
            vector.name()
        );
    }
}

/// The source port is each implementation's own hash: takes it out, of the checksum too (RFC 1624).
fn without_source_port(framing: &Framing, mut payload: Vec<u8>) -> Vec<u8> {
    if matches!(framing, Framing::Vxlan(_)) {
        assert!(payload.len() > vxlan::HEADROOM);
        let (port, checksum) = ([payload[0], payload[1]], [payload[6], payload[7]]);
        if checksum != [0, 0] {
            let sum = u32::from(u16::from_be_bytes(checksum)) + u32::from(u16::from_be_bytes(port));
            let folded = ((sum & 0xffff) + (sum >> 16)) as u16;
            payload[6..8].copy_from_slice(&folded.to_be_bytes());
        }
        payload[..2].fill(0);
    }
    payload
}

#[test]
fn a_pod_packet_goes_from_buffer_to_buffer_in_place() {
    for vector in vectors() {
        let (framing, pod_packet) = (vector.framing(), bytes(&vector.pod_packet));
        let payload = framing.headroom() + pod_packet.len();
        let mut buffer = vec![0; HEADER_LEN + payload + crate::MAX_TRAILER_LEN];
        buffer[HEADER_LEN + framing.headroom()..][..pod_packet.len()].copy_from_slice(&pod_packet);
        let next_header = framing.emit(&mut buffer[HEADER_LEN..][..payload]).unwrap();
        let len = vector
            .outbound::<AwsLc>()
            .seal_in_place(next_header, payload, &mut buffer)
            .unwrap();
        assert_eq!(len, bytes(&vector.esp).len(), "{}", vector.name());
        assert_eq!(
            buffer[..HEADER_LEN],
            bytes(&vector.esp)[..HEADER_LEN],
            "{}",
            vector.name()
        );

        let mut sa = vector.inbound::<AwsLc>();
        let opened = sa.open(&mut buffer[..len]).unwrap();
        assert_eq!(
            framing
                .parse(opened.next_header, opened.payload)
                .unwrap()
                .bytes,
            pod_packet,
            "{}",
            vector.name()
        );
    }
}
