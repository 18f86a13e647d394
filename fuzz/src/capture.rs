//! Frames that a leak check sees.

use espalier_capture::{What, classify};
use ipnet::IpNet;

/// A frame, with pod prefixes of both families.
pub fn capture_classify(data: &[u8]) {
    let pods: Vec<IpNet> = ["10.244.0.0/16", "fd00:10::/32"]
        .iter()
        .map(|net| net.parse().expect("a prefix"))
        .collect();
    let frame = classify(data, &pods);
    if let What::ClearPod(clear) = frame.what {
        let pod = |address| pods.iter().any(|net| net.contains(address));
        let (src, dst) = (pod(&clear.src), pod(&clear.dst));
        assert!(src || dst);
        assert_eq!(clear.between_pods, src && dst);
    }
    let nowhere = classify(data, &[]);
    assert!(
        !matches!(nowhere.what, What::ClearPod(_)),
        "no pods, no pod packets"
    );
    assert_eq!(nowhere.outer, frame.outer);
}
