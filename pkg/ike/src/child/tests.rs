use super::proposal::{Chosen, check_answer, choose, offer};
use super::*;
use crate::suite::{ChildSuite, EspSuite, Integrity};
use crate::wire::{ProtocolId, Transform};

fn config(suites: &[EspSuite], esn: bool) -> ChildConfig {
    let any = TrafficSelector {
        protocol: 17,
        start_port: 0,
        end_port: u16::MAX,
        start: "10.0.0.1".parse().unwrap(),
        end: "10.0.0.1".parse().unwrap(),
    };
    let (local_ts, remote_ts) = (vec![any.clone()], vec![any]);
    ChildConfig {
        suites: suites.iter().copied().map(ChildSuite::from).collect(),
        esn,
        ..ChildConfig::new(local_ts, remote_ts)
    }
}

const ALL: [EspSuite; 3] = [
    EspSuite::Aes256Gcm16,
    EspSuite::Aes128Gcm16,
    EspSuite::ChaCha20Poly1305,
];

#[test]
fn the_responders_preference_decides_within_a_proposal() {
    let own = config(&[EspSuite::ChaCha20Poly1305, EspSuite::Aes256Gcm16], true);
    let chosen = choose(&offer(&config(&ALL, true), 300), &own).unwrap();
    assert_eq!(
        chosen,
        Chosen {
            number: 1,
            spi: 300,
            suite: EspSuite::ChaCha20Poly1305.into(),
            esn: true
        }
    );
    let answer = chosen.answer(400);
    let checked = check_answer(&answer, &config(&ALL, true)).unwrap();
    assert_eq!(
        (checked.spi, checked.suite, checked.esn),
        (400, EspSuite::ChaCha20Poly1305.into(), true)
    );
}

#[test]
fn esn_is_refused_where_it_is_not_wanted() {
    let (with, without) = (config(&ALL, true), config(&ALL, false));
    assert!(!choose(&offer(&with, 300), &without).unwrap().esn);
    assert!(!choose(&offer(&without, 300), &with).unwrap().esn);
    let only_esn = Chosen {
        number: 1,
        spi: 300,
        suite: ALL[0].into(),
        esn: true,
    }
    .answer(300);
    assert_eq!(check_answer(&only_esn, &without), None);
}

#[test]
fn reserved_spis_and_foreign_suites_are_refused() {
    let own = config(&ALL, true);
    assert_eq!(choose(&offer(&own, 255), &own), None);
    assert_eq!(
        choose(
            &offer(&config(&ALL[1..2], true), 300),
            &config(&ALL[..1], true)
        ),
        None
    );
    assert_eq!(check_answer(&offer(&own, 300), &own), None);
}

#[test]
fn a_failure_names_what_was_offered_and_what_is_taken() {
    let (peer, own) = (Identity("node-b".into()), config(&ALL[..1], true));
    let theirs = offer_payloads(&config(&ALL[2..], false), ChildId::FIRST, 300);
    let error = accept(&peer, &own, &Heard::read(&theirs).unwrap())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("node-b") && error.contains("ENCR 28") && error.contains("ENCR 20/256"),
        "{error}"
    );
}

#[test]
fn a_silent_change_of_mode_is_refused() {
    let (peer, own) = (Identity("node-b".into()), config(&ALL, true));
    let tunnel = offer_payloads(
        &ChildConfig {
            transport: false,
            ..own.clone()
        },
        ChildId::FIRST,
        300,
    );
    let error = accept(&peer, &own, &Heard::read(&tunnel).unwrap()).unwrap_err();
    assert_eq!(error.notify(), NotifyType::NoProposalChosen);
}

const CBC: EspSuite = EspSuite::Aes256Cbc(Integrity::HmacSha256);

fn kinds(sa: &Sa, at: usize) -> Vec<(TransformType, u16)> {
    let transforms = sa.proposals[at].transforms.iter();
    transforms.map(|one| (one.kind, one.id)).collect()
}

#[test]
fn aeads_and_ciphers_with_integrity_stand_in_proposals_of_their_own() {
    let suites = [
        ALL[0],
        CBC,
        ALL[1],
        EspSuite::Aes128Cbc(Integrity::HmacSha256),
    ];
    let sa = offer(&config(&suites, false), 300);
    let (encr, integ) = (TransformType::Encr, TransformType::Integ);
    let esn = (TransformType::Esn, 0);
    assert_eq!(sa.proposals.len(), 2);
    assert_eq!(kinds(&sa, 0), [(encr, 20), (encr, 20), esn], "no INTEG");
    assert_eq!(kinds(&sa, 1), [(encr, 12), (encr, 12), (integ, 12), esn]);
    assert_eq!([sa.proposals[0].number, sa.proposals[1].number], [1, 2]);
    let other = EspSuite::Aes256Cbc(Integrity::HmacSha512);
    let sa = offer(&config(&[CBC, other], true), 300);
    assert_eq!(
        sa.proposals.len(),
        2,
        "no combination that was not asked for"
    );
}

#[test]
fn every_suite_is_agreed_on_with_what_it_needs() {
    let ah = [
        Integrity::HmacSha256,
        Integrity::HmacSha384,
        Integrity::HmacSha512,
    ];
    let cbc = ah.into_iter().flat_map(|integrity| {
        [
            EspSuite::Aes256Cbc(integrity),
            EspSuite::Aes128Cbc(integrity),
        ]
    });
    let gmac = [EspSuite::Aes256Gmac, EspSuite::Aes128Gmac];
    let esp = ALL.into_iter().chain(gmac).chain(cbc).map(ChildSuite::from);
    let all: Vec<ChildSuite> = esp.chain(ah.map(ChildSuite::Ah)).collect();
    let own = |suites: &[ChildSuite]| ChildConfig {
        suites: suites.to_vec(),
        ..config(&ALL, true)
    };
    let everything = own(&all);
    for suite in all {
        for (ours, theirs) in [(&everything, &own(&[suite])), (&own(&[suite]), &everything)] {
            let chosen = choose(&offer(theirs, 300), ours).unwrap();
            assert_eq!((chosen.suite, chosen.spi, chosen.esn), (suite, 300, true));
            let checked = check_answer(&chosen.answer(400), theirs).unwrap();
            assert_eq!((checked.suite, checked.spi), (suite, 400));
            assert_eq!(chosen.answer(400).proposals[0].protocol, suite.protocol());
        }
    }
}

#[test]
fn an_answer_must_be_of_the_proposal_that_it_names() {
    let own = config(&[ALL[0], CBC], true);
    let second = choose(&offer(&config(&[CBC], true), 300), &own).unwrap();
    let mut answer = second.answer(400);
    assert_eq!(check_answer(&answer, &own), None, "number 1 is the AEAD's");
    answer.proposals[0].number = 2;
    assert_eq!(check_answer(&answer, &own).unwrap().suite, CBC.into());
    let more = Transform::new(TransformType::Integ, 13);
    answer.proposals[0].transforms.push(more);
    assert_eq!(check_answer(&answer, &own), None, "two of one type");
    for number in [0, 3, 255] {
        answer.proposals[0].number = number;
        assert_eq!(check_answer(&answer, &own), None);
    }
}

#[test]
fn an_aead_never_comes_with_another_integrity_and_a_cipher_never_without() {
    let own = config(&[ALL[0], CBC], true);
    let integ = |id| Transform::new(TransformType::Integ, id);
    let with = |suite, add: &[Transform]| {
        let mut sa = offer(&config(&[suite], true), 300);
        sa.proposals[0].transforms.extend(add);
        choose(&sa, &own).map(|chosen| chosen.suite)
    };
    assert_eq!(with(ALL[0], &[integ(0)]), Some(ALL[0].into()));
    assert_eq!(with(ALL[0], &[integ(0), integ(12)]), Some(ALL[0].into()));
    assert_eq!(with(ALL[0], &[integ(12)]), None);
    let mut bare = offer(&config(&[CBC], true), 300);
    bare.proposals[0]
        .transforms
        .retain(|one| one.kind != TransformType::Integ);
    assert_eq!(choose(&bare, &own), None);
    bare.proposals[0].transforms.push(integ(0));
    assert_eq!(choose(&bare, &own), None);
    // One proposal with both kinds, as some implementations send it.
    let mut both = offer(&config(&[CBC], true), 300);
    both.proposals[0]
        .transforms
        .extend(ChildSuite::from(ALL[0]).transforms());
    assert_eq!(
        choose(&both, &config(&[CBC], true)).unwrap().suite,
        CBC.into()
    );
    assert_eq!(
        choose(&both, &config(&ALL, true)),
        None,
        "INTEG is not to be left out"
    );
    both.proposals[0].transforms.push(integ(0));
    assert_eq!(
        choose(&both, &config(&ALL, true)).unwrap().suite,
        ALL[0].into()
    );
}

#[test]
fn ah_is_not_taken_for_esp() {
    let ah = ChildConfig {
        suites: vec![ChildSuite::Ah(Integrity::HmacSha256)],
        ..config(&ALL, true)
    };
    let mut sa = offer(&ah, 300);
    assert_eq!(sa.proposals[0].protocol, ProtocolId::Ah);
    assert_eq!(choose(&sa, &config(&[ALL[0], CBC], true)), None);
    sa.proposals[0].protocol = ProtocolId::Esp;
    assert_eq!(choose(&sa, &ah), None);
}
