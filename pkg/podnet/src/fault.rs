//! Faults that tests ask for: `ESPALIER_FAULT=STEP` makes the step fail after the kernel has done it, the hardest moment
//! to undo. Only in debug builds.

use crate::Error;

pub(crate) fn at(step: &'static str) -> Result<(), Error> {
    #[cfg(debug_assertions)]
    if std::env::var_os("ESPALIER_FAULT").is_some_and(|wanted| wanted == step) {
        return Err(Error::Fault { step });
    }
    let _ = step;
    Ok(())
}
