//! The key schedule against Libreswan's own, by its test program `cavp`: fresh random inputs in each run.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use espalier_ike::crypto::{
    IkeSuite, KexGroup, KeyExchange, Nonces, Prf, Secrets, SignedOctets, SkCipher, SkeySeed, Spis,
    child_keymat,
};
use espalier_ike::wire::{ExchangeType, Flags, Header, PayloadType};
use espalier_ike::{EspSuite, Role};
use espalier_ike_io::OsRng;
use espalier_secret::SecretBytes;
use serde_json::Value;

use crate::command::run;

/// Names of the cases, of the function for `cavp`, and ours.
pub(crate) const FUNCTIONS: [(&str, &str, Prf); 3] = [
    ("kdf-hmac-sha256", "SHA-256", Prf::HmacSha256),
    ("kdf-hmac-sha384", "SHA-384", Prf::HmacSha384),
    ("kdf-hmac-sha512", "SHA-512", Prf::HmacSha512),
];
/// Shortest, usual, and longer than a block of either hash function.
const NONCES: [usize; 3] = [16, 32, 200];
/// Key and salt of AES-256-GCM.
const CIPHER: usize = 36;

/// Compares all stages for all nonce lengths; returns what was compared.
pub(crate) fn compare(root: &Path, hash: &str, prf: Prf) -> Result<String> {
    for length in NONCES {
        one(root, hash, prf, length).with_context(|| format!("nonces of {length} bytes"))?;
    }
    Ok(format!(
        "SKEYSEED, SK_d, SK_e, SK_p, KEYMAT with and without PFS and the SKEYSEED of a rekey are cavp's, {} random inputs",
        NONCES.len()
    ))
}

fn one(root: &Path, hash: &str, prf: Prf, length: usize) -> Result<()> {
    let (ni, nr) = (bytes(length), bytes(length));
    let nonces = Nonces {
        initiator: &ni,
        responder: &nr,
    };
    let (spi_i, spi_r) = (number()?, number()?);
    let spis = Spis {
        initiator: spi_i,
        responder: spi_r,
    };
    let ((gir, shared), (gir_new, shared_new)) = (exchange()?, exchange()?);
    let bits = 8 * (3 * prf.output_len() + 2 * CIPHER);
    let said = run(&format!(
        "chroot {} /usr/libexec/ipsec/cavp -json -v2 -hashAlg {hash} -derivedKeyingMaterialLength {bits} -tcId 1 -gir {} \
         -girNew {} -nInit {} -nResp {} -spiInit {spi_i:016x} -spiResp {spi_r:016x}",
        root.display(),
        hex::encode(&gir),
        hex::encode(&gir_new),
        hex::encode(&ni),
        hex::encode(&nr),
    ))?;
    let theirs = Answer::parse(&said)?;

    let suite = IkeSuite {
        prf,
        cipher: SkCipher::Aes256Gcm16,
    };
    let keys = SkeySeed::new(suite, nonces, &shared).into_keys(nonces, spis)?;
    // SK_d is keyed into each KEYMAT, and comes from SKEYSEED.
    for (secrets, field) in [
        (Secrets::default(), "derivedKeyingMaterialChild"),
        (Secrets::one(&shared_new), "derivedKeyingMaterialDh"),
    ] {
        let child = child_keymat(&keys.sk_d, nonces, secrets, EspSuite::Aes256Gcm16)?;
        let both = [&child.initiator_to_responder, &child.responder_to_initiator];
        let both: Vec<u8> = both.iter().flat_map(|key| key.expose().to_vec()).collect();
        ensure!(theirs.field(field)?.starts_with(&both), "{field} differs");
    }
    let rekeyed = SkeySeed::rekey(&keys.sk_d, suite, nonces, Secrets::one(&shared_new));
    let rekeyed = rekeyed.into_keys(nonces, spis)?;
    let seed = [&ni[..], &nr, &spi_i.to_be_bytes(), &spi_r.to_be_bytes()];
    let length = prf.output_len();
    let sk_d = prf.plus(&theirs.field("sKeySeedReKey")?, &seed, length)?;
    let wanted = prf.plus(sk_d.expose(), &[&ni, &nr], CIPHER)?;
    let child = child_keymat(
        &rekeyed.sk_d,
        nonces,
        Secrets::default(),
        EspSuite::Aes256Gcm16,
    )?;
    ensure!(
        child.initiator_to_responder == wanted,
        "the rekey's keys differ"
    );

    let all = theirs.field("derivedKeyingMaterial")?;
    let cut = |at: usize, length: usize| all.get(at..at + length).context("too little of it");
    let (sk_ei, sk_er) = (cut(length, CIPHER)?, cut(length + CIPHER, CIPHER)?);
    let (sk_pi, sk_pr) = (
        cut(length + 2 * CIPHER, length)?,
        cut(2 * length + 2 * CIPHER, length)?,
    );
    for (sk_p, ours) in [(sk_pi, &keys.sk_pi), (sk_pr, &keys.sk_pr)] {
        let octets = SignedOctets::new(b"message", &ni, ours, b"identity");
        let wanted = prf.compute(sk_p, &[b"identity"]);
        ensure!(octets.as_bytes().ends_with(wanted.expose()), "SK_p differs");
    }
    let other = SkeySeed::new(suite, nonces, &shared).into_keys(nonces, spis)?;
    check_cipher(keys, Role::Initiator, sk_ei)?;
    check_cipher(other, Role::Responder, sk_er)
}

/// What this end seals, their key opens.
fn check_cipher(keys: espalier_ike::crypto::IkeKeys, role: Role, key: &[u8]) -> Result<()> {
    let header = Header {
        spi_i: 1,
        spi_r: 2,
        next_payload: PayloadType::None,
        exchange: ExchangeType::Informational,
        flags: Flags {
            initiator: role == Role::Initiator,
            response: false,
            version: false,
        },
        message_id: 0,
    };
    let mut sealer = keys.for_role(role)?.sealer;
    let message = sealer.seal_message(&header, PayloadType::None, b"content")?;
    // RFC 7296 §3.1, §3.2: 28 bytes of header and 4 of the payload's are authenticated, then comes the IV.
    let (open, sealed) = message
        .split_at_checked(32)
        .context("a message of 32 bytes")?;
    let (iv, sealed) = sealed.split_at_checked(8).context("an IV")?;
    let (key, salt) = key.split_at_checked(32).context("a key")?;
    let nonce = Nonce::try_assume_unique_for_key(&[salt, iv].concat())?;
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key)?);
    let mut text = sealed.to_vec();
    let opened = key.open_in_place(nonce, Aad::from(open), &mut text);
    let opened = opened.map_err(|_| anyhow::anyhow!("SK_e differs"))?;
    ensure!(opened.starts_with(b"content"), "the text differs");
    Ok(())
}

/// A key exchange: g^ir as bytes, and as the engine has it.
fn exchange() -> Result<(Vec<u8>, espalier_ike::crypto::SharedSecret)> {
    let ours = KeyExchange::generate(KexGroup::X25519, &mut OsRng)?;
    let theirs = PrivateKey::generate(&X25519)?;
    let public = theirs.compute_public_key()?;
    let peer = UnparsedPublicKey::new(&X25519, ours.public().to_vec());
    let gir = agree(&theirs, peer, anyhow::anyhow!("no agreement"), |secret| {
        Ok(SecretBytes::copy_from(secret).expose().to_vec())
    })?;
    Ok((gir, ours.agree(public.as_ref())?))
}

fn bytes(length: usize) -> Vec<u8> {
    use rand_core::Rng as _;
    let mut bytes = vec![0; length];
    OsRng.fill_bytes(&mut bytes);
    bytes
}

fn number() -> Result<u64> {
    let bytes: [u8; 8] = bytes(8).try_into().ok().context("eight bytes")?;
    Ok(u64::from_be_bytes(bytes))
}

struct Answer(Value);

impl Answer {
    fn parse(said: &str) -> Result<Self> {
        let (start, end) = (said.find('{'), said.rfind('}'));
        let json = start
            .zip(end)
            .and_then(|(start, end)| said.get(start..=end));
        let json = json.with_context(|| format!("cavp said {said:?}"))?;
        Ok(Self(serde_json::from_str(json)?))
    }

    fn field(&self, name: &str) -> Result<Vec<u8>> {
        let text = self.0[name].as_str();
        let text = text.with_context(|| format!("cavp said nothing of {name}"))?;
        Ok(hex::decode(text)?)
    }
}
