//! What the kernel calls the suites.

use espalier_dataplane_core::Suite;

const AES_GCM: &str = "rfc4106(gcm(aes))";
const AES_GMAC: &str = "rfc4543(gcm(aes))";
const CHACHA: &str = "rfc7539esp(chacha20,poly1305)";
const SHA256: &str = "hmac(sha256)";

/// Bits of the ICV of every suite: 128.
pub(crate) const ICV_BITS: u32 = 128;

/// Name of the algorithm in the kernel's crypto API.
pub(crate) fn name(suite: Suite) -> &'static str {
    match suite {
        Suite::Aes128Gcm16 | Suite::Aes256Gcm16 => AES_GCM,
        Suite::Aes128Gmac | Suite::Aes256Gmac => AES_GMAC,
        Suite::ChaCha20Poly1305 => CHACHA,
        Suite::AhHmacSha256 => SHA256,
    }
}

/// Kernel options that a suite needs, for people.
pub(crate) fn options(suite: Suite) -> &'static str {
    match suite {
        Suite::AhHmacSha256 => {
            "ah4 and ah6 (CONFIG_INET_AH, CONFIG_INET6_AH) and hmac, sha256 (CONFIG_CRYPTO_HMAC, CONFIG_CRYPTO_SHA256)"
        }
        Suite::ChaCha20Poly1305 => {
            "esp4 and esp6 (CONFIG_INET_ESP, CONFIG_INET6_ESP) and chacha20poly1305 (CONFIG_CRYPTO_CHACHA20POLY1305)"
        }
        _ => {
            "esp4 and esp6 (CONFIG_INET_ESP, CONFIG_INET6_ESP) and aes, gcm, seqiv (CONFIG_CRYPTO_AES, CONFIG_CRYPTO_GCM, CONFIG_CRYPTO_SEQIV)"
        }
    }
}

/// The suite of an AEAD, by name, bits of key and salt, and bits of the ICV. `None`: none of ours.
pub(crate) fn aead(name: &str, key_bits: u32, icv_bits: u32) -> Option<Suite> {
    let suites = Suite::ALL.into_iter().filter(|suite| !suite.is_ah());
    by_name(suites, name, key_bits, icv_bits)
}

/// The suite of an authentication algorithm of AH.
pub(crate) fn auth(name: &str, key_bits: u32, trunc_bits: u32) -> Option<Suite> {
    by_name([Suite::AhHmacSha256], name, key_bits, trunc_bits)
}

fn by_name(
    suites: impl IntoIterator<Item = Suite>,
    wanted: &str,
    key_bits: u32,
    icv_bits: u32,
) -> Option<Suite> {
    let fits = |suite: &Suite| {
        name(*suite) == wanted
            && u32::try_from(suite.key_material_len() * 8) == Ok(key_bits)
            && icv_bits == ICV_BITS
    };
    suites.into_iter().find(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_suite_is_known_by_what_the_kernel_tells_of_it() {
        for suite in Suite::ALL {
            let bits = u32::try_from(suite.key_material_len() * 8).unwrap();
            let found = if suite.is_ah() {
                auth(name(suite), bits, 128)
            } else {
                aead(name(suite), bits, 128)
            };
            assert_eq!(found, Some(suite));
        }
        assert_eq!(aead(AES_GCM, 224, 128), None, "AES-192");
        assert_eq!(aead(AES_GCM, 160, 96), None, "a shorter ICV");
        assert_eq!(auth(SHA256, 256, 96), None, "the draft's truncation");
    }
}
