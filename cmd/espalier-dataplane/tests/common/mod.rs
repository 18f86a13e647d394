//! What all tests of this program begin with.

use espalier_testnet::isolated;

/// Runs `test` in a sandbox, on a runtime of one thread.
pub(crate) fn in_sandbox(name: &str, test: impl AsyncFnOnce()) {
    isolated(name, || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(test());
    });
}
