use proptest::prelude::*;

use super::*;

fn peer(name: &str) -> Peer {
    Peer {
        id: PeerId(name.into()),
        local: [192, 0, 2, 1].into(),
        remote: "2001:db8::2".parse().unwrap(),
        pod_cidrs: vec!["10.244.2.0/24".parse().unwrap()],
        own_cidrs: vec!["fd00:1::/64".parse().unwrap()],
        overlay: espalier_dataplane_core::Overlay::Vxlan {
            vni: 4789,
            port: 4789,
        },
        local_mac: [2, 0, 0, 0, 0, 1],
        remote_mac: [2, 0, 0, 0, 0, 2],
    }
}

fn put(book: &mut Book, name: &str) -> u32 {
    book.put(peer(name), |_| false).unwrap()
}

#[test]
fn a_peer_keeps_its_reqid_over_a_restart_and_loses_it_with_the_kernel() {
    let dir = tempfile::tempdir().unwrap();
    let mut book = Book::open(dir.path(), 7);
    let (a, b) = (put(&mut book, "a"), put(&mut book, "b"));
    assert_eq!((a, b), (0x4553_0001, 0x4553_0002));
    book.remove(&PeerId("a".into()));
    drop(book);

    let mut again = Book::open(dir.path(), 7);
    assert_eq!(again.reqid(&PeerId("a".into())), None);
    assert_eq!(again.peer(b), Some(&peer("b")));
    assert_eq!(put(&mut again, "b"), b);
    assert_eq!(
        put(&mut again, "c"),
        0x4553_0003,
        "not one that was just in use"
    );
    drop(again);

    let other = Book::open(dir.path(), 8);
    assert_eq!(other.peers().count(), 0, "another boot or namespace");
}

#[test]
fn reqids_of_forgotten_states_are_left_alone_and_running_out_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let mut book = Book::open(dir.path(), 7);
    let taken = |reqid| reqid < 0x4553_0010;
    assert_eq!(book.put(peer("a"), taken).unwrap(), 0x4553_0010);
    let full = book.put(peer("b"), |_| true).unwrap_err().to_string();
    assert!(full.contains("65535 reqids are in use"), "{full}");
    book.next = *PEERS.end() + 1;
    assert_eq!(put(&mut book, "c"), *PEERS.start(), "round and round");
}

#[test]
fn history_is_dropped_and_only_changes_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut book = Book::open(dir.path(), 7);
    let length = || fs::metadata(dir.path().join(FILE)).unwrap().len();
    put(&mut book, "a");
    let before = length();
    put(&mut book, "a");
    assert_eq!(length(), before);
    for _ in 0..2 * SLACK {
        put(&mut book, "b");
        book.remove(&PeerId("b".into()));
    }
    assert!(book.lines <= SLACK + 2, "{} lines", book.lines);
    drop(book);
    assert_eq!(Book::open(dir.path(), 7).peers().count(), 1);
}

#[test]
fn a_torn_line_costs_one_peer() {
    let dir = tempfile::tempdir().unwrap();
    let mut book = Book::open(dir.path(), 7);
    put(&mut book, "a");
    put(&mut book, "b");
    drop(book);
    let path = dir.path().join(FILE);
    let mut bytes = fs::read(&path).unwrap();
    bytes.truncate(bytes.len() - 9);
    fs::write(&path, bytes).unwrap();
    let book = Book::open(dir.path(), 7);
    assert_eq!(book.peers().count(), 1);
    assert!(book.reqid(&PeerId("a".into())).is_some());
}

#[test]
fn a_folder_that_is_gone_is_no_reason_to_refuse_peers() {
    let dir = tempfile::tempdir().unwrap();
    let mut book = Book::open(&dir.path().join("missing"), 7);
    assert_eq!(put(&mut book, "a"), 0x4553_0001);
}

proptest! {
    #[test]
    fn any_bytes_give_peers_with_different_names_and_reqids_of_ours(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        cut in 0_usize..400,
        at in 0_usize..400,
        byte: u8,
    ) {
        let mut text = line::header(7).into_bytes();
        for (reqid, name) in [(0x4553_0001, "a"), (0x4553_0002, "b"), (0x4553_0001, "b"), (1, "c")] {
            text.extend(Line::put(reqid, &peer(name)).to_text().into_bytes());
        }
        if let Some(place) = text.get_mut(at) {
            *place = byte;
        }
        text.truncate(text.len() - cut.min(text.len()));
        text.extend(bytes);
        let contents = line::parse(&text, 7);
        let names: std::collections::BTreeSet<_> = contents.peers.values().map(|peer| &peer.id).collect();
        prop_assert_eq!(names.len(), contents.peers.len());
        prop_assert!(contents.peers.keys().all(|reqid| PEERS.contains(reqid)));
    }
}
