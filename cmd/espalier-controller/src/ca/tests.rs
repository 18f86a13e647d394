use serde_json::json;

use super::*;
use crate::rotation::Stage;

const NOW: Duration = Duration::from_secs(1_800_000_000);

fn secret() -> Secret {
    make(NOW, BTreeMap::new()).unwrap()
}

fn config_map(trust: &Trust) -> ConfigMap {
    serde_json::from_value(json!({
        "metadata": {"annotations": {SIGNER: trust.signer}},
        "data": {BUNDLE: trust.bundle.pem()},
    }))
    .unwrap()
}

#[test]
fn a_secret_goes_through_a_rotation_and_is_readable_at_each_step() {
    let first = secret();
    let old = Ca::own(&first, NOW).unwrap();
    assert_eq!(old.authorities.stage(), Stage::Steady);
    assert!(!old.authorities.asked);

    let mut asked = first;
    let wish = BTreeMap::from([(ROTATE.to_owned(), "now".to_owned())]);
    asked.metadata.annotations = Some(wish);
    assert!(Ca::own(&asked, NOW).unwrap().authorities.asked);

    let begun = begun(asked, NOW).unwrap();
    let during = Ca::own(&begun, NOW).unwrap();
    assert_eq!(during.authorities.stage(), Stage::Distribute);
    assert!(!during.authorities.asked);
    assert_eq!(during.authorities.signing, old.authorities.signing);

    let switched = switched(begun).unwrap();
    let after = Ca::own(&switched, NOW).unwrap();
    assert_eq!(after.authorities.stage(), Stage::Renew);
    assert_eq!(
        Some(&after.authorities.signing),
        during.authorities.next.as_ref()
    );
    let before = std::slice::from_ref(&old.authorities.signing);
    assert_eq!(after.authorities.previous, before);

    let done = Ca::own(&finished(switched), NOW).unwrap();
    assert_eq!(done.authorities.stage(), Stage::Steady);
    assert!(
        !done
            .authorities
            .trust()
            .bundle
            .contains(&old.authorities.signing.fingerprint())
    );
}

#[test]
fn the_last_fifth_of_a_cas_life_asks_for_the_next_one() {
    let secret = secret();
    let at = |days: u32| Ca::own(&secret, NOW + espalier_pki::DAY * days).unwrap();
    assert!(!at(2900).authorities.asked);
    assert!(at(2930).authorities.asked);
}

#[test]
fn errors_name_the_field_and_the_remedy() {
    let wrong = |change: fn(&mut BTreeMap<String, ByteString>)| {
        let mut secret = secret();
        change(secret.data.as_mut().unwrap());
        Ca::own(&secret, NOW).unwrap_err().to_string()
    };
    let missing = wrong(|data| {
        data.remove(KEY);
    });
    assert!(missing.contains("data[tls.key] is missing"), "{missing}");
    let other = wrong(|data| {
        let other = secret().data.unwrap();
        data.insert(KEY.into(), other[KEY].clone());
    });
    assert!(
        other.contains("data[tls.key]") && other.contains("does not belong"),
        "{other}"
    );
    let broken = wrong(|data| {
        data.insert(CERTIFICATE.into(), ByteString(b"nothing".to_vec()));
    });
    assert!(
        broken.contains("data[tls.crt]") && broken.contains("CERTIFICATE"),
        "{broken}"
    );
    let half = wrong(|data| {
        let certificate = data[CERTIFICATE].clone();
        data.insert(NEXT_CERTIFICATE.into(), certificate);
    });
    assert!(half.contains("data[next.key] is missing"), "{half}");
}

#[test]
fn what_agents_are_told_is_read_back_and_broken_texts_are_none() {
    let trust = Ca::own(&secret(), NOW).unwrap().authorities.trust();
    let mut map = config_map(&trust);
    assert_eq!(told(&map).as_ref(), Some(&trust));
    let broken = trust.bundle.pem().replace("MII", "!!!");
    map.data.as_mut().unwrap().insert(BUNDLE.into(), broken);
    assert_eq!(told(&map), None);
    assert_eq!(told(&ConfigMap::default()), None);
}

#[test]
fn a_given_ca_that_is_replaced_is_known_from_what_agents_were_told() {
    let (one, two) = (secret(), secret());
    let first = Ca::given(&one, None, NOW).unwrap().authorities;
    assert_eq!((first.stage(), &first.replaced), (Stage::Steady, &None));
    let mut told = first.trust();
    let second = Ca::given(&two, Some(&told), NOW).unwrap().authorities;
    assert_eq!(second.stage(), Stage::Distribute);
    assert_eq!(second.trust().signer, told.signer);
    told = second.trust();
    told.signer = second.signing.fingerprint();
    let renewing = Ca::given(&two, Some(&told), NOW).unwrap().authorities;
    assert_eq!(renewing.stage(), Stage::Renew);
    // A previous CA that has expired is no longer of use.
    let late = NOW + espalier_pki::DAY * (CA_DAYS + 1);
    let late = Ca::given(&two, Some(&told), late).unwrap().authorities;
    assert_eq!(late.stage(), Stage::Steady);
}
