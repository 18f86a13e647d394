//! How packets are protected: the part of a policy that says by what, and what of it cannot work together.

use crate::crd::{
    DataplaneKind, EncryptionPolicySpec, Establish, OverlayKind, PerCpu, Protocol, RekeySpec,
    SuiteName, UdpEncapsulation,
};

/// Suites of a policy that names none.
const DEFAULT_SUITES: [SuiteName; 3] = [
    SuiteName::Aes256Gcm,
    SuiteName::Aes128Gcm,
    SuiteName::ChaCha20Poly1305,
];
/// Seconds, inclusive.
const INTERVAL_RANGE: std::ops::RangeInclusive<u32> = 10..=43_200;
/// Fewer would rekey all the time.
const BYTES_MIN: u64 = 1_000_000;
const PACKETS_MIN: u64 = 1_000;

/// What protects packets, how they are framed, and when SAs are made and replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protection {
    /// ESP or AH.
    pub protocol: Protocol,
    /// What is around pod packets.
    pub overlay: OverlayKind,
    /// ESP algorithms in order of preference, at least one. Not looked at with AH.
    pub suites: Vec<SuiteName>,
    /// ESP in UDP.
    pub udp_encapsulation: UdpEncapsulation,
    /// When SAs are made.
    pub establish: Establish,
    /// What must encrypt.
    pub dataplane: DataplaneKind,
    /// SAs of single CPUs.
    pub per_cpu: PerCpu,
    /// When SAs are replaced.
    pub rekey: RekeySpec,
}

impl Default for Protection {
    fn default() -> Self {
        Self {
            protocol: Protocol::default(),
            overlay: OverlayKind::default(),
            suites: DEFAULT_SUITES.to_vec(),
            udp_encapsulation: UdpEncapsulation::default(),
            establish: Establish::default(),
            dataplane: DataplaneKind::default(),
            per_cpu: PerCpu::default(),
            rekey: RekeySpec::default(),
        }
    }
}

impl Protection {
    /// Of a spec whose types fit. `Err` names field and remedy.
    pub(crate) fn read(spec: &EncryptionPolicySpec) -> Result<Self, String> {
        let protection = Self {
            protocol: spec.protocol,
            overlay: spec.overlay,
            suites: spec
                .suites
                .clone()
                .unwrap_or_else(|| DEFAULT_SUITES.to_vec()),
            udp_encapsulation: spec.udp_encapsulation,
            establish: spec.establish,
            dataplane: spec.dataplane,
            per_cpu: spec.per_cpu,
            rekey: spec.rekey.unwrap_or_default(),
        };
        protection.check_suites()?;
        protection.check_rekey()?;
        protection.check_combination()?;
        Ok(protection)
    }

    fn check_suites(&self) -> Result<(), String> {
        if self.suites.is_empty() {
            return Err(
                "spec.suites: expected at least one, found none; leave the field out for the default"
                    .to_owned(),
            );
        }
        for (i, suite) in self.suites.iter().enumerate() {
            if self.suites.iter().take(i).any(|before| before == suite) {
                return Err(format!(
                    "spec.suites[{i}]: {} is there twice; name each once, in order of preference",
                    suite.as_str()
                ));
            }
        }
        Ok(())
    }

    fn check_rekey(&self) -> Result<(), String> {
        let RekeySpec {
            interval,
            bytes,
            packets,
        } = self.rekey;
        if let Some(seconds) = interval.filter(|seconds| !INTERVAL_RANGE.contains(seconds)) {
            return Err(format!(
                "spec.rekey.interval: expected 10 to 43200 seconds, found {seconds}"
            ));
        }
        let too_few = |value: Option<u64>, least| value.filter(|value| *value < least);
        if let Some(found) = too_few(bytes, BYTES_MIN) {
            return Err(format!(
                "spec.rekey.bytes: expected at least {BYTES_MIN}, found {found}"
            ));
        }
        if let Some(found) = too_few(packets, PACKETS_MIN) {
            return Err(format!(
                "spec.rekey.packets: expected at least {PACKETS_MIN}, found {found}"
            ));
        }
        Ok(())
    }

    /// What no data plane can do, and what the one that is asked for cannot.
    fn check_combination(&self) -> Result<(), String> {
        if self.protocol == Protocol::Ah && self.udp_encapsulation == UdpEncapsulation::Always {
            return Err("spec.udpEncapsulation: AH cannot be put into UDP (RFC 3948 is about ESP); use Auto or Never, or protocol ESP".to_owned());
        }
        if self.dataplane != DataplaneKind::Userspace {
            return Ok(());
        }
        let field = if self.protocol == Protocol::Ah {
            "spec.protocol: AH"
        } else if !self.suites.iter().any(|suite| suite.encrypts()) {
            "spec.suites: AES-GMAC alone"
        } else {
            return Ok(());
        };
        Err(format!(
            "{field} is not what the userspace data plane can do; use dataplane Kernel or Auto, or change it"
        ))
    }
}
