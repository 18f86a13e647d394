//! Values that are told when they change, and not when they are only said again.

use tokio::sync::watch;

/// Makes `value` what watchers see. True: it is another one than before, and they are woken.
pub(crate) fn tell<T: PartialEq>(watchers: &watch::Sender<T>, value: T) -> bool {
    watchers.send_if_modified(|old| {
        let changed = *old != value;
        *old = value;
        changed
    })
}
