//! Logs, metrics, health and the signal to end, the same in every binary.
//!
//! Logs go to standard error: standard output belongs to results (the CNI plugin's JSON, the command line's tables).

pub mod http;
pub mod metrics;
mod stop;

pub use stop::stop_signal;

use std::io::{self, IsTerminal as _};

use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt as _;

/// The shape of log lines: `text` (default) or `json`.
pub const FORMAT_VARIABLE: &str = "ESPALIER_LOG_FORMAT";

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter cannot be read.
    #[error(
        "log filter {filter:?}: {why}; use a level such as `info` or a list such as `info,espalier_ike=debug`"
    )]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        why: String,
    },
    /// The format is neither of the two.
    #[error("{FORMAT_VARIABLE}: expected `text` or `json`, got {0:?}")]
    Format(String),
    /// Logging was set up before.
    #[error("logging is set up twice in this process")]
    Twice,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// One line for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl std::str::FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "" | "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(Error::Format(other.to_owned())),
        }
    }
}

/// Logs from now on what `filter` lets through, as [`FORMAT_VARIABLE`] says. Call once, first of all. `filter` is the value of
/// `--log` or `ESPALIER_LOG`; `component` is the binary's name, said in the first line at
/// level DEBUG.
///
/// # Errors
/// [`Error::Filter`], [`Error::Format`], [`Error::Twice`].
pub fn init(component: &str, filter: &str) -> Result<(), Error> {
    let format = std::env::var(FORMAT_VARIABLE).unwrap_or_default().parse()?;
    init_with(component, filter, format)
}

/// [`init`] with the format given.
///
/// # Errors
/// [`Error::Filter`], [`Error::Twice`].
pub fn init_with(component: &str, filter: &str, format: Format) -> Result<(), Error> {
    subscriber(filter, format, io::stderr, io::stderr().is_terminal())?
        .try_init()
        .map_err(|_| Error::Twice)?;
    tracing::debug!(component, filter, "logging");
    Ok(())
}

fn subscriber<W>(
    filter: &str,
    format: Format,
    writer: W,
    colours: bool,
) -> Result<Box<dyn Subscriber + Send + Sync>, Error>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt()
        .with_env_filter(parse(filter)?)
        .with_writer(writer);
    Ok(match format {
        Format::Text => Box::new(lines.with_ansi(colours).finish()),
        Format::Json => Box::new(lines.json().flatten_event(true).finish()),
    })
}

/// A bare `debug` or `trace` means Espalier's own words, not those of the libraries below.
fn parse(filter: &str) -> Result<EnvFilter, Error> {
    let own = match filter.trim() {
        level @ ("debug" | "trace") => &format!("info,espalier={level}"),
        other => other,
    };
    let builder = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into());
    builder.parse(own).map_err(|error| Error::Filter {
        filter: filter.to_owned(),
        why: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What was logged while `log` ran.
    fn logged(filter: &str, format: Format, log: impl FnOnce()) -> String {
        let written = Arc::new(Mutex::new(Vec::new()));
        let writer = Shared(Arc::clone(&written));
        tracing::subscriber::with_default(
            subscriber(filter, format, move || writer.clone(), false).unwrap(),
            log,
        );
        String::from_utf8(written.lock().unwrap().clone()).unwrap()
    }

    #[derive(Clone)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_filter_decides_and_info_is_the_default() {
        let log = || {
            tracing::debug!("small");
            tracing::info!("medium");
            tracing::warn!("large");
        };
        let words = |filter| {
            let text = logged(filter, Format::Text, log);
            ["small", "medium", "large"].map(|word| text.contains(word))
        };
        assert_eq!(words(""), [false, true, true]);
        assert_eq!(words("debug"), [true, true, true]);
        assert_eq!(words("warn,espalier_telemetry=debug"), [true, true, true]);
        assert_eq!(words("debug,espalier_telemetry=warn"), [false, false, true]);
    }

    #[test]
    fn json_lines_are_objects_with_flat_fields() {
        let text = logged("info", Format::Json, || {
            tracing::info!(peer = "node-b", "hello")
        });
        assert!(text.starts_with('{') && text.ends_with("}\n"), "{text}");
        assert!(
            text.contains(r#""message":"hello""#) && text.contains(r#""peer":"node-b""#),
            "{text}"
        );
    }

    #[test]
    fn errors_name_the_remedy() {
        let error = parse("espalier=loud").unwrap_err().to_string();
        assert!(
            error.contains("espalier=loud") && error.contains("info,espalier_ike=debug"),
            "{error}"
        );
        let error = "xml".parse::<Format>().unwrap_err().to_string();
        assert!(
            error.contains("ESPALIER_LOG_FORMAT") && error.contains("xml"),
            "{error}"
        );
        assert_eq!("json".parse::<Format>().unwrap(), Format::Json);
        assert_eq!("".parse::<Format>().unwrap(), Format::Text);
    }

    #[test]
    fn a_second_set_up_is_refused() {
        init_with("test", "error", Format::Text).unwrap();
        assert!(matches!(
            init_with("test", "error", Format::Text),
            Err(Error::Twice)
        ));
    }
}
