//! Expressions of rules: what `nft --debug=netlink` shows.
//!
//! ```text
//!  [ meta load nfproto => reg 1 ]         [ payload load 4b @ network header + 12 => reg 1 ]     [ immediate reg 0 return ]
//!  [ cmp eq reg 1 0x00000002 ]            [ bitwise reg 1 = ( reg 1 & 0x00ffffff ) ^ 0 ]         [ masq ]
//!                                         [ cmp eq reg 1 0x0001f40a ]
//! ```

use std::net::IpAddr;

use ipnet::IpNet;

use super::attributes::Attributes;

/// `NFT_REG_1`: 16 bytes.
const REGISTER: u32 = 1;
/// `NFT_REG_VERDICT`.
const VERDICT: u32 = 0;
/// `NFT_RETURN`, -5: the end of this chain, on with the next.
const RETURN: u32 = (-5_i32).cast_unsigned();
/// `NF_DROP`.
const DROP: u32 = 0;
/// `NFTA_DATA_VALUE`.
const VALUE: u16 = 1;
/// `IFNAMSIZ`.
const NAME: usize = 16;

const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;

const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const IPPROTO_UDP: u8 = 17;

const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;

/// One end of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Source,
    Destination,
}

/// The expressions of one rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Expressions(Attributes);

impl Expressions {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn into_attributes(self) -> Attributes {
        self.0
    }

    /// The packet's address is in the network. (The family first: the table has both, and their headers differ.)
    pub(super) fn address(self, end: End, network: IpNet) -> Self {
        let network = network.trunc();
        let (family, source, destination) = match network {
            IpNet::V4(_) => (NFPROTO_IPV4, 12, 16),
            IpNet::V6(_) => (NFPROTO_IPV6, 8, 24),
        };
        let offset = match end {
            End::Source => source,
            End::Destination => destination,
        };
        let value = octets(network.network());
        let loaded =
            self.meta(META_NFPROTO)
                .equal(&[family])
                .payload(NETWORK_HEADER, offset, value.len());
        let masked = match network.prefix_len() == network.max_prefix_len() {
            true => loaded,
            false => loaded.mask(&octets(network.netmask())),
        };
        masked.equal(&value)
    }

    /// It leaves by this device.
    pub(super) fn leaves_by(self, device: &str) -> Self {
        self.meta(META_OIFNAME).equal(&name(device))
    }

    /// It came in by this device.
    pub(super) fn comes_by(self, device: &str) -> Self {
        self.meta(META_IIFNAME).equal(&name(device))
    }

    pub(super) fn protocol(self, number: u8) -> Self {
        self.meta(META_L4PROTO).equal(&[number])
    }

    pub(super) fn udp_port(self, port: u16) -> Self {
        self.protocol(IPPROTO_UDP)
            .payload(TRANSPORT_HEADER, 2, 2)
            .equal(&port.to_be_bytes())
    }

    /// No more rules of this chain.
    pub(super) fn leave_alone(self) -> Self {
        self.verdict(RETURN)
    }

    /// It goes no further.
    pub(super) fn drop(self) -> Self {
        self.verdict(DROP)
    }

    fn verdict(self, code: u32) -> Self {
        let verdict = Attributes::new().number(1, code);
        let data = Attributes::new().nested(2, &verdict);
        let immediate = Attributes::new().number(1, VERDICT).nested(2, &data);
        self.expression("immediate", &immediate)
    }

    /// The source becomes the address of the device that it leaves by.
    pub(super) fn masquerade(self) -> Self {
        self.expression("masq", &Attributes::new())
    }

    fn meta(self, key: u32) -> Self {
        let meta = Attributes::new().number(1, REGISTER).number(2, key);
        self.expression("meta", &meta)
    }

    fn payload(self, base: u32, offset: u32, length: usize) -> Self {
        let payload = Attributes::new()
            .number(1, REGISTER)
            .number(2, base)
            .number(3, offset)
            .number(4, small(length));
        self.expression("payload", &payload)
    }

    fn mask(self, mask: &[u8]) -> Self {
        let bitwise = Attributes::new()
            .number(1, REGISTER)
            .number(2, REGISTER)
            .number(3, small(mask.len()))
            .nested(4, &Attributes::new().bytes(VALUE, mask))
            .nested(5, &Attributes::new().bytes(VALUE, &vec![0; mask.len()]));
        self.expression("bitwise", &bitwise)
    }

    fn equal(self, value: &[u8]) -> Self {
        let cmp = Attributes::new()
            .number(1, REGISTER)
            .number(2, 0) // NFT_CMP_EQ
            .nested(3, &Attributes::new().bytes(VALUE, value));
        self.expression("cmp", &cmp)
    }

    fn expression(self, name: &str, data: &Attributes) -> Self {
        let expression = Attributes::new().text(1, name).nested(2, data);
        Self(self.0.nested(1, &expression))
    }
}

/// As the kernel keeps names: padded with zeros.
fn name(device: &str) -> [u8; NAME] {
    let mut name = [0; NAME];
    let bytes = device.bytes().take(NAME - 1);
    name.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    name
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// Of at most 16 bytes.
fn small(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
