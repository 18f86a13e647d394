use serde_json::{Value, json};

use super::*;
use crate::fake::Fake;

const PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/ns/leases/l";

fn elector(fake: &Fake, identity: &str) -> Elector {
    let api = Api::namespaced(fake.client(), "ns");
    Elector::new(api, "l", identity.into(), Timing::default())
}

fn holder(fake: &Fake) -> String {
    let lease = fake.get(PATH).unwrap();
    lease["spec"]["holderIdentity"].as_str().unwrap().to_owned()
}

#[tokio::test(start_paused = true)]
async fn the_first_makes_the_lease_and_the_second_waits_for_its_whole_duration() {
    let fake = Fake::default();
    let (mut a, mut b) = (elector(&fake, "a"), elector(&fake, "b"));
    let _held = a.acquire().await;
    assert_eq!(holder(&fake), "a");
    let begun = Instant::now();
    b.acquire().await;
    assert_eq!(holder(&fake), "b");
    let waited = begun.elapsed();
    assert!(
        waited >= Duration::from_secs(15) && waited <= Duration::from_secs(17),
        "{waited:?}"
    );
    assert_eq!(fake.get(PATH).unwrap()["spec"]["leaseTransitions"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_renews_keeps_its_lease_whatever_the_clocks_say() {
    let fake = Fake::default();
    let (mut a, mut b) = (elector(&fake, "a"), elector(&fake, "b"));
    let mut held = a.acquire().await;
    // As if the holder's clock were years behind: only changes count.
    fake.change(PATH, |lease| {
        lease["spec"]["renewTime"] = json!("2001-01-01T00:00:00.000000Z");
    });
    let candidate = tokio::time::timeout(Duration::from_secs(120), b.acquire());
    tokio::select! {
        taken = candidate => assert!(taken.is_err(), "b leads though a renews"),
        () = a.keep(&mut held) => panic!("a lost its lease"),
    }
    assert_eq!(holder(&fake), "a");
}

#[tokio::test(start_paused = true)]
async fn a_released_lease_is_taken_at_once() {
    let fake = Fake::default();
    let (mut a, mut b) = (elector(&fake, "a"), elector(&fake, "b"));
    let held = a.acquire().await;
    a.release(held).await;
    assert_eq!(holder(&fake), "");
    let begun = Instant::now();
    b.acquire().await;
    assert!(begun.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_holder_stops_before_another_may_begin_when_the_server_is_gone() {
    let fake = Fake::default();
    let mut a = elector(&fake, "a");
    let mut held = a.acquire().await;
    let begun = Instant::now();
    fake.break_down(true);
    a.keep(&mut held).await;
    assert!(begun.elapsed() <= Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn a_holder_whose_server_hangs_stops_too() {
    let fake = Fake::default();
    let mut a = elector(&fake, "a");
    let mut held = a.acquire().await;
    let begun = Instant::now();
    fake.hang(true);
    a.keep(&mut held).await;
    assert!(begun.elapsed() <= Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn a_holder_stops_when_another_has_the_lease() {
    let fake = Fake::default();
    let mut a = elector(&fake, "a");
    let mut held = a.acquire().await;
    fake.change(PATH, |lease| lease["spec"]["holderIdentity"] = json!("b"));
    a.keep(&mut held).await;
    assert_eq!(holder(&fake), "b");
}

#[tokio::test(start_paused = true)]
async fn a_change_by_others_that_leaves_the_holder_is_no_loss() {
    let fake = Fake::default();
    let mut a = elector(&fake, "a");
    let mut held = a.acquire().await;
    fake.change(PATH, |lease| {
        lease["metadata"]["labels"] = json!({"x": "y"})
    });
    let kept = tokio::time::timeout(Duration::from_secs(30), a.keep(&mut held));
    kept.await.unwrap_err();
    assert_eq!(fake.get(PATH).unwrap()["metadata"]["labels"]["x"], "y");
}

#[tokio::test(start_paused = true)]
async fn two_that_see_it_free_at_once_are_told_apart_by_the_version() {
    let fake = Fake::default();
    let (mut a, mut b) = (elector(&fake, "a"), elector(&fake, "b"));
    let held = a.acquire().await;
    a.release(held).await;
    let stale: Lease = serde_json::from_value::<Lease>(fake.get(PATH).unwrap()).unwrap();
    b.acquire().await;
    let mut late = stale;
    late.spec = Some(a.spec());
    assert!(a.take(late, Instant::now()).await.unwrap().is_none());
    assert_eq!(holder(&fake), "b");
}

#[test]
fn times_have_six_digits_of_a_second_as_old_servers_want() {
    let value = serde_json::to_value(MicroTime(Timestamp::from_second(1).unwrap())).unwrap();
    assert_eq!(value, Value::from("1970-01-01T00:00:01.000000Z"));
}
