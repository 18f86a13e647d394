//! What the kernel says about states and policies, and the kernel data plane's list of peers.

use std::collections::BTreeSet;

use espalier_xfrm::{parse_peers_file, read_kernel_message};

/// The instance that the corpus' files are of.
const INSTANCE: u64 = 7;

/// One message or datagram; what is shown of it holds no key. The keys in the corpus are runs of 1, 2, 3 and so on.
pub fn xfrm_kernel(data: &[u8]) {
    let shown = read_kernel_message(data);
    assert!(!shown.contains("[1, 2, 3, 4, 5, 6"), "a key is shown");
}

/// The file as it is, and behind a right first line.
pub fn xfrm_peers(data: &[u8]) {
    let header = b"{\"version\":1,\"instance\":\"0000000000000007\"}\n";
    for bytes in [data.to_vec(), [&header[..], data].concat()] {
        let contents = parse_peers_file(&bytes, INSTANCE);
        let names: BTreeSet<_> = contents.peers.values().map(|peer| &peer.id).collect();
        assert_eq!(names.len(), contents.peers.len(), "a peer has two reqids");
        let ours = |reqid: &u32| espalier_xfrm::REQIDS.contains(reqid);
        assert!(contents.peers.keys().all(ours));
        assert!(parse_peers_file(&bytes, INSTANCE + 1).peers.is_empty());
    }
}
