//! `/proc/net/xfrm_stat`: what the kernel dropped, for the whole network namespace, foreign states included.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

const PATH: &str = "/proc/thread-self/net/xfrm_stat";
/// The file has some 30 lines.
const MAX_LEN: usize = 16 << 10;

/// The counters of the network namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Counters(Option<File>);

impl Counters {
    /// A kernel without CONFIG_XFRM_STATISTICS has no counters.
    pub(crate) fn open() -> Self {
        Self(File::open(PATH).ok())
    }

    /// Those that are not zero.
    pub(crate) fn read(&self) -> Vec<(String, u64)> {
        let mut buffer = vec![0; MAX_LEN];
        let length = self
            .0
            .as_ref()
            .and_then(|file| file.read_at(&mut buffer, 0).ok());
        let text = buffer.get(..length.unwrap_or_default()).unwrap_or_default();
        parse(&String::from_utf8_lossy(text))
    }
}

/// `XfrmInNoStates   12` becomes `("in_no_states", 12)`.
pub fn parse(text: &str) -> Vec<(String, u64)> {
    let lines = text.lines().filter_map(|line| {
        let (name, value) = line.split_once(char::is_whitespace)?;
        let value = value.trim().parse().ok()?;
        let name = name.strip_prefix("Xfrm")?;
        (value > 0 && !name.is_empty()).then(|| (snake(name), value))
    });
    lines.collect()
}

fn snake(name: &str) -> String {
    let mut text = String::new();
    for (at, character) in name.char_indices() {
        if character.is_ascii_uppercase() && at > 0 {
            text.push('_');
        }
        text.extend(character.to_lowercase());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_that_counted_are_named() {
        let text = "XfrmInError                     \t0\nXfrmInNoStates                  \t12\nXfrmOutBundleGenError\t3\nbroken\nXfrm 4\n";
        assert_eq!(
            parse(text),
            [
                ("in_no_states".to_owned(), 12),
                ("out_bundle_gen_error".to_owned(), 3)
            ]
        );
    }
}
