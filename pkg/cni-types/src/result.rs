use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value, json};

use crate::json::{Object, wrong};
use crate::{ConfigError, Version};

/// What ADD did (SPEC.md, "Add Success"). The same for all versions; [`AddResult::to_json`] writes what a version knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddResult {
    /// Interfaces on the host and in the container.
    pub interfaces: Vec<Interface>,
    /// Addresses.
    pub ips: Vec<Ip>,
    /// Routes in the container.
    pub routes: Vec<Route>,
    /// Name servers.
    pub dns: Dns,
}

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Hardware address, `aa:bb:cc:dd:ee:ff`.
    pub mac: Option<String>,
    /// MTU in bytes. Since 1.1.0.
    pub mtu: Option<u32>,
    /// Path of the container's namespace; none for an interface of the host.
    pub sandbox: Option<String>,
    /// Path of a socket, for userspace interfaces. Since 1.1.0.
    pub socket_path: Option<String>,
    /// PCI address. Since 1.1.0.
    pub pci_id: Option<String>,
}

/// An address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ip {
    /// With its prefix length.
    pub address: IpNet,
    /// Its gateway.
    pub gateway: Option<IpAddr>,
    /// Index into [`AddResult::interfaces`].
    pub interface: Option<u32>,
}

/// A route in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination.
    pub dst: IpNet,
    /// Next hop.
    pub gw: Option<IpAddr>,
    /// Path MTU in bytes. This and the rest since 1.1.0.
    pub mtu: Option<u32>,
    /// Maximum TCP segment size to advertise, in bytes.
    pub advmss: Option<u32>,
    /// Metric.
    pub priority: Option<u32>,
    /// Routing table.
    pub table: Option<u32>,
    /// Scope, as the kernel numbers it.
    pub scope: Option<u32>,
}

impl Route {
    /// A route with nothing but destination and next hop.
    #[must_use]
    pub fn new(dst: IpNet, gw: Option<IpAddr>) -> Self {
        Self {
            dst,
            gw,
            mtu: None,
            advmss: None,
            priority: None,
            table: None,
            scope: None,
        }
    }
}

/// Settings for the container's resolver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// Addresses of name servers.
    pub nameservers: Vec<String>,
    /// Local domain.
    pub domain: Option<String>,
    /// Search domains.
    pub search: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
}

impl AddResult {
    /// For stdout, in the form of `version`, which is the request's.
    #[must_use]
    pub fn to_json(&self, version: Version) -> Value {
        let mut object = Map::from_iter([("cniVersion".to_owned(), json!(version.as_str()))]);
        put_list(
            &mut object,
            "interfaces",
            self.interfaces.iter().map(|i| i.to_json(version)),
        );
        put_list(
            &mut object,
            "ips",
            self.ips.iter().map(|ip| ip.to_json(version)),
        );
        put_list(
            &mut object,
            "routes",
            self.routes.iter().map(|r| r.to_json(version)),
        );
        object.insert("dns".to_owned(), self.dns.to_json());
        Value::Object(object)
    }

    /// Reads a result of any supported version; its own `cniVersion` may be missing.
    ///
    /// # Errors
    /// [`ConfigError`] names the field.
    pub fn from_json(value: &Value) -> Result<Self, ConfigError> {
        Self::from_json_at("", value)
    }

    pub(crate) fn from_json_at(path: &str, value: &Value) -> Result<Self, ConfigError> {
        let object = Object::new(path, value)?;
        // The specification's own examples of prevResult have none.
        if let Some(version) = object.string("cniVersion")? {
            version.parse::<Version>()?;
        }
        let interfaces: Vec<_> = object
            .objects("interfaces")?
            .iter()
            .map(Interface::read)
            .collect::<Result<_, _>>()?;
        let ips = object
            .objects("ips")?
            .iter()
            .map(|o| Ip::read(o, interfaces.len()))
            .collect::<Result<_, _>>()?;
        let routes = object
            .objects("routes")?
            .iter()
            .map(Route::read)
            .collect::<Result<_, _>>()?;
        Ok(Self {
            dns: Dns::read(&object)?,
            interfaces,
            ips,
            routes,
        })
    }

    /// This result after `previous` of the chain: what came before stays and comes first, indices follow.
    #[must_use]
    pub fn after(self, previous: Self) -> Self {
        let mut merged = previous;
        let shift = u32::try_from(merged.interfaces.len()).unwrap_or(u32::MAX);
        let shifted = |ip: Ip| Ip {
            interface: ip.interface.map(|i| i.saturating_add(shift)),
            ..ip
        };
        merged.interfaces.extend(self.interfaces);
        merged.ips.extend(self.ips.into_iter().map(shifted));
        merged.routes.extend(self.routes);
        if self.dns != Dns::default() {
            merged.dns = self.dns;
        }
        merged
    }
}

impl Interface {
    fn to_json(&self, version: Version) -> Value {
        let mut object = Map::from_iter([("name".to_owned(), json!(self.name))]);
        put(&mut object, "mac", self.mac.as_deref());
        put(&mut object, "sandbox", self.sandbox.as_deref());
        if version >= Version::V1_1_0 {
            put(&mut object, "mtu", self.mtu);
            put(&mut object, "socketPath", self.socket_path.as_deref());
            put(&mut object, "pciID", self.pci_id.as_deref());
        }
        Value::Object(object)
    }

    fn read(object: &Object<'_>) -> Result<Self, ConfigError> {
        let text = |key| {
            object
                .string(key)
                .map(|t| t.filter(|t| !t.is_empty()).map(str::to_owned))
        };
        Ok(Self {
            name: object.required_string("name")?.to_owned(),
            mac: text("mac")?,
            mtu: object.unsigned("mtu")?,
            sandbox: text("sandbox")?,
            socket_path: text("socketPath")?,
            pci_id: text("pciID")?,
        })
    }
}

impl Ip {
    fn to_json(&self, version: Version) -> Value {
        let mut object = Map::from_iter([("address".to_owned(), json!(self.address.to_string()))]);
        if version < Version::V1_0_0 {
            put(&mut object, "version", Some(self.family()));
        }
        put(&mut object, "gateway", self.gateway.map(|a| a.to_string()));
        put(&mut object, "interface", self.interface);
        Value::Object(object)
    }

    fn read(object: &Object<'_>, interfaces: usize) -> Result<Self, ConfigError> {
        let ip = Self {
            address: object.required(
                "address",
                "an address with prefix length, e.g. 10.244.1.5/32",
            )?,
            gateway: object.parsed("gateway", "an IP address")?,
            interface: object.unsigned("interface")?,
        };
        if ip.interface.is_some_and(|i| i as usize >= interfaces) {
            let found = Value::from(ip.interface);
            return Err(wrong(
                &object.path("interface"),
                "an index into `interfaces`",
                &found,
            ));
        }
        match object.string("version")? {
            Some(v) if v != ip.family() => Err(wrong(
                &object.path("version"),
                "the address' family: \"4\" or \"6\"",
                &Value::from(v),
            )),
            _ => Ok(ip),
        }
    }

    fn family(&self) -> &'static str {
        if self.address.addr().is_ipv4() {
            "4"
        } else {
            "6"
        }
    }
}

impl Route {
    fn to_json(&self, version: Version) -> Value {
        let mut object = Map::from_iter([("dst".to_owned(), json!(self.dst.to_string()))]);
        put(&mut object, "gw", self.gw.map(|a| a.to_string()));
        if version >= Version::V1_1_0 {
            let numbers = [
                ("mtu", self.mtu),
                ("advmss", self.advmss),
                ("priority", self.priority),
                ("table", self.table),
                ("scope", self.scope),
            ];
            numbers
                .into_iter()
                .for_each(|(key, number)| put(&mut object, key, number));
        }
        Value::Object(object)
    }

    fn read(object: &Object<'_>) -> Result<Self, ConfigError> {
        Ok(Self {
            dst: object.required("dst", "a network with prefix length, e.g. 0.0.0.0/0")?,
            gw: object.parsed("gw", "an IP address")?,
            mtu: object.unsigned("mtu")?,
            advmss: object.unsigned("advmss")?,
            priority: object.unsigned("priority")?,
            table: object.unsigned("table")?,
            scope: object.unsigned("scope")?,
        })
    }
}

impl Dns {
    fn to_json(&self) -> Value {
        let mut object = Map::new();
        put_list(
            &mut object,
            "nameservers",
            self.nameservers.iter().map(|s| json!(s)),
        );
        put(&mut object, "domain", self.domain.as_deref());
        put_list(&mut object, "search", self.search.iter().map(|s| json!(s)));
        put_list(
            &mut object,
            "options",
            self.options.iter().map(|s| json!(s)),
        );
        Value::Object(object)
    }

    /// Reads the `dns` field of `parent`.
    pub(crate) fn read(parent: &Object<'_>) -> Result<Self, ConfigError> {
        let Some(value) = parent.get("dns") else {
            return Ok(Self::default());
        };
        let object = Object::new(&parent.path("dns"), value)?;
        Ok(Self {
            nameservers: object.strings("nameservers")?,
            domain: object
                .string("domain")?
                .filter(|t| !t.is_empty())
                .map(str::to_owned),
            search: object.strings("search")?,
            options: object.strings("options")?,
        })
    }
}

fn put<T: Into<Value>>(object: &mut Map<String, Value>, key: &str, value: Option<T>) {
    if let Some(value) = value {
        object.insert(key.to_owned(), value.into());
    }
}

fn put_list(object: &mut Map<String, Value>, key: &str, items: impl Iterator<Item = Value>) {
    let items: Vec<Value> = items.collect();
    put(object, key, (!items.is_empty()).then_some(items));
}

#[cfg(test)]
mod tests {
    use proptest::option::of;
    use proptest::prelude::*;

    use super::*;

    fn pod() -> AddResult {
        let interface = |name: &str, sandbox: Option<&str>| Interface {
            name: name.to_owned(),
            mac: Some("02:00:00:00:00:01".to_owned()),
            mtu: Some(1408),
            sandbox: sandbox.map(str::to_owned),
            ..Interface::default()
        };
        AddResult {
            interfaces: vec![
                interface("esp0123456789a", None),
                interface("eth0", Some("/run/netns/pod")),
            ],
            ips: vec![Ip {
                address: "10.244.1.5/32".parse().unwrap(),
                gateway: Some("10.244.1.1".parse().unwrap()),
                interface: Some(1),
            }],
            routes: vec![Route::new(
                "0.0.0.0/0".parse().unwrap(),
                Some("10.244.1.1".parse().unwrap()),
            )],
            dns: Dns::default(),
        }
    }

    #[test]
    fn each_version_gets_its_own_form() {
        for version in Version::ALL {
            let value = pod().to_json(version);
            assert_eq!(value["cniVersion"], version.as_str());
            let has_family = value["ips"][0].get("version").is_some();
            assert_eq!(
                has_family,
                version < Version::V1_0_0,
                "ips[].version in {version}"
            );
            let has_mtu = value["interfaces"][1].get("mtu").is_some();
            assert_eq!(
                has_mtu,
                version >= Version::V1_1_0,
                "interfaces[].mtu in {version}"
            );
        }
        assert_eq!(pod().to_json(Version::V0_3_1)["ips"][0]["version"], "4");
    }

    #[test]
    fn the_newest_form_is_exactly_the_specifications() {
        let expected = json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": "esp0123456789a", "mac": "02:00:00:00:00:01", "mtu": 1408},
                {"name": "eth0", "mac": "02:00:00:00:00:01", "mtu": 1408, "sandbox": "/run/netns/pod"},
            ],
            "ips": [{"address": "10.244.1.5/32", "gateway": "10.244.1.1", "interface": 1}],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.244.1.1"}],
            "dns": {},
        });
        assert_eq!(pod().to_json(Version::V1_1_0), expected);
    }

    #[test]
    fn go_nulls_and_unknown_fields_are_tolerated() {
        let value = json!({
            "cniVersion": "0.4.0", "future": 1, "routes": null, "dns": {"nameservers": null, "domain": ""},
            "ips": [{"version": "4", "address": "10.1.2.3/24", "gateway": "", "interface": null}],
        });
        let result = AddResult::from_json(&value).unwrap();
        assert_eq!(
            (result.routes.len(), result.ips.len(), result.dns),
            (0, 1, Dns::default())
        );
        assert_eq!(result.ips[0].address.to_string(), "10.1.2.3/24");
    }

    /// As SPEC.md shows it in "Add example".
    #[test]
    fn a_result_needs_no_version_of_its_own_but_a_wrong_one_is_refused() {
        let mut value =
            json!({"ips": [{"address": "10.1.0.5/16", "gateway": "10.1.0.1"}], "dns": {}});
        assert_eq!(AddResult::from_json(&value).unwrap().ips.len(), 1);
        value["cniVersion"] = json!("7.0.0");
        let text = AddResult::from_json(&value).unwrap_err().to_string();
        assert!(text.contains("7.0.0"), "{text}");
    }

    #[test]
    fn wrong_fields_are_named_by_path() {
        for (ips, part) in [
            (
                json!([{"address": "10.0.0.1"}]),
                "ips[0].address is \"10.0.0.1\"",
            ),
            (json!([{}]), "ips[0].address is missing"),
            (
                json!([{"address": "10.0.0.1/32", "interface": 3}]),
                "ips[0].interface is 3",
            ),
            (
                json!([{"address": "10.0.0.1/32", "interface": -1}]),
                "ips[0].interface is -1",
            ),
            (
                json!([{"address": "fd00::1/128", "version": "4"}]),
                "ips[0].version is \"4\"",
            ),
            (json!({}), "ips is {}: expected a list"),
        ] {
            let value = json!({"cniVersion": "0.4.0", "ips": ips});
            let text = AddResult::from_json(&value).unwrap_err().to_string();
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_chain_keeps_what_came_before() {
        let merged = pod().after(pod());
        assert_eq!((merged.interfaces.len(), merged.routes.len()), (4, 2));
        assert_eq!(
            merged.ips.iter().map(|ip| ip.interface).collect::<Vec<_>>(),
            [Some(1), Some(3)]
        );
    }

    prop_compose! {
        fn network()(v6: bool, bits: u128, length in 0u8..=128) -> IpNet {
            match v6 {
                true => IpNet::new(IpAddr::from(bits.to_be_bytes()), length).unwrap(),
                false => IpNet::new(IpAddr::from((bits as u32).to_be_bytes()), length % 33).unwrap(),
            }
        }
    }
    prop_compose! {
        fn interface()(name in "[a-z0-9]{1,15}", mac in of("[0-9a-f:]{1,17}"), mtu in of(any::<u32>()),
            sandbox in of("/[a-z/]{1,20}"), socket_path in of("/[a-z]{1,9}"), pci_id in of("[0-9a-f:.]{1,12}"))
            -> Interface {
            Interface { name, mac, mtu, sandbox, socket_path, pci_id }
        }
    }
    prop_compose! {
        fn route()(dst in network(), gw in of(any::<IpAddr>()), n: [Option<u32>; 5]) -> Route {
            Route { dst, gw, mtu: n[0], advmss: n[1], priority: n[2], table: n[3], scope: n[4] }
        }
    }
    prop_compose! {
        fn dns()(nameservers in prop::collection::vec("[0-9.]{1,9}", 0..3), domain in of("[a-z.]{1,9}"),
            search in prop::collection::vec("[a-z.]{1,9}", 0..3), options in prop::collection::vec("[a-z:]{1,9}", 0..3))
            -> Dns {
            Dns { nameservers, domain, search, options }
        }
    }
    prop_compose! {
        fn result()(interfaces in prop::collection::vec(interface(), 1..4), routes in prop::collection::vec(route(), 0..4),
            ips in prop::collection::vec((network(), of(any::<IpAddr>()), of(any::<u32>())), 0..4), dns in dns())
            -> AddResult {
            let count = interfaces.len() as u32;
            let ip = |(address, gateway, interface): (IpNet, _, Option<u32>)|
                Ip { address, gateway, interface: interface.map(|i| i % count) };
            AddResult { ips: ips.into_iter().map(ip).collect(), interfaces, routes, dns }
        }
    }

    proptest! {
        #[test]
        fn the_newest_version_loses_nothing(result in result()) {
            let text = result.to_json(Version::LATEST).to_string();
            let value: Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(AddResult::from_json(&value).unwrap(), result);
        }

        #[test]
        fn older_versions_lose_only_what_they_do_not_know(result in result(), version in 0usize..4) {
            let version = Version::ALL[version];
            let once = result.to_json(version);
            let again = AddResult::from_json(&once).unwrap();
            prop_assert_eq!(again.to_json(version), once);
            prop_assert_eq!(again.ips, result.ips);
        }
    }
}
