//! The forms.

use espalier_e2e::{Mode, Plane};

/// One form of a pod's packet on the wire.
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) maker: Maker,
}

/// What makes it.
#[derive(Clone, Copy)]
pub(crate) enum Maker {
    /// Agents, data planes and CNI plugin.
    Espalier(Settings),
    /// `ip xfrm` by hand: ESP in tunnel mode around VXLAN, what other network plugins do.
    Tunnel,
    /// wireguard-go around the pod's packet: the format is that of the kernel's.
    WireGuard,
}

/// The mesh's policy, and the outer protocol that shows it is in force.
#[derive(Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) mode: Mode,
    pub(crate) spec: &'static [&'static str],
    pub(crate) plane: Plane,
    pub(crate) outer: Outer,
}

/// What the outermost IP header carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outer {
    /// UDP to this port.
    Udp(u16),
    /// This protocol.
    Protocol(u8),
}

const ESP: Outer = Outer::Protocol(50);
const AH: Outer = Outer::Protocol(51);
const ESP_IN_UDP: Outer = Outer::Udp(4500);
const VXLAN: Outer = Outer::Udp(4789);
const IPIP: Outer = Outer::Protocol(4);
/// The pod's own packet.
const BARE: Outer = Outer::Udp(espalier_e2e::POD_PORT);

const fn clear(name: &'static str, spec: &'static [&'static str], outer: Outer) -> Shape {
    mesh(name, Mode::Disabled, spec, Plane::Kernel, outer)
}

const fn kernel(name: &'static str, spec: &'static [&'static str], outer: Outer) -> Shape {
    mesh(name, Mode::Required, spec, Plane::Kernel, outer)
}

const fn mesh(
    name: &'static str,
    mode: Mode,
    spec: &'static [&'static str],
    plane: Plane,
    outer: Outer,
) -> Shape {
    Shape {
        name,
        maker: Maker::Espalier(Settings {
            mode,
            spec,
            plane,
            outer,
        }),
    }
}

const IN_UDP: &str = "udpEncapsulation: Always";

/// All of them; the suite is AES-256-GCM where it is not said.
pub(crate) const SHAPES: &[Shape] = &[
    Shape {
        name: "esp-tunnel-around-vxlan",
        maker: Maker::Tunnel,
    },
    Shape {
        name: "wireguard",
        maker: Maker::WireGuard,
    },
    clear("clear-vxlan", &[], VXLAN),
    clear("clear-ipip", &["overlay: IPIP"], IPIP),
    clear("clear-native", &["overlay: None"], BARE),
    kernel("esp-vxlan-raw", &[], ESP),
    kernel("esp-vxlan-udp", &[IN_UDP], ESP_IN_UDP),
    kernel("esp-ipip-raw", &["overlay: IPIP"], ESP),
    kernel("esp-ipip-udp", &["overlay: IPIP", IN_UDP], ESP_IN_UDP),
    kernel("esp-native-raw", &["overlay: None"], ESP),
    kernel("esp-native-udp", &["overlay: None", IN_UDP], ESP_IN_UDP),
    kernel("ah-vxlan", &["protocol: AH"], AH),
    kernel("gmac-vxlan-raw", &["suites: [AES-256-GMAC]"], ESP),
    kernel("aes128gcm-vxlan-raw", &["suites: [AES-128-GCM]"], ESP),
    kernel("chacha20-vxlan-raw", &["suites: [ChaCha20-Poly1305]"], ESP),
    mesh(
        "userspace-vxlan-udp",
        Mode::Required,
        &[],
        Plane::Userspace,
        ESP_IN_UDP,
    ),
];
