//! A real etcd and kube-apiserver for one test, and controllers beside them.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

const ADMIN: &str = "admin-of-this-test";

pub(crate) struct Server {
    folder: tempfile::TempDir,
    programs: PathBuf,
    port: u16,
    children: Vec<Child>,
}

impl Drop for Server {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            self.show_logs();
        }
    }
}

pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

impl Server {
    /// `programs`: folder of kube-apiserver; etcd is taken from PATH.
    pub(crate) async fn start(programs: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut server = Self {
            folder,
            programs: programs.to_owned(),
            port: free_port(),
            children: Vec::new(),
        };
        let etcd = server.start_etcd();
        server.start_api(&etcd);
        let client = server.admin().await;
        until("the API server to be ready", 120, async || {
            client.apiserver_version().await.is_ok()
        })
        .await;
        server
    }

    fn start_etcd(&mut self) -> String {
        let [url, peer] = [(), ()].map(|()| format!("http://127.0.0.1:{}", free_port()));
        let mut etcd = Command::new("etcd");
        etcd.arg("--unsafe-no-fsync")
            .arg(format!("--data-dir={}", self.path("etcd")))
            .arg(format!("--listen-client-urls={url}"))
            .arg(format!("--advertise-client-urls={url}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .arg(format!("--initial-cluster=default={peer}"));
        self.spawn(etcd, "etcd");
        url
    }

    fn start_api(&mut self, etcd: &str) {
        let key = self.path("sa.key");
        let made = Command::new("openssl")
            .args(["genrsa", "-out", &key, "2048"])
            .stderr(Stdio::null())
            .status();
        assert!(made.unwrap().success());
        let tokens = self.path("tokens.csv");
        fs::write(&tokens, format!("{ADMIN},admin,1,system:masters\n")).unwrap();
        let mut api = Command::new(self.programs.join("kube-apiserver"));
        api.args([
            "--authorization-mode=RBAC",
            "--bind-address=127.0.0.1",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--disable-admission-plugins=ServiceAccount",
        ]);
        for (name, value) in [
            ("etcd-servers", etcd.to_owned()),
            ("secure-port", self.port.to_string()),
            ("cert-dir", self.path("certs")),
            ("token-auth-file", tokens),
            ("service-account-key-file", key.clone()),
            ("service-account-signing-key-file", key),
        ] {
            api.arg(format!("--{name}={value}"));
        }
        self.spawn(api, "kube-apiserver");
    }

    /// A replica; its number is for [`Self::kill`]. `http`: port of its metrics.
    pub(crate) fn controller(&mut self, kubeconfig: &str, http: u16, more: &[&str]) -> usize {
        let mut controller = Command::new(env!("CARGO_BIN_EXE_espalier-controller"));
        controller
            .env("KUBECONFIG", kubeconfig)
            .env("POD_NAME", format!("replica-{http}"))
            .args(["--namespace=espalier-system", "--certificate-days=2"])
            .arg(format!("--http=127.0.0.1:{http}"))
            .args(more);
        self.spawn(controller, &format!("controller-{http}"));
        self.children.len() - 1
    }

    pub(crate) fn kill(&mut self, number: usize) {
        self.children[number].kill().unwrap();
        self.children[number].wait().unwrap();
    }

    /// SIGTERM, and waits for the end.
    pub(crate) fn terminate(&mut self, number: usize) {
        let pid = self.children[number].id().to_string();
        assert!(Command::new("kill").arg(&pid).status().unwrap().success());
        assert!(self.children[number].wait().unwrap().success());
    }

    fn show_logs(&self) {
        for entry in fs::read_dir(self.folder.path()).unwrap().flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if name == "etcd.log" || path.extension().is_none_or(|end| end != "log") {
                continue;
            }
            let log = fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let crashed = lines.iter().position(|line| line.contains("fatal error"));
            let from = crashed.unwrap_or(lines.len().saturating_sub(30));
            let shown: Vec<&str> = lines[from..].iter().take(30).copied().collect();
            println!("--- {name}\n{}", shown.join("\n"));
        }
    }

    pub(crate) fn log(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(format!("{name}.log"))).unwrap()
    }

    fn spawn(&mut self, mut command: Command, name: &str) {
        let log = File::create(self.path(&format!("{name}.log"))).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.children.push(command.spawn().unwrap());
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// A kubeconfig for the bearer of `token`.
    pub(crate) fn kubeconfig(&self, name: &str, token: &str) -> String {
        let port = self.port;
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: x\n\
             clusters: [{{name: x, cluster: {{server: 'https://127.0.0.1:{port}', insecure-skip-tls-verify: true}}}}]\n\
             users: [{{name: x, user: {{token: '{token}'}}}}]\n\
             contexts: [{{name: x, context: {{cluster: x, user: x}}}}]\n"
        );
        let path = self.path(&format!("{name}.kubeconfig"));
        File::create(&path)
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
        path
    }

    pub(crate) fn admin_kubeconfig(&self) -> String {
        self.kubeconfig("admin", ADMIN)
    }

    pub(crate) async fn admin(&self) -> Client {
        self.client("admin", ADMIN).await
    }

    pub(crate) async fn client(&self, name: &str, token: &str) -> Client {
        let path = self.kubeconfig(name, token);
        let kubeconfig = Kubeconfig::read_from(path).unwrap();
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
        Client::try_from(config.unwrap()).unwrap()
    }
}

/// Whether the replica at this port says that it leads.
pub(crate) fn leads(http: u16) -> bool {
    metrics(http).is_ok_and(|text| text.contains("\nespalier_controller_leading 1\n"))
}

/// The page of the replica at this port, with its head.
fn metrics(http: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", http))?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: x\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Prometheus' own checker has nothing to say of the replica's metrics; ESPALIER_PROMTOOL names it, without it nothing is checked.
pub(crate) fn check_metrics(http: u16) {
    let Some(promtool) = std::env::var_os("ESPALIER_PROMTOOL") else {
        return;
    };
    let page = metrics(http).unwrap();
    let (_, body) = page.split_once("\r\n\r\n").unwrap();
    let mut checker = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = checker.stdin.take().unwrap();
    stdin.write_all(body.as_bytes()).unwrap();
    drop(stdin);
    assert!(checker.wait().unwrap().success(), "{body}");
    println!("promtool takes the leader's metrics");
}

/// Asks again and again; panics after so many seconds.
pub(crate) async fn until(what: &str, seconds: u64, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !holds().await {
        assert!(Instant::now() < deadline, "waited {seconds} s for {what}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
