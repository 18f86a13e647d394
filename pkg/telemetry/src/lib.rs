//! Logging set-up, the same in every binary.

use anyhow::{Context as _, Result, bail};
use tracing_subscriber::EnvFilter;

/// Environment variable that chooses `text` (default) or `json` lines.
pub const FORMAT_ENV: &str = "ESPALIER_LOG_FORMAT";

/// Starts logging to stderr. `filter` is a level or a tracing filter such as `info,espalier_ike=debug`.
///
/// # Errors
/// A filter or format that cannot be read, with what was expected; logging that was set up before.
pub fn init(component: &str, filter: &str) -> Result<()> {
    let filter = EnvFilter::try_new(filter)
        .with_context(|| format!("log filter {filter:?} of {component}: expected a level or target=level, as in info,espalier_ike=debug"))?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false);
    let format = std::env::var(FORMAT_ENV).unwrap_or_else(|_| "text".to_owned());
    let started = match format.as_str() {
        "text" => lines.try_init(),
        "json" => lines.json().flatten_event(true).try_init(),
        other => bail!("{FORMAT_ENV}={other}: expected text or json"),
    };
    started.map_err(|e| anyhow::anyhow!("logging of {component} cannot be set up: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_filter_is_named() {
        let error = init("test", "espalier=notalevel").unwrap_err();
        assert!(
            format!("{error:#}").contains("espalier=notalevel"),
            "{error:#}"
        );
    }
}
