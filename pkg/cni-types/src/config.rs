use serde_json::Value;

use crate::env::identifier_fault;
use crate::json::{Object, shortened, wrong};
use crate::{AddResult, Dns, UnsupportedVersion, Version};

/// One interface of one container: the key that everything of a pod hangs on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attachment {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`: the interface's name inside the container.
    pub ifname: String,
}

/// What a runtime writes to the plugin's stdin (SPEC.md, "Plugin configuration objects"). Fields that nobody knows are
/// tolerated, `capabilities`, `runtimeConfig` and `args` among them: containerd leaves them in.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkConfig {
    /// Version of this document and of the result.
    pub version: Version,
    /// The network's name, unique on the node.
    pub name: String,
    /// The plugin's file name.
    pub plugin: String,
    document: Value,
}

impl NetworkConfig {
    /// Reads a configuration.
    ///
    /// # Errors
    /// [`ConfigError`] names the field, what was expected and what came.
    pub fn parse(text: &[u8]) -> Result<Self, ConfigError> {
        let document = document(text)?;
        let object = Object::new("", &document)?;
        let version = object.required_string("cniVersion")?.parse()?;
        let name = object.required_string("name")?.to_owned();
        if identifier_fault(&name).is_some() {
            let expected = "a letter or digit, then letters, digits, '_', '.' or '-'";
            return Err(wrong("name", expected, &Value::from(name)));
        }
        let plugin = object.required_string("type")?.to_owned();
        Ok(Self {
            version,
            name,
            plugin,
            document,
        })
    }

    /// A plugin's own setting that is a string.
    ///
    /// # Errors
    /// [`ConfigError::Wrong`] when it is something else.
    pub fn string(&self, key: &str) -> Result<Option<&str>, ConfigError> {
        Object::new("", &self.document)?.string(key)
    }

    /// `prevResult`: what the chain before this plugin did (ADD), or what ADD said (CHECK, DEL). Read only when asked for,
    /// so that a broken one cannot stop a DEL.
    ///
    /// # Errors
    /// [`ConfigError`] names the field inside it.
    pub fn prev_result(&self) -> Result<Option<AddResult>, ConfigError> {
        let object = Object::new("", &self.document)?;
        object
            .get("prevResult")
            .map(|value| AddResult::from_json_at("prevResult", value))
            .transpose()
    }

    /// Refuses a well-known field that this plugin does not honour: addresses are the agent's, no other IPAM plugin is asked.
    ///
    /// # Errors
    /// [`ConfigError::Unsupported`] names the field and its value.
    pub fn refuse_unsupported(&self) -> Result<(), ConfigError> {
        let object = Object::new("", &self.document)?;
        match object.get("ipam") {
            Some(ipam) if *ipam != serde_json::json!({}) => Err(ConfigError::Unsupported {
                field: "ipam".to_owned(),
                value: shortened(&ipam.to_string()),
            }),
            _ => Ok(()),
        }
    }

    /// `dns`: what to hand through to the result.
    ///
    /// # Errors
    /// [`ConfigError`] names the field inside it.
    pub fn dns(&self) -> Result<Dns, ConfigError> {
        Dns::read(&Object::new("", &self.document)?)
    }

    /// `cni.dev/valid-attachments` of GC: what to keep. libcni before 1.3 calls it `cni.dev/attachments`.
    ///
    /// # Errors
    /// [`ConfigError::Missing`] when there is no list: that must not be taken for an empty one, which removes everything.
    pub fn valid_attachments(&self) -> Result<Vec<Attachment>, ConfigError> {
        const KEYS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];
        let object = Object::new("", &self.document)?;
        let key = KEYS.into_iter().find(|key| object.get(key).is_some());
        let missing = || ConfigError::Missing {
            field: KEYS[0].to_owned(),
            expected: "a list",
        };
        object
            .objects(key.ok_or_else(missing)?)?
            .iter()
            .map(attachment)
            .collect()
    }
}

fn attachment(object: &Object<'_>) -> Result<Attachment, ConfigError> {
    Ok(Attachment {
        container_id: object.required_string("containerID")?.to_owned(),
        ifname: object.required_string("ifname")?.to_owned(),
    })
}

fn document(text: &[u8]) -> Result<Value, ConfigError> {
    serde_json::from_slice(text).map_err(|error| ConfigError::NotJson {
        reason: error.to_string(),
    })
}

/// What is wrong with a configuration or result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON at all.
    #[error("the network configuration on stdin is not JSON: {reason}")]
    NotJson {
        /// What the parser says, with line and column.
        reason: String,
    },
    /// A version that this crate does not speak.
    #[error(transparent)]
    Version(#[from] UnsupportedVersion),
    /// A field is not there, or empty.
    #[error("network configuration: {field} is missing: expected {expected}")]
    Missing {
        /// Its path, e.g. `prevResult.ips[0].address`.
        field: String,
        /// What should be there.
        expected: &'static str,
    },
    /// A well-known field that this plugin does not honour.
    #[error(
        "network configuration: {field} is {value}, which this plugin does not support: it has its addresses from its agent; remove the field"
    )]
    Unsupported {
        /// Its name.
        field: String,
        /// Its value.
        value: String,
    },
    /// A field has a wrong value.
    #[error("network configuration: {field} is {found}: expected {expected}")]
    Wrong {
        /// Its path, e.g. `prevResult.ips[0].address`.
        field: String,
        /// What should be there.
        expected: &'static str,
        /// What is there.
        found: String,
    },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn parse(value: &Value) -> Result<NetworkConfig, ConfigError> {
        NetworkConfig::parse(value.to_string().as_bytes())
    }

    fn minimal() -> Value {
        json!({"cniVersion": "1.1.0", "name": "mesh", "type": "espalier-cni"})
    }

    /// containerd leaves `capabilities` in; keys of `portMappings` arrive capitalised.
    #[test]
    fn unknown_fields_and_containerds_leftovers_are_tolerated() {
        let mut value = minimal();
        value["capabilities"] = json!({"portMappings": true, "bandwidth": "odd"});
        value["runtimeConfig"] = json!({"portMappings": [{"HostPort": 80, "ContainerPort": 8080, "Protocol": "tcp", "HostIP": ""}]});
        value["cni.dev/future"] = json!([1, 2]);
        value["ipMasq"] = json!(false);
        let config = parse(&value).unwrap();
        assert_eq!(
            (config.version, config.name.as_str()),
            (Version::V1_1_0, "mesh")
        );
        assert_eq!(
            (config.prev_result().unwrap(), config.dns().unwrap()),
            (None, Dns::default())
        );
    }

    #[test]
    fn wrong_fields_are_named() {
        for (key, value, part) in [
            ("name", json!("a b"), "name is \"a b\""),
            ("name", json!(7), "name is 7: expected a string"),
            ("name", json!(""), "name is missing"),
            ("type", json!(null), "type is missing"),
            (
                "cniVersion",
                json!("9.9.9"),
                "cniVersion \"9.9.9\" is not supported",
            ),
            (
                "cniVersion",
                json!([]),
                "cniVersion is []: expected a string",
            ),
        ] {
            let mut config = minimal();
            config[key] = value;
            let text = parse(&config).unwrap_err().to_string();
            assert!(text.contains(part), "{text}");
        }
        let mut config = minimal();
        config["socket"] = json!(5);
        let text = parse(&config)
            .unwrap()
            .string("socket")
            .unwrap_err()
            .to_string();
        assert!(text.contains("socket is 5: expected a string"), "{text}");
    }

    #[test]
    fn a_field_that_is_not_honoured_is_named_with_its_value() {
        let mut value = minimal();
        for (ipam, refused) in [
            (json!(null), false),
            (json!({}), false),
            (json!({"type": "host-local"}), true),
        ] {
            value["ipam"] = ipam;
            let result = parse(&value).unwrap().refuse_unsupported();
            assert_eq!(result.is_err(), refused, "{value}");
        }
        let error = parse(&value).unwrap().refuse_unsupported().unwrap_err();
        let text = error.to_string();
        assert!(text.contains(r#"ipam is {"type":"host-local"}"#), "{text}");
        assert_eq!(crate::Error::from(error).code.number(), 2);
    }

    #[test]
    fn what_is_not_an_object_is_refused() {
        assert!(matches!(
            NetworkConfig::parse(b"{"),
            Err(ConfigError::NotJson { .. })
        ));
        assert!(matches!(
            NetworkConfig::parse(b""),
            Err(ConfigError::NotJson { .. })
        ));
        assert!(
            NetworkConfig::parse(b"[]")
                .unwrap_err()
                .to_string()
                .contains("the document is []")
        );
    }

    #[test]
    fn a_broken_prev_result_only_matters_to_who_reads_it() {
        let mut value = minimal();
        value["prevResult"] = json!({"cniVersion": "1.1.0", "ips": [{"address": "nonsense"}]});
        let config = parse(&value).unwrap();
        let text = config.prev_result().unwrap_err().to_string();
        assert!(
            text.contains("prevResult.ips[0].address is \"nonsense\""),
            "{text}"
        );
    }

    #[test]
    fn gc_needs_the_list_even_when_it_is_empty() {
        let mut value = minimal();
        assert!(matches!(
            parse(&value).unwrap().valid_attachments(),
            Err(ConfigError::Missing { .. })
        ));
        value["cni.dev/valid-attachments"] = json!([]);
        assert_eq!(parse(&value).unwrap().valid_attachments(), Ok(Vec::new()));
        value["cni.dev/valid-attachments"] = json!([{"containerID": "c", "ifname": "eth0"}]);
        let keep = vec![Attachment {
            container_id: "c".into(),
            ifname: "eth0".into(),
        }];
        assert_eq!(parse(&value).unwrap().valid_attachments(), Ok(keep));
        value["cni.dev/valid-attachments"] = json!([{"containerID": "c"}]);
        let text = parse(&value)
            .unwrap()
            .valid_attachments()
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("cni.dev/valid-attachments[0].ifname is missing"),
            "{text}"
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes: Vec<u8>) {
            let _ = NetworkConfig::parse(&bytes);
        }

        #[test]
        fn any_name_is_taken_or_refused_by_name(name: String) {
            let mut value = minimal();
            value["name"] = json!(name);
            match parse(&value) {
                Ok(config) => prop_assert_eq!(config.name, name),
                Err(error) => prop_assert!(error.to_string().contains("name is")),
            }
        }
    }
}
