//! Which program this is.

use std::sync::Arc;

use espalier_handover::{Digest, binary};
use tokio::sync::OnceCell;
use tracing::warn;

/// The digest of the running program: known when it was executed by its descriptor, else found out once.
#[derive(Clone, Debug)]
pub(crate) struct Own(Arc<OnceCell<Option<Digest>>>);

impl Own {
    pub(crate) fn known(digest: Digest) -> Self {
        Self(Arc::new(OnceCell::new_with(Some(Some(digest)))))
    }

    /// Begins to find it out, which takes as long as reading the file.
    pub(crate) fn find() -> Self {
        let own = Self(Arc::default());
        let finding = own.clone();
        tokio::spawn(async move { finding.get().await });
        own
    }

    /// `None`: this machine does not tell.
    pub(crate) async fn get(&self) -> Option<Digest> {
        let find = || async {
            let found = tokio::task::spawn_blocking(binary::own_digest).await;
            match found.unwrap_or_else(|error| Err(error.into())) {
                Ok(digest) => Some(digest),
                Err(error) => {
                    warn!(%error, "the running program cannot be read; it is not upgraded in place by itself");
                    None
                }
            }
        };
        *self.0.get_or_init(find).await
    }
}
