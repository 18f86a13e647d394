//! What looks like a secret is taken out.

use serde_json::Value;

const REMOVED: &str = "[removed by espalier support-bundle]";
const BEGIN: &str = "-----BEGIN ";
const PRIVATE: &str = "PRIVATE KEY-----";
const END: &str = "-----END ";
/// A JSON web token begins so (`{"` in base64url); a service account's has hundreds of letters.
const TOKEN: &str = "eyJ";
const TOKEN_MIN: usize = 60;
/// Values of environment variables that are kept.
const KNOWN: [&str; 7] = [
    "ESPALIER_LOG",
    "KUBERNETES_SERVICE_HOST",
    "KUBERNETES_SERVICE_PORT",
    "NODE_NAME",
    "POD_NAME",
    "POD_NAMESPACE",
    "RUST_LOG",
];
/// Part of the name of a value that is not kept, in lower case.
const SECRET_NAMES: [&str; 7] = [
    "password",
    "passwd",
    "token",
    "secret",
    "psk",
    "credential",
    "privatekey",
];
/// Names of Secrets, which are no secrets.
const NAMES_OF_SECRETS: [&str; 4] = [
    "existingsecret",
    "pullsecrets",
    "imagepullsecrets",
    "secretname",
];

/// Text without private keys and tokens.
pub(super) fn scrub(text: &str) -> String {
    without_tokens(&without_keys(text))
}

/// PEM (RFC 7468): also where line ends are written as `\n`, as in JSON.
fn without_keys(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(BEGIN) {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        // The label is on the same line: `EC PRIVATE KEY-----`.
        let label_ends = from
            .get(BEGIN.len()..)
            .and_then(|label| label.find("-----"));
        let label = label_ends.and_then(|end| from.get(BEGIN.len()..BEGIN.len() + end + 5));
        if !label.is_some_and(|label| label.ends_with(PRIVATE)) {
            out.push_str(BEGIN);
            rest = from.get(BEGIN.len()..).unwrap_or_default();
            continue;
        }
        out.push_str(REMOVED);
        // One without an end is taken out to the end of the text.
        let ends = from.find(END).and_then(|end| {
            let after = from.get(end + END.len()..)?;
            Some(end + END.len() + after.find("-----")? + 5)
        });
        rest = ends.and_then(|end| from.get(end..)).unwrap_or_default();
    }
    out.push_str(rest);
    out
}

fn without_tokens(text: &str) -> String {
    let of_token = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '=');
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(TOKEN) {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let end = from.find(|c| !of_token(c)).unwrap_or(from.len());
        let (token, after) = from.split_at(end);
        let is_one = token.len() >= TOKEN_MIN && token.matches('.').count() >= 2;
        out.push_str(if is_one { REMOVED } else { token });
        rest = after;
    }
    out.push_str(rest);
    out
}

/// An API object without what may hold secrets of others, and without what only takes room: values of environment variables that are
/// not known, annotations of others, managed fields.
pub(super) fn clean(object: &mut Value) {
    match object {
        Value::Array(items) => items.iter_mut().for_each(clean),
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                match name.as_str() {
                    "metadata" => clean_metadata(value),
                    "env" => clean_env(value),
                    "args" | "command" => clean_words(value),
                    _ => {}
                }
                clean(value);
            }
        }
        _ => {}
    }
}

fn clean_metadata(metadata: &mut Value) {
    let Some(metadata) = metadata.as_object_mut() else {
        return;
    };
    metadata.remove("managedFields");
    let annotations = metadata
        .get_mut("annotations")
        .and_then(Value::as_object_mut);
    for (key, value) in annotations.into_iter().flatten() {
        let domain = key.split('/').next().unwrap_or_default();
        let ours = domain.ends_with("espalier.dev") || domain.ends_with("kubernetes.io");
        // It has the whole object once more.
        if !ours || key.ends_with("last-applied-configuration") {
            *value = REMOVED.into();
        }
    }
}

fn clean_env(list: &mut Value) {
    for variable in list.as_array_mut().into_iter().flatten() {
        let name = variable["name"].as_str().unwrap_or_default();
        if !KNOWN.contains(&name) && variable.get("value").is_some() {
            variable["value"] = REMOVED.into();
        }
    }
}

/// `--some-token=value`.
fn clean_words(list: &mut Value) {
    for word in list.as_array_mut().into_iter().flatten() {
        let Some((name, _)) = word.as_str().and_then(|word| word.split_once('=')) else {
            continue;
        };
        if is_secret(name) {
            *word = format!("{name}={REMOVED}").into();
        }
    }
}

fn is_secret(name: &str) -> bool {
    let name = name.to_lowercase().replace(['-', '_'], "");
    !NAMES_OF_SECRETS.contains(&name.as_str())
        && SECRET_NAMES.iter().any(|word| name.contains(word))
}

/// Values of a chart: every text whose name tells of a secret, and environment variables.
pub(super) fn clean_values(values: &mut Value) {
    match values {
        Value::Array(items) => items.iter_mut().for_each(clean_values),
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                match name.as_str() {
                    "extraEnv" => clean_env(value),
                    "extraArgs" => clean_words(value),
                    name if is_secret(name) && !value.is_object() && !value.is_array() => {
                        *value = REMOVED.into();
                    }
                    _ => clean_values(value),
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn private_keys_go_and_certificates_stay() {
        let text = "a\n-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n\
                    -----BEGIN EC PRIVATE KEY-----\nSECRET\n-----END EC PRIVATE KEY-----\nz\n";
        let scrubbed = scrub(text);
        assert!(
            scrubbed.contains("MII") && scrubbed.ends_with("\nz\n"),
            "{scrubbed}"
        );
        assert!(!scrubbed.contains("SECRET"), "{scrubbed}");
        // As a log has it in JSON, and cut off.
        for text in [
            r#"{"key":"-----BEGIN PRIVATE KEY-----\nSECRET\n-----END PRIVATE KEY-----\n"}"#,
            "-----BEGIN PRIVATE KEY-----\nSECRET",
        ] {
            assert!(!scrub(text).contains("SECRET"), "{text}");
        }
        assert_eq!(scrub("-----BEGIN "), "-----BEGIN ");
    }

    #[test]
    fn tokens_go() {
        let token = format!("eyJhbGci{}.eyJpc3Mi{}.c2ln", "x".repeat(40), "y".repeat(40));
        assert_eq!(
            scrub(&format!("Bearer {token}\"")),
            format!("Bearer {REMOVED}\"")
        );
        assert_eq!(scrub("eyJ short.a.b"), "eyJ short.a.b");
    }

    #[test]
    fn what_others_put_into_objects_goes() {
        let mut object = json!({"items": [{
            "metadata": {
                "name": "pod", "managedFields": [{"manager": "x"}],
                "annotations": {
                    "example.com/backend": "SECRET", "espalier.dev/signer": "kept",
                    "kubectl.kubernetes.io/last-applied-configuration": "SECRET",
                },
            },
            "spec": {"containers": [{
                "args": ["--api-token=SECRET", "--http=0.0.0.0:9808"],
                "env": [
                    {"name": "OTHER", "value": "SECRET"},
                    {"name": "ESPALIER_LOG", "value": "debug"},
                    {"name": "FROM", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                ],
            }]},
        }]});
        clean(&mut object);
        let text = object.to_string();
        assert!(
            !text.contains("SECRET") && !text.contains("managedFields"),
            "{text}"
        );
        for kept in ["kept", "debug", "0.0.0.0:9808", "spec.nodeName"] {
            assert!(text.contains(kept), "{text}");
        }
    }

    #[test]
    fn values_that_are_secrets_by_name_go() {
        let mut values = json!({
            "psk": {"existingSecret": "my-psks"}, "image": {"pullSecrets": [{"name": "registry"}]},
            "registry": {"password": "SECRET"}, "apiToken": "SECRET",
            "agent": {"extraEnv": [{"name": "X", "value": "SECRET"}]},
        });
        clean_values(&mut values);
        let text = values.to_string();
        assert!(!text.contains("SECRET"), "{text}");
        assert!(
            text.contains("my-psks") && text.contains("registry"),
            "{text}"
        );
    }
}
