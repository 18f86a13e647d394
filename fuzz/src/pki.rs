//! What a node sends to the signer.

use espalier_pki::csr;

/// DER of a request for a certificate (PKCS#10), as anybody may send it.
pub fn pki_request(data: &[u8]) {
    let pem = pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", data));
    let Ok(request) = csr::read(pem.as_bytes()) else {
        // As it is: no PEM.
        assert!(csr::read(data).is_err() || data.starts_with(b"-----"));
        return;
    };
    assert!(!request.spki.is_empty());
    if request.check_names("node-a", "uid-a").is_ok() {
        assert_eq!(request.subject, "CN=node-a");
        assert!(!request.ca);
    }
}
