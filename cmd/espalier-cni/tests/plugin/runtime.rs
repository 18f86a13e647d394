//! A runtime by the rules of libcni (SPEC.md, section 3): a list of plugins, results cached on disk, verbs recorded. With Debian's
//! reference plugins chained after ours.
//!
//! ```text
//!  Netns "client" 192.0.2.2 ── 192.0.2.1 the node ── esp… ── eth0 10.244.1.2 Netns "pod"
//! ```

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use espalier_testnet::{Netns, VethEnd, address, isolated, route, sysctl, veth};
use serde_json::{Value, json};

use crate::support::{CONTAINER, Called, FakeAgent, TestNode};
use crate::{CIDR, remove};

/// Debian's folder of containernetworking-plugins.
const REFERENCE: &str = "/usr/lib/cni";

/// Who calls, and what it remembers.
struct Runtime<'a> {
    node: &'a TestNode,
    list: Value,
    cache: PathBuf,
    /// Plugin, verb, and whether there was a prevResult.
    record: Vec<(String, &'static str, bool)>,
}

impl<'a> Runtime<'a> {
    fn new(node: &'a TestNode, plugins: Value) -> Self {
        let cache = Path::new("/run/test/cache").to_owned();
        fs::create_dir_all(&cache).unwrap();
        Self {
            node,
            list: json!({"cniVersion": "1.0.0", "name": "mesh", "plugins": plugins}),
            cache,
            record: Vec::new(),
        }
    }

    fn plugins(&self) -> Vec<Value> {
        self.list["plugins"].as_array().unwrap().clone()
    }

    fn cached(&self) -> Option<Value> {
        let bytes = fs::read(self.cache.join(CONTAINER)).ok()?;
        Some(serde_json::from_slice(&bytes).unwrap())
    }

    /// In order, each with the result of the one before; the last is kept. An error ends it.
    fn add(&mut self, capabilities: &Value) -> Result<Value, String> {
        let mut previous = None;
        for plugin in self.plugins() {
            let result = self.call("ADD", &plugin, previous.as_ref(), capabilities)?;
            previous = Some(result);
        }
        let result = previous.unwrap();
        fs::write(self.cache.join(CONTAINER), result.to_string()).unwrap();
        Ok(result)
    }

    fn check(&mut self, capabilities: &Value) -> Result<(), String> {
        let result = self.cached();
        for plugin in self.plugins() {
            self.call("CHECK", &plugin, result.as_ref(), capabilities)?;
        }
        Ok(())
    }

    /// In reverse, each with what ADD gave in the end.
    fn del(&mut self, capabilities: &Value) -> Result<(), String> {
        let result = self.cached();
        for plugin in self.plugins().iter().rev() {
            self.call("DEL", plugin, result.as_ref(), capabilities)?;
        }
        let _ = fs::remove_file(self.cache.join(CONTAINER));
        Ok(())
    }

    /// The request: the plugin's configuration with version and name, `runtimeConfig` for `capabilities`, and `prevResult`.
    fn call(
        &mut self,
        verb: &'static str,
        plugin: &Value,
        previous: Option<&Value>,
        capabilities: &Value,
    ) -> Result<Value, String> {
        let mut request = plugin.clone();
        request["cniVersion"] = self.list["cniVersion"].clone();
        request["name"] = self.list["name"].clone();
        let map = request.as_object_mut().unwrap();
        if let Some(declared) = map.remove("capabilities") {
            let wanted = capabilities.as_object().unwrap().iter();
            let wanted = wanted.filter(|(name, _)| declared[name.as_str()] == true);
            let wanted = wanted.map(|(name, value)| (name.clone(), value.clone()));
            map.insert("runtimeConfig".to_owned(), Value::Object(wanted.collect()));
        }
        if let Some(previous) = previous {
            map.insert("prevResult".to_owned(), previous.clone());
        }
        let name = plugin["type"].as_str().unwrap();
        let recorded = (name.to_owned(), verb, previous.is_some());
        self.record.push(recorded);
        let ours = env!("CARGO_BIN_EXE_espalier-cni").into();
        let program = match name {
            "espalier-cni" => ours,
            _ => Path::new(REFERENCE).join(name),
        };
        execute(self.node, verb, &program, &request)
    }
}

fn execute(node: &TestNode, verb: &str, program: &Path, request: &Value) -> Result<Value, String> {
    let mut command = Command::new(program);
    let like = node.command(verb);
    let variables = like
        .get_envs()
        .filter_map(|(name, value)| Some((name, value?)));
    let mut child = command
        .envs(variables)
        .env("CNI_PATH", REFERENCE)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(request.to_string().as_bytes()).unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        return Err(text + &String::from_utf8_lossy(&output.stderr));
    }
    // The reference plugins write notes to stderr.
    let output = std::process::Output {
        stderr: Vec::new(),
        ..output
    };
    Ok(Called(output).succeeded())
}

fn ours(node: &TestNode) -> Value {
    json!({"type": "espalier-cni", "socket": node.socket, "stateDir": node.state})
}

/// Without the package the rest of the test suite runs all the same.
fn has_reference(plugins: &[&str]) -> bool {
    let missing = |name: &&&str| !Path::new(REFERENCE).join(name).is_file();
    match plugins.iter().find(missing) {
        None => true,
        Some(name) => {
            crate::skipped(&format!(
                "no {REFERENCE}/{name} (package containernetworking-plugins)"
            ));
            false
        }
    }
}

#[test]
fn a_chain_runs_by_libcnis_rules() {
    isolated("runtime::a_chain_runs_by_libcnis_rules", || {
        if !has_reference(&["tuning", "ptp"]) {
            return;
        }
        let node = TestNode::new();
        let agent = FakeAgent::start(&node, CIDR);
        let before = node.traces();
        let tuning = json!({"type": "tuning", "sysctl": {"net.ipv4.conf.eth0.log_martians": "1"}});
        let mut runtime = Runtime::new(&node, json!([ours(&node), tuning]));
        let none = json!({});
        let result = runtime.add(&none).unwrap();
        assert_eq!(result["ips"][0]["address"], "10.244.1.2/32");
        runtime.check(&none).unwrap();
        node.assert_pod_reaches_gateway();
        for _ in 0..2 {
            runtime.del(&none).unwrap();
            assert_eq!((node.traces() == before, agent.leases()), (true, 0));
        }
        let called = |name: &str, verb, previous| (name.to_owned(), verb, previous);
        let expected = [
            called("espalier-cni", "ADD", false),
            called("tuning", "ADD", true),
            called("espalier-cni", "CHECK", true),
            called("tuning", "CHECK", true),
            called("tuning", "DEL", true),
            called("espalier-cni", "DEL", true),
            called("tuning", "DEL", false),
            called("espalier-cni", "DEL", false),
        ];
        assert_eq!(runtime.record, expected);

        // A later plugin that fails: the runtime calls DEL, and nothing is left.
        let wrong =
            json!({"type": "tuning", "sysctl": {"net.ipv4.conf.eth0.no_such_setting": "1"}});
        let mut runtime = Runtime::new(&node, json!([ours(&node), wrong]));
        assert!(runtime.add(&none).unwrap_err().contains("no_such_setting"));
        assert_eq!(agent.leases(), 1);
        runtime.del(&none).unwrap();
        assert_eq!((node.traces() == before, agent.leases()), (true, 0));

        // Later in a chain: another's interface comes first.
        let ipam = json!({"type": "host-local", "dataDir": "/run/test/host-local", "subnet": "10.90.0.0/24"});
        let first = json!({"type": "ptp", "ipam": ipam});
        let mut runtime = Runtime::new(&node, json!([first]));
        runtime.list["name"] = json!("other");
        let previous = runtime.add(&none).unwrap();
        let mut second = ours(&node);
        second["prevResult"] = previous.clone();
        let result = second_interface(&node, "ADD", &second).unwrap();
        let names: Vec<_> = interfaces(&result).collect();
        assert_eq!(names.len(), interfaces(&previous).count() + 2);
        assert_eq!(names.last().unwrap(), "net1");
        assert_eq!(result["ips"][0], previous["ips"][0]);
        second["prevResult"] = result;
        second_interface(&node, "CHECK", &second).unwrap();
        second_interface(&node, "DEL", &second).unwrap();
        runtime.del(&none).unwrap();
        assert_eq!(agent.leases(), 0);
    });
}

fn interfaces(result: &Value) -> impl Iterator<Item = String> {
    let list = result["interfaces"].as_array().unwrap().clone();
    list.into_iter()
        .map(|i| i["name"].as_str().unwrap().to_owned())
}

/// Ours as another interface of the same pod. Its default route is there already: another metric is not ours to choose, so the
/// first one's is removed, as an admin who wants both has to configure it.
fn second_interface(node: &TestNode, verb: &str, config: &Value) -> Result<Value, String> {
    if verb == "ADD" {
        let ip = ["route", "del", "default"];
        let _ = node.pod.output(Command::new("ip").args(ip));
    }
    let mut config = config.clone();
    config["cniVersion"] = json!("1.0.0");
    config["name"] = json!("mesh");
    let called = node.call_with(verb, &config, &[("CNI_IFNAME", "net1")], Stdio::piped());
    match called.0.status.success() {
        true => Ok(called.succeeded()),
        false => Err(String::from_utf8_lossy(&called.0.stdout).into_owned()),
    }
}

#[test]
fn host_ports_and_rate_limits_work_through_the_reference_plugins() {
    isolated(
        "runtime::host_ports_and_rate_limits_work_through_the_reference_plugins",
        || {
            if !has_reference(&["portmap", "bandwidth"]) || !kernel_has_ifb() {
                return;
            }
            let node = TestNode::new();
            let agent = FakeAgent::start(&node, CIDR);
            let client = client();
            let before = node.traces();
            let chain = json!([
                ours(&node),
                {"type": "portmap", "capabilities": {"portMappings": true}},
                {"type": "bandwidth", "capabilities": {"bandwidth": true}},
            ]);
            let capabilities = json!({
                "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
                "bandwidth": {"ingressRate": RATE, "ingressBurst": BURST, "egressRate": RATE, "egressBurst": BURST},
            });
            let mut runtime = Runtime::new(&node, chain);
            let result = runtime.add(&capabilities).unwrap();
            assert_eq!(result["ips"][0]["address"], "10.244.1.2/32");
            // No CHECK: portmap 1.1.1 looks for rules of both families and finds only those that it made.
            let took = transfer(&node, &client);
            let least = f64::from(VOLUME * 8 - BURST) / f64::from(RATE);
            assert!(
                took.as_secs_f64() > 0.7 * least,
                "{took:?}, expected {least} s"
            );
            assert!(
                took.as_secs_f64() < 5.0 * least,
                "{took:?}, expected {least} s"
            );

            runtime.del(&capabilities).unwrap();
            assert_eq!((node.traces() == before, agent.leases()), (true, 0));
            let closed =
                client.run(|| TcpStream::connect_timeout(&HOST_PORT, Duration::from_secs(1)));
            assert!(closed.unwrap().is_err(), "the port is still mapped");
        },
    );
}

/// Bits per second, bits, bytes.
const RATE: u32 = 8_000_000;
const BURST: u32 = 800_000;
const VOLUME: u32 = 1 << 20;
const HOST_PORT: SocketAddr =
    SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 8080);

/// Somebody outside of the node, with a way to it.
fn client() -> Netns {
    let (client, outside) = (Netns::new("client").unwrap(), "192.0.2.2");
    let host = Netns::held_elsewhere("host", Path::new("/proc/self/ns/net")).unwrap();
    let end = |netns, name| VethEnd { netns, name };
    veth(end(&host, "uplink"), end(&client, "eth0"), 1500).unwrap();
    address("uplink", "192.0.2.1".parse().unwrap(), 24).unwrap();
    sysctl("ipv4/ip_forward", "1").unwrap();
    let network = || {
        address("eth0", outside.parse().unwrap(), 24).unwrap();
        let anywhere = "0.0.0.0".parse().unwrap();
        route(anywhere, 0, HOST_PORT.ip(), "eth0").unwrap();
    };
    client.run(network).unwrap();
    client
}

/// The client sends through the host's port; the pod says when it has all.
fn transfer(node: &TestNode, client: &Netns) -> Duration {
    let listener = node.pod.run(|| TcpListener::bind("10.244.1.2:80").unwrap());
    let listener = listener.unwrap();
    let receive = move || {
        let (mut stream, from) = listener.accept().unwrap();
        let mut bytes = vec![0; VOLUME as usize];
        stream.read_exact(&mut bytes).unwrap();
        stream.write_all(b"!").unwrap();
        from
    };
    let receiver = std::thread::spawn(receive);
    let send = || {
        let mut stream = TcpStream::connect_timeout(&HOST_PORT, Duration::from_secs(10)).unwrap();
        let began = Instant::now();
        stream.write_all(&vec![7; VOLUME as usize]).unwrap();
        let mut answer = [0];
        stream.read_exact(&mut answer).unwrap();
        began.elapsed()
    };
    let took = client.run(send).unwrap();
    assert_eq!(receiver.join().unwrap().ip().to_string(), "192.0.2.2");
    took
}

/// What the bandwidth plugin needs of the kernel.
fn kernel_has_ifb() -> bool {
    let ip = |words: &[&str]| Command::new("ip").args(words).output();
    let made = ip(&["link", "add", "probe", "type", "ifb"]);
    let there = made.is_ok_and(|output| output.status.success());
    if there {
        remove("probe");
    } else {
        crate::skipped("this kernel has no ifb devices");
    }
    there
}
