//! What a node knows of itself. XFRM states are not listed: the kernel tells their keys with them.

use std::collections::BTreeMap;
use std::fmt::{Debug, Write as _};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use espalier_netlink::{GUARD_TABLE, Netfilter, Route, RouteFilter, Socket, Xfrm};
use serde::{Deserialize, Serialize};

use crate::mesh::{self, AgentSocket};
use crate::model::Node;
use crate::{status, verify};

/// The agent's pages, unless its probe says another place.
const HTTP: &str = "127.0.0.1:9808";
const HTTP_PATIENCE: Duration = Duration::from_secs(5);
/// A page of metrics has some kB.
const PAGE_MAX: u64 = 8 << 20;
/// Files of /proc that say how this kernel is and fares.
const PROC: [&str; 11] = [
    "version",
    "cmdline",
    "uptime",
    "loadavg",
    "meminfo",
    "stat",
    "net/dev",
    "net/snmp",
    "net/softnet_stat",
    "net/xfrm_stat",
    "net/sockstat",
];
const SYSCTLS: [&str; 14] = [
    "kernel/osrelease",
    "net/core/netdev_max_backlog",
    "net/core/rmem_max",
    "net/core/wmem_max",
    "net/core/xfrm_acq_expires",
    "net/core/xfrm_aevent_etime",
    "net/ipv4/conf/all/forwarding",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/conf/default/rp_filter",
    "net/ipv4/ip_forward",
    "net/ipv4/ip_no_pmtu_disc",
    "net/ipv6/conf/all/disable_ipv6",
    "net/ipv6/conf/all/forwarding",
    "net/netfilter/nf_conntrack_max",
];
/// Parts of names of modules that matter here.
const MODULES: [&str; 12] = [
    "ah4",
    "ah6",
    "aes",
    "esp",
    "gcm",
    "ip_tables",
    "ipip",
    "nf_",
    "nft_",
    "tun",
    "vxlan",
    "xfrm",
];
/// Folders whose files are named, never read.
const FOLDERS: [&str; 4] = [
    "/run/espalier",
    "/var/lib/espalier",
    "/etc/cni/net.d",
    "/host/cni/conf",
];

/// Options of `espalier node-report`.
#[derive(Args, Clone, Debug)]
pub(crate) struct NodeReportArgs {
    #[command(flatten)]
    agent: AgentSocket,
    /// Address and port of the agent's pages; default: 127.0.0.1:9808.
    #[arg(long)]
    http: Option<String>,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Report {
    pub(super) node: String,
    /// By name.
    pub(super) files: BTreeMap<String, String>,
    pub(super) errors: Vec<String>,
}

impl Report {
    fn take(&mut self, name: &str, text: Result<String>) {
        match text {
            Ok(text) => drop(self.files.insert(name.to_owned(), text)),
            Err(error) => self.errors.push(format!("{name}: {error:#}")),
        }
    }
}

/// Prints it as JSON.
///
/// # Errors
/// It cannot be printed.
pub(crate) fn report(args: &NodeReportArgs) -> Result<()> {
    let report = look(&args.agent.path(), args.http.as_deref());
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

/// Looks at everything; what cannot be had is an error in the report.
pub(super) fn look(socket: &Path, http: Option<&str>) -> Report {
    let mut report = Report {
        node: fs::read_to_string("/proc/sys/kernel/hostname")
            .unwrap_or_default()
            .trim()
            .to_owned(),
        ..Report::default()
    };
    match mesh::status(socket).map(Node::from) {
        Ok(node) => {
            report.take(
                "status.json",
                serde_json::to_string_pretty(&node).context("writing"),
            );
            let text = status::table(&node) + "\n" + &status::abilities(&node);
            report.take("status.txt", Ok(text));
            report.take("findings.txt", verify::findings_here(&node));
            report.node = node.node;
        }
        Err(error) => report.errors.push(format!("status.json: {error:#}")),
    }
    let http = http.unwrap_or(HTTP);
    for page in ["metrics", "readyz", "healthz"] {
        report.take(&format!("{page}.txt"), fetch(http, page));
    }
    report.take("kernel.txt", Ok(kernel()));
    report.take("links.txt", links());
    report.take("routes.txt", routes());
    report.take("policies.txt", policies());
    report.take("rules.txt", rules());
    report.take("files.txt", Ok(names()));
    report
}

/// HTTP/1.0 (RFC 1945): the answer ends with the connection.
fn fetch(http: &str, page: &str) -> Result<String> {
    let address: SocketAddr = http
        .parse()
        .with_context(|| format!("{http:?} is no address and port"))?;
    let stream = TcpStream::connect_timeout(&address, HTTP_PATIENCE);
    let mut stream =
        stream.with_context(|| format!("the agent's pages at {http} (its option --http)"))?;
    stream.set_read_timeout(Some(HTTP_PATIENCE))?;
    stream.set_write_timeout(Some(HTTP_PATIENCE))?;
    let request = format!("GET /{page} HTTP/1.0\r\nHost: {http}\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut text = String::new();
    stream.take(PAGE_MAX).read_to_string(&mut text)?;
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        bail!("{http} does not speak HTTP");
    };
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    // "Not ready" has its reasons in the body.
    ensure!(
        status == "200" || status == "503",
        "{http} answers {status}"
    );
    Ok(body.to_owned())
}

fn kernel() -> String {
    let mut text = String::new();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let _ = writeln!(text, "processors: {cpus}");
    for name in SYSCTLS {
        let value = fs::read_to_string(Path::new("/proc/sys").join(name));
        let value = value.unwrap_or_else(|_| "(not there)".to_owned());
        let _ = writeln!(text, "{} = {}", name.replace('/', "."), value.trim());
    }
    let modules = fs::read_to_string("/proc/modules").unwrap_or_default();
    let names = modules
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    let ours: Vec<&str> = names
        .filter(|name| MODULES.iter().any(|part| name.contains(part)))
        .collect();
    let _ = writeln!(text, "modules: {}", ours.join(" "));
    for name in PROC {
        let value = fs::read_to_string(Path::new("/proc").join(name));
        let value = value.unwrap_or_else(|error| format!("({error})\n"));
        let _ = write!(text, "\n--- /proc/{name}\n{value}");
    }
    text
}

fn lines<T: Debug>(items: &[T]) -> String {
    items.iter().map(|item| format!("{item:?}\n")).collect()
}

fn links() -> Result<String> {
    let links = Socket::<Route>::open()?
        .links()
        .context("listing devices")?;
    Ok(lines(&links))
}

fn routes() -> Result<String> {
    let routes = Socket::<Route>::open()?.routes(RouteFilter::default());
    Ok(lines(&routes.context("listing routes")?))
}

fn policies() -> Result<String> {
    let policies = Socket::<Xfrm>::open()?.policies();
    Ok(lines(&policies.context(
        "listing XFRM policies (CAP_NET_ADMIN is needed)",
    )?))
}

/// Routing rules of ours and others' that refuse or let pass by a source, and what a guard of nf_tables accepts.
fn rules() -> Result<String> {
    let rules = Socket::<Route>::open()?.rules();
    let rules = lines(&rules.context("listing routing rules")?);
    let guard = Socket::<Netfilter>::open().and_then(|mut tables| tables.guard_accepts());
    let guard = match guard {
        Ok(Some(accepted)) => format!("there, accepts {accepted:?}"),
        Ok(None) => "none, or not whole".to_owned(),
        Err(error) => error.to_string(),
    };
    Ok(format!("{rules}table inet {GUARD_TABLE}: {guard}\n"))
}

/// One level deep, with sizes.
fn names() -> String {
    let mut text = String::new();
    for folder in FOLDERS {
        let Ok(entries) = fs::read_dir(folder) else {
            let _ = writeln!(text, "{folder}: not there");
            continue;
        };
        let mut found: Vec<String> = entries
            .flatten()
            .map(|entry| {
                let size = entry.metadata().map_or(0, |metadata| metadata.len());
                format!(
                    "{folder}/{} ({size} bytes)",
                    entry.file_name().to_string_lossy()
                )
            })
            .collect();
        found.sort();
        let _ = writeln!(text, "{}", found.join("\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_page_is_read_to_its_end() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = std::thread::spawn(move || {
            for answer in [
                "HTTP/1.0 503 No\r\nA: b\r\n\r\nno policy\n",
                "HTTP/1.0 404 No\r\n\r\n",
            ] {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 512];
                let read = stream.read(&mut request).unwrap();
                assert!(request[..read].starts_with(b"GET /readyz HTTP/1.0\r\n"));
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        assert_eq!(fetch(&address, "readyz").unwrap(), "no policy\n");
        let error = fetch(&address, "readyz").unwrap_err().to_string();
        assert!(error.contains("404"), "{error}");
        server.join().unwrap();
    }

    #[test]
    fn a_node_without_an_agent_has_a_report_all_the_same() {
        let report = look(Path::new("/nonexistent/agent.sock"), Some("127.0.0.1:1"));
        assert!(report.files["kernel.txt"].contains("kernel.osrelease = "));
        assert!(report.files["links.txt"].contains("lo"));
        assert!(report.files["rules.txt"].contains("table inet espalier-guard: "));
        assert!(
            report
                .errors
                .iter()
                .any(|error| error.starts_with("status.json: ")),
            "{report:?}"
        );
        assert!(
            report
                .errors
                .iter()
                .any(|error| error.starts_with("metrics.txt: ")),
            "{report:?}"
        );
    }
}
