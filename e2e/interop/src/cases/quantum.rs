//! Against an eavesdropper with a quantum computer: ML-KEM beside X25519 (RFC 9370), and a PPK (RFC 8784).

use anyhow::{Context as _, Result, bail};

use super::{Stage, Verdict, pass, rekey};
use crate::foreign::{Place, Ppk, Wish};
use crate::matrix::{Item, Role};
use crate::report::Outcome;

/// Exchange type (RFC 9242 §3).
const IKE_INTERMEDIATE: u8 = 43;
/// Exchange type (RFC 9370 §2.2.4).
const IKE_FOLLOWUP_KE: u8 = 44;
/// Two by each side in `ml_kem`.
const REKEYS: usize = 4;
/// Exchange type (RFC 7296 §3.1).
const IKE_SA_INIT: u8 = 34;
/// The notify from its length on: 8 bytes, no protocol, no SPI, type 16435 (RFC 8784 §3).
const USE_PPK: [u8; 6] = [0, 8, 0, 0, 0x40, 0x33];

pub(super) fn ml_kem(item: Item, place: &Place, id: &str) -> Verdict {
    if let Some(evidence) = limit(item, place, id)? {
        return Ok((Outcome::PeerLimit, evidence));
    }
    let wish = Wish {
        ml_kem: true,
        ..Wish::new(item.auth)
    };
    let mut stage = Stage::set(item, place, id, &wish)?;
    let spis = stage.establish()?;
    if !both_ways(&stage, IKE_INTERMEDIATE, 1)? {
        bail!("there was no IKE_INTERMEDIATE");
    }
    let spis = rekey::every_kind(&mut stage, &spis)?;
    if !both_ways(&stage, IKE_FOLLOWUP_KE, REKEYS)? {
        bail!("not every rekey had its IKE_FOLLOWUP_KE");
    }
    let said = stage.theirs.ike_algorithms()?;
    if !has_ml_kem(&said) {
        bail!("their IKE SA is without ML-KEM: {said}");
    }
    stage.check_rest(&spis)?;
    pass(format!("also in {REKEYS} rekeys; their IKE SA: {said}"))
}

/// Each side has sent so many messages of an exchange, or more: requests and answers, in fragments perhaps.
fn both_ways(stage: &Stage, exchange: u8, least: usize) -> Result<bool> {
    let messages = stage.ours.messages()?;
    let of_kind = |inbound: bool| {
        let of_kind = messages.iter().filter(|m| m.kinds().1 == exchange);
        of_kind.filter(|m| m.inbound == inbound).count()
    };
    Ok(of_kind(true) >= least && of_kind(false) >= least)
}

/// Both sides refuse to do without it, so its use is shown by the IKE SA; that it is the key which matters, by another one.
pub(super) fn ppk(item: Item, place: &Place, id: &str) -> Verdict {
    let wish = Wish {
        ppk: Some(Ppk {
            id: "ppk.interop.test".into(),
            // It need only differ from the PSK, and lives as long.
            hex: place.psk.chars().rev().collect(),
        }),
        ..Wish::new(item.auth)
    };
    let mut stage = Stage::set(item, place, id, &wish)?;
    let spis = stage.establish()?;
    let messages = stage.ours.messages()?;
    let offered = |inbound: bool| {
        let inits = messages.iter().filter(|m| m.kinds().1 == IKE_SA_INIT);
        let mut inits = inits.filter(|m| m.inbound == inbound);
        inits.any(|m| m.bytes.windows(USE_PPK.len()).any(|bytes| bytes == USE_PPK))
    };
    if !(offered(true) && offered(false)) {
        bail!("USE_PPK was not said by both sides");
    }
    stage.check_rest(&spis)?;
    drop(stage);
    let place = &Place {
        folder: place.folder.join("other"),
        ..place.clone()
    };
    std::fs::create_dir_all(&place.folder)?;
    let mut stage = Stage::set_with(item, place, id, &wish, |config| {
        if let Some((_, key)) = &mut config.ppk {
            *key = place.psk.clone();
        }
    })?;
    match item.role {
        Role::Initiator => {
            stage.ours.tell("connect")?;
            stage.ours.wait("handshake-failed", 20)?;
        }
        Role::Responder => {
            if stage.theirs.initiate().is_ok() {
                bail!("they say that it worked though the PPKs differ");
            }
        }
    }
    if !stage.ours.children().is_empty() {
        bail!("a CHILD_SA came up though the PPKs differ");
    }
    pass("required by both sides; with another PPK there is no IKE SA")
}

/// The other side's own list of key exchange methods, if ML-KEM-768 is not in it.
fn limit(item: Item, place: &Place, id: &str) -> Result<Option<String>> {
    let mut stage = Stage::set(item, place, id, &Wish::new(item.auth))?;
    let list = stage
        .theirs
        .key_exchanges()
        .context("their key exchange methods")?;
    Ok((!has_ml_kem(&list)).then(|| format!("its key exchange methods are {list}")))
}

/// By whatever spelling.
fn has_ml_kem(text: &str) -> bool {
    let letters: String = text.chars().filter(char::is_ascii_alphanumeric).collect();
    letters.to_lowercase().contains("mlkem768")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_ml_kem_counts() {
        assert!(has_ml_kem("CURVE_25519/KE1_ML_KEM_768"));
        assert!(has_ml_kem("x25519 mlkem768"));
        assert!(!has_ml_kem("CURVE_25519, MODP_2048, 768"));
    }
}
