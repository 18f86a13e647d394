use std::os::unix::fs::PermissionsExt;

use espalier_ike::Identity;
use espalier_ike::identity::{Credentials, TrustAnchors};

use super::*;

/// A folder of its own, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path =
            std::env::temp_dir().join(format!("espalier-pki-{}", random_hex::<8>().unwrap()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn with_ca() -> Self {
        let folder = Self::new();
        init(&folder.0, 10).unwrap();
        folder
    }

    fn file(&self, name: &str) -> String {
        fs::read_to_string(self.0.join(name)).unwrap()
    }

    fn mode(&self, name: &str) -> u32 {
        fs::metadata(self.0.join(name))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    }

    fn issue(&self, node: &str, uid: Option<&str>) -> Result<()> {
        issue(&self.0, node, uid, &Validity::starting(now().unwrap(), 5))
    }

    fn check(&self, node: &str, uid: &str) -> Result<()> {
        let anchors = TrustAnchors::from_file(&self.0.join("ca.crt"))?;
        let path = |suffix: &str| self.0.join(format!("{node}.{suffix}"));
        let credentials = Credentials::from_files(&path("crt"), &path("key"))?;
        credentials.check(&anchors, &Identity(node.into()), Some(uid), now()?)?;
        Ok(())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

#[test]
fn issued_certificates_are_accepted_and_keys_are_private() {
    let folder = Folder::with_ca();
    folder.issue("node-1.example", Some("11-22")).unwrap();
    folder.check("node-1.example", "11-22").unwrap();
    assert_eq!(
        (folder.mode("ca.key"), folder.mode("node-1.example.key")),
        (0o600, 0o600)
    );
    assert_eq!(
        (folder.mode("ca.crt"), folder.mode("node-1.example.crt")),
        (0o644, 0o644)
    );
    let refused = folder
        .check("node-1.example", "33")
        .unwrap_err()
        .to_string();
    assert!(refused.contains("UID 33"), "{refused}");
}

#[test]
fn a_renewal_keeps_the_key_and_leaves_nothing_beside() {
    let folder = Folder::with_ca();
    folder.issue("a", None).unwrap();
    let (key, certificate) = (folder.file("a.key"), folder.file("a.crt"));
    folder.issue("a", Some("u")).unwrap();
    assert_eq!(folder.file("a.key"), key);
    let serial = |pem: &str| {
        let shown = describe(pem).unwrap();
        shown
            .lines()
            .find(|line| line.contains("serial"))
            .unwrap()
            .to_owned()
    };
    assert_ne!(serial(&folder.file("a.crt")), serial(&certificate));
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 4);
    folder.check("a", "u").unwrap();
}

#[test]
fn a_ca_is_never_overwritten() {
    let folder = Folder::with_ca();
    let before = (folder.file("ca.crt"), folder.file("ca.key"));
    let refused = init(&folder.0, 10).unwrap_err().to_string();
    assert!(refused.contains("is there already"), "{refused}");
    fs::remove_file(folder.0.join("ca.crt")).unwrap();
    init(&folder.0, 10).unwrap_err();
    assert_eq!(folder.file("ca.key"), before.1);
}

#[test]
fn names_that_are_no_node_names_are_refused_before_anything_is_written() {
    let folder = Folder::with_ca();
    for name in ["", "ca", "A", "../x", "a/b", "-a", "a..b", "a_b", "*.a"] {
        let refused = folder.issue(name, None).unwrap_err().to_string();
        assert!(refused.contains("node"), "{name:?}: {refused}");
    }
    for uid in ["", "a/b", "a b"] {
        let refused = folder.issue("a", Some(uid)).unwrap_err().to_string();
        assert!(refused.contains("is no UID"), "{refused}");
    }
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 2);
}

#[test]
fn without_a_ca_the_message_says_how_to_make_one() {
    let folder = Folder::new();
    let refused = format!("{:#}", folder.issue("a", None).unwrap_err());
    assert!(
        refused.contains("ca.crt") && refused.contains("espalier pki init"),
        "{refused}"
    );
}

#[test]
fn expired_and_future_certificates_can_be_made_for_tests() {
    let folder = Folder::with_ca();
    let issue = |expired, not_yet_valid| {
        let (dir, node) = (folder.0.clone(), "a".to_owned());
        run(&PkiCommand::Issue {
            dir,
            node,
            uid: None,
            days: 1,
            expired,
            not_yet_valid,
        })
        .unwrap();
        (
            folder.check("a", "u").unwrap_err().to_string(),
            describe(&folder.file("a.crt")).unwrap(),
        )
    };
    let (refused, shown) = issue(true, false);
    assert!(
        refused.contains("expired") && shown.contains("(expired)"),
        "{refused} {shown}"
    );
    let (refused, shown) = issue(false, true);
    assert!(
        refused.contains("not yet valid") && shown.contains("(not yet valid)"),
        "{refused} {shown}"
    );
}

#[test]
fn a_psk_has_64_digits_and_is_never_overwritten() {
    let folder = Folder::new();
    let path = folder.0.join("b.psk");
    psk(&path).unwrap();
    let text = folder.file("b.psk");
    assert_eq!((text.len(), folder.mode("b.psk")), (65, 0o600));
    assert!(text.trim_end().bytes().all(|b| b.is_ascii_hexdigit()));
    psk(&path).unwrap_err();
    assert_eq!(folder.file("b.psk"), text);
}

#[test]
fn show_names_what_a_certificate_is_for_and_prints_no_key() {
    let folder = Folder::with_ca();
    folder.issue("a", Some("u-1")).unwrap();
    let shown = describe(&folder.file("a.crt")).unwrap();
    for part in [
        "CN=a",
        "Espalier CA",
        "espalier://node/a/u-1",
        "valid now",
        "id-kp-ipsecIKE",
    ] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    assert!(
        describe(&folder.file("ca.crt"))
            .unwrap()
            .contains("made for CA")
    );
    assert_eq!(
        describe(&folder.file("a.key")).unwrap(),
        "private key (not shown)\n"
    );
    describe("nothing").unwrap_err();
}
