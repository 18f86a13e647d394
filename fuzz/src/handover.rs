//! What a data plane process leaves to the program that replaces it, as a program of another release would write it.

use espalier_handover::{Plane, format};

/// UDP port of the data plane that takes over.
const PORT: u16 = 4500;

/// The bytes as they are; then the same as a body behind a right header, so that mutants get past the checksum.
pub fn handover_state(data: &[u8]) {
    take_over(data);
    take_over(&format::seal(data));
}

fn take_over(bytes: &[u8]) {
    let Ok(state) = format::read(bytes) else {
        return;
    };
    let again = format::read(&format::write(state.clone()));
    assert_eq!(again.expect("what was written is read"), state);
    if let Plane::Userspace(frozen) = state.plane {
        // Refused or not, it does not panic.
        let _ = espalier_esp_tun::check(PORT, frozen);
    }
}
