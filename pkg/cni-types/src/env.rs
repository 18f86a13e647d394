use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use crate::Attachment;

/// What the runtime asks for, from the environment, checked by the rules of the specification (SPEC.md, "Parameters").
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invocation {
    /// Put an interface into a namespace.
    Add {
        /// Whose interface.
        attachment: Attachment,
        /// The namespace, as a path.
        netns: PathBuf,
        /// `CNI_ARGS`.
        args: Args,
    },
    /// Remove an interface. `netns` may be gone already.
    Del {
        /// Whose interface.
        attachment: Attachment,
        /// The namespace, as a path; an empty `CNI_NETNS` is none.
        netns: Option<PathBuf>,
    },
    /// Compare an interface with what ADD said.
    Check {
        /// Whose interface.
        attachment: Attachment,
        /// The namespace, as a path.
        netns: PathBuf,
    },
    /// Remove what belongs to none of the attachments that the configuration lists.
    Gc,
    /// Would an ADD succeed now?
    Status,
    /// Which versions? Everything else in the environment is ignored: runtimes set `CNI_NETNS=dummy`.
    Version,
}

impl Invocation {
    /// Reads the process' environment.
    ///
    /// # Errors
    /// [`EnvError`] names every variable that is missing or wrong.
    pub fn from_env() -> Result<Self, EnvError> {
        Self::parse(|name| std::env::var_os(name))
    }

    /// Reads the environment that `get` gives.
    ///
    /// # Errors
    /// [`EnvError`] names every variable that is missing or wrong.
    pub fn parse(get: impl Fn(&str) -> Option<OsString>) -> Result<Self, EnvError> {
        let mut reader = Reader {
            get,
            problems: Vec::new(),
        };
        let parsed = reader.invocation();
        match parsed {
            Some(invocation) if reader.problems.is_empty() => Ok(invocation),
            _ => Err(EnvError {
                problems: reader.problems,
            }),
        }
    }

    /// `CNI_COMMAND`.
    #[must_use]
    pub fn command(&self) -> &'static str {
        match self {
            Self::Add { .. } => "ADD",
            Self::Del { .. } => "DEL",
            Self::Check { .. } => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }
}

/// Variables that are missing or wrong: one sentence each, beginning with the variable's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("environment: {}", problems.join("; "))]
pub struct EnvError {
    problems: Vec<String>,
}

/// `CNI_ARGS`: `KEY=VALUE;KEY=VALUE`. Keys that nobody knows are kept and harm nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args(BTreeMap<String, String>);

impl Args {
    /// Reads the variable's value.
    ///
    /// # Errors
    /// The pair that has no `=` or no key.
    pub fn parse(text: &str) -> Result<Self, String> {
        let pair = |pair: &str| match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(pair.to_owned()),
        };
        text.split(';')
            .filter(|part| !part.is_empty())
            .map(pair)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// The pod's namespace, `K8S_POD_NAMESPACE`.
    #[must_use]
    pub fn pod_namespace(&self) -> Option<&str> {
        self.get("K8S_POD_NAMESPACE")
    }

    /// The pod's name, `K8S_POD_NAME`.
    #[must_use]
    pub fn pod_name(&self) -> Option<&str> {
        self.get("K8S_POD_NAME")
    }

    /// The pod's UID, `K8S_POD_UID`.
    #[must_use]
    pub fn pod_uid(&self) -> Option<&str> {
        self.get("K8S_POD_UID")
    }
}

/// Collects problems, so that one run names them all.
struct Reader<G> {
    get: G,
    problems: Vec<String>,
}

impl<G: Fn(&str) -> Option<OsString>> Reader<G> {
    fn invocation(&mut self) -> Option<Invocation> {
        match self.text("CNI_COMMAND")?.as_str() {
            "ADD" => self.add(),
            "DEL" => self.del(),
            "CHECK" => self.check(),
            "GC" => Some(Invocation::Gc),
            "STATUS" => Some(Invocation::Status),
            "VERSION" => Some(Invocation::Version),
            "" => self
                .problem("CNI_COMMAND is not set: expected ADD, DEL, CHECK, GC, STATUS or VERSION"),
            other => self.problem(&format!(
                "CNI_COMMAND is {other:?}: expected ADD, DEL, CHECK, GC, STATUS or VERSION"
            )),
        }
    }

    fn add(&mut self) -> Option<Invocation> {
        let (attachment, netns, args) = (self.attachment(), self.required_netns(), self.args());
        Some(Invocation::Add {
            attachment: attachment?,
            netns: netns?,
            args: args?,
        })
    }

    fn del(&mut self) -> Option<Invocation> {
        let (attachment, netns) = (self.attachment(), self.netns());
        Some(Invocation::Del {
            attachment: attachment?,
            netns: netns?,
        })
    }

    fn check(&mut self) -> Option<Invocation> {
        let (attachment, netns) = (self.attachment(), self.required_netns());
        Some(Invocation::Check {
            attachment: attachment?,
            netns: netns?,
        })
    }

    fn attachment(&mut self) -> Option<Attachment> {
        let (container_id, ifname) = (self.text("CNI_CONTAINERID"), self.text("CNI_IFNAME"));
        let (container_id, ifname) = (container_id?, ifname?);
        let id_fault = identifier_fault(&container_id).map(|why| format!("CNI_CONTAINERID {why}"));
        let name_fault = ifname_fault(&ifname).map(|why| format!("CNI_IFNAME {why}"));
        self.problems.extend(id_fault);
        self.problems.extend(name_fault);
        Some(Attachment {
            container_id,
            ifname,
        })
    }

    fn required_netns(&mut self) -> Option<PathBuf> {
        let netns = self.netns()?;
        if netns.is_none() {
            return self
                .problem("CNI_NETNS is not set: expected the path of the pod's network namespace");
        }
        netns
    }

    fn netns(&mut self) -> Option<Option<PathBuf>> {
        let text = self.text("CNI_NETNS")?;
        Some(
            Some(text)
                .filter(|text| !text.is_empty())
                .map(PathBuf::from),
        )
    }

    fn args(&mut self) -> Option<Args> {
        let text = self.text("CNI_ARGS")?;
        match Args::parse(&text) {
            Ok(args) => Some(args),
            Err(part) => self.problem(&format!(
                "CNI_ARGS has {part:?}: expected KEY=VALUE;KEY=VALUE"
            )),
        }
    }

    /// The variable's value; empty when it is not set.
    fn text(&mut self, name: &str) -> Option<String> {
        match (self.get)(name).unwrap_or_default().into_string() {
            Ok(text) => Some(text),
            Err(raw) => self.problem(&format!("{name} is {raw:?}: expected UTF-8")),
        }
    }

    fn problem<T>(&mut self, text: &str) -> Option<T> {
        self.problems.push(text.to_owned());
        None
    }
}

/// Why `text` is no container ID or network name. "Must start with an alphanumeric character, optionally followed by any
/// combination of one or more alphanumeric characters, underscore, dot or hyphen."
pub(crate) fn identifier_fault(text: &str) -> Option<String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if text.is_empty() {
        return Some("is empty".to_owned());
    }
    let good = text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(allowed);
    (!good).then(|| {
        format!("is {text:?}: expected a letter or digit, then letters, digits, '_', '.' or '-'")
    })
}

/// Why `text` is no interface name: the kernel's rules (`dev_valid_name`) and the specification's.
fn ifname_fault(text: &str) -> Option<String> {
    const LONGEST: usize = 15;
    let forbidden = |c: char| c == '/' || c == ':' || c.is_whitespace();
    match text {
        "" => Some("is empty".to_owned()),
        "." | ".." => Some(format!("is {text:?}: expected another name")),
        _ if text.len() > LONGEST => Some(format!("is {text:?}: expected at most {LONGEST} bytes")),
        _ if text.contains(forbidden) => Some(format!(
            "is {text:?}: expected a name without '/', ':' and spaces"
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(variables: &[(&str, &str)]) -> Result<Invocation, EnvError> {
        Invocation::parse(|name| {
            variables
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, value)| OsString::from(value))
        })
    }

    fn attachment() -> Attachment {
        Attachment {
            container_id: "c0ffee".to_owned(),
            ifname: "eth0".to_owned(),
        }
    }

    const ADD: [(&str, &str); 5] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c0ffee"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/run/netns/pod"),
        (
            "CNI_ARGS",
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=u;X=a=b",
        ),
    ];

    #[test]
    fn containerd_add_gives_the_pod() {
        let Invocation::Add {
            attachment: who,
            netns,
            args,
        } = parse(&ADD).unwrap()
        else {
            panic!("ADD")
        };
        assert_eq!(
            (who, netns),
            (attachment(), PathBuf::from("/run/netns/pod"))
        );
        assert_eq!(
            (args.pod_namespace(), args.pod_name()),
            (Some("default"), Some("web-0"))
        );
        assert_eq!(
            (args.pod_uid(), args.get("X"), args.get("Y")),
            (Some("u"), Some("a=b"), None)
        );
    }

    #[test]
    fn every_wrong_variable_is_named_at_once() {
        let error = parse(&[
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "-x"),
            ("CNI_IFNAME", "a name"),
            ("CNI_ARGS", "novalue"),
        ]);
        let text = error.unwrap_err().to_string();
        for name in ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS"] {
            assert!(text.contains(name), "{name} is missing in: {text}");
        }
    }

    /// containerd 2.1.9 sends DEL twice, the second with an empty CNI_NETNS; others leave it out.
    #[test]
    fn del_needs_neither_netns_nor_sound_args() {
        let gone = Invocation::Del {
            attachment: attachment(),
            netns: None,
        };
        let base = [
            ("CNI_COMMAND", "DEL"),
            ("CNI_CONTAINERID", "c0ffee"),
            ("CNI_IFNAME", "eth0"),
        ];
        assert_eq!(parse(&base), Ok(gone.clone()));
        let empty = [
            base.as_slice(),
            &[("CNI_NETNS", ""), ("CNI_ARGS", "broken")],
        ]
        .concat();
        assert_eq!(parse(&empty), Ok(gone));
    }

    #[test]
    fn version_ignores_everything_else() {
        let variables = [
            ("CNI_COMMAND", "VERSION"),
            ("CNI_NETNS", "dummy"),
            ("CNI_IFNAME", "a/b"),
        ];
        assert_eq!(parse(&variables), Ok(Invocation::Version));
        assert_eq!(parse(&[("CNI_COMMAND", "GC")]), Ok(Invocation::Gc));
        assert_eq!(parse(&[("CNI_COMMAND", "STATUS")]), Ok(Invocation::Status));
    }

    #[test]
    fn an_unknown_or_missing_command_is_named() {
        let text = parse(&[("CNI_COMMAND", "add")]).unwrap_err().to_string();
        assert!(text.contains("CNI_COMMAND is \"add\""), "{text}");
        let text = parse(&[]).unwrap_err().to_string();
        assert!(text.contains("CNI_COMMAND is not set"), "{text}");
    }

    #[test]
    fn interface_names_follow_the_kernel() {
        for good in ["eth0", "a", "fifteen-bytes-x", "e.100", "ä"] {
            assert_eq!(ifname_fault(good), None, "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "sixteen-bytes-xx",
            "a/b",
            "a:b",
            "a b",
            "a\tb",
        ] {
            assert!(ifname_fault(bad).is_some(), "{bad}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn bytes_that_are_not_utf8_are_refused() {
        use std::os::unix::ffi::OsStringExt;
        let error = Invocation::parse(|_| Some(OsString::from_vec(vec![0xff])));
        assert!(error.unwrap_err().to_string().contains("CNI_COMMAND"));
    }

    proptest! {
        #[test]
        fn any_environment_gives_an_invocation_or_a_reason(values: [String; 4], add: bool) {
            let command = if add { "ADD" } else { "DEL" };
            let names = ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS"];
            let pairs: Vec<_> = names.into_iter().zip(values.iter().map(String::as_str))
                .chain([("CNI_COMMAND", command)]).collect();
            match parse(&pairs) {
                Ok(invocation) => prop_assert_eq!(invocation.command(), command),
                Err(error) => prop_assert!(!error.problems.is_empty()),
            }
        }

        #[test]
        fn args_round_trip(pairs in proptest::collection::btree_map("[A-Za-z0-9_]{1,12}", "[^;\\x00]{0,12}", 0..6)) {
            let text: Vec<_> = pairs.iter().map(|(k, v)| format!("{k}={v}")).collect();
            prop_assert_eq!(Args::parse(&text.join(";")), Ok(Args(pairs)));
        }
    }
}
