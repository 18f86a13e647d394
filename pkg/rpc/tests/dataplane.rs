//! A data plane behind its socket: calls, errors, events, reconnection.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::path::Path;
use std::sync::{Arc, Mutex};

use espalier_dataplane_core::{
    Capabilities, Dataplane, Direction, Dump, Encapsulation, Error, Event, Hello, Overlay, Peer,
    PeerId, PeerStats, Reqid, Sa, SaInfo, SaMode, Spi, Suite,
};
use espalier_rpc::{DataplaneClient, DataplaneService, serve_unix};
use espalier_secret::SecretBytes;
use tokio::sync::{broadcast, oneshot};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;

/// Keeps what it is told in memory.
#[derive(Default)]
struct Memory {
    peers: Mutex<Vec<Peer>>,
    sas: Mutex<Vec<Sa>>,
    switched: Mutex<Vec<Option<Spi>>>,
}

impl Dataplane for Memory {
    async fn hello(&self) -> Result<Hello, Error> {
        let (version, kind, device) = (
            "1.2.3".into(),
            "userspace".into(),
            Some("espalier.tun".into()),
        );
        Ok(Hello {
            instance: u64::MAX,
            version,
            digest: String::new(),
            kind,
            device,
            pid: 7,
            can: Capabilities::default(),
        })
    }

    async fn dump(&self) -> Result<Dump, Error> {
        let peers = self
            .peers
            .lock()
            .unwrap()
            .iter()
            .map(|peer| (peer.clone(), PeerStats::default()))
            .collect();
        let sas = self.sas.lock().unwrap().iter().map(info).collect();
        Ok(Dump {
            peers,
            sas,
            drops: vec![("truncated".into(), 3)],
        })
    }

    async fn put_peer(&self, peer: Peer) -> Result<Reqid, Error> {
        self.peers.lock().unwrap().push(peer);
        Ok(Reqid(9))
    }

    async fn remove_peer(&self, peer: PeerId) -> Result<(), Error> {
        self.peers.lock().unwrap().retain(|known| known.id != peer);
        Ok(())
    }

    async fn install_sa(&self, sa: Sa) -> Result<(), Error> {
        let mut sas = self.sas.lock().unwrap();
        if sas.iter().any(|known| known.spi == sa.spi) {
            return Err(Error::SpiReused(sa.spi));
        }
        sas.push(sa);
        Ok(())
    }

    async fn switch_outbound(&self, peer: PeerId, spi: Option<Spi>) -> Result<(), Error> {
        let Some(wanted) =
            spi.filter(|spi| !self.sas.lock().unwrap().iter().any(|sa| sa.spi == *spi))
        else {
            self.switched.lock().unwrap().push(spi);
            return Ok(());
        };
        Err(Error::NoSuchSa(peer, wanted))
    }

    async fn remove_sa(&self, direction: Direction, spi: Spi) -> Result<(), Error> {
        self.sas
            .lock()
            .unwrap()
            .retain(|sa| (sa.direction, sa.spi) != (direction, spi));
        Ok(())
    }
}

fn info(sa: &Sa) -> SaInfo {
    SaInfo {
        peer: sa.peer.clone(),
        direction: sa.direction,
        spi: sa.spi,
        suite: sa.suite,
        encapsulation: sa.encapsulation,
        active: false,
        age_s: 0,
        packets: 0,
        bytes: 0,
        drops: 0,
        idle_ms: None,
        cpu: sa.cpu,
    }
}

fn peer() -> Peer {
    Peer {
        id: PeerId("node-b".into()),
        local: "10.0.0.1".parse().unwrap(),
        remote: "10.0.0.2".parse().unwrap(),
        pod_cidrs: vec!["10.244.2.0/24".parse().unwrap()],
        own_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
        overlay: Overlay::Vxlan {
            vni: 4789,
            port: 4789,
        },
        local_mac: [2, 0, 0, 0, 0, 1],
        remote_mac: [2, 0, 0, 0, 0, 2],
    }
}

fn sa() -> Sa {
    Sa {
        peer: PeerId("node-b".into()),
        direction: Direction::Out,
        spi: Spi(0x1000),
        suite: Suite::Aes256Gcm16,
        mode: SaMode::Transport,
        key: SecretBytes::copy_from(&[0x5a; 36]),
        esn: true,
        replay_window: 0,
        encapsulation: Encapsulation::Udp {
            local_port: 4500,
            remote_port: 4500,
        },
        hard_seconds: 0,
        cpu: None,
    }
}

struct Running {
    memory: Arc<Memory>,
    events: broadcast::Sender<Event>,
    stop: oneshot::Sender<()>,
    server: JoinHandle<Result<(), espalier_rpc::Error>>,
}

/// Serves on `socket` once this returns.
async fn start(socket: &Path) -> Running {
    let (memory, events) = (Arc::new(Memory::default()), broadcast::channel(16).0);
    let service = DataplaneService::server(Arc::clone(&memory), events.clone());
    let router = tonic::transport::Server::builder().add_service(service);
    let (stop, stopped) = oneshot::channel();
    let path = socket.to_owned();
    let server =
        tokio::spawn(async move { serve_unix(path, router, async { drop(stopped.await) }).await });
    while !socket.exists() {
        tokio::task::yield_now().await;
    }
    Running {
        memory,
        events,
        stop,
        server,
    }
}

#[tokio::test]
async fn every_call_arrives_and_answers() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("dataplane.sock");
    let running = start(&socket).await;
    let client = DataplaneClient::new(&socket).unwrap();

    let hello = client.hello().await.unwrap();
    assert_eq!(
        (hello.instance, hello.device.as_deref(), hello.pid),
        (u64::MAX, Some("espalier.tun"), 7)
    );
    client.put_peer(peer()).await.unwrap();
    client.install_sa(sa()).await.unwrap();
    assert_eq!(*running.memory.sas.lock().unwrap(), [sa()]);
    client
        .switch_outbound(peer().id, Some(sa().spi))
        .await
        .unwrap();
    client.switch_outbound(peer().id, None).await.unwrap();
    assert_eq!(
        *running.memory.switched.lock().unwrap(),
        [Some(sa().spi), None]
    );

    let dump = client.dump().await.unwrap();
    assert_eq!(dump.peers, [(peer(), PeerStats::default())]);
    assert_eq!(dump.sas, [info(&sa())]);
    assert_eq!(dump.drops, [("truncated".to_owned(), 3)]);

    client.remove_sa(Direction::Out, sa().spi).await.unwrap();
    client.remove_peer(peer().id).await.unwrap();
    let dump = client.dump().await.unwrap();
    assert!(dump.peers.is_empty() && dump.sas.is_empty());
}

#[tokio::test]
async fn errors_come_back_as_what_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("dataplane.sock");
    let _running = start(&socket).await;
    let client = DataplaneClient::new(&socket).unwrap();

    let absent = client
        .switch_outbound(peer().id, Some(Spi(999)))
        .await
        .unwrap_err();
    assert!(matches!(absent, Error::NoSuchSa(PeerId(peer), Spi(999)) if peer == "node-b"));
    client.install_sa(sa()).await.unwrap();
    assert!(matches!(
        client.install_sa(sa()).await,
        Err(Error::SpiReused(Spi(0x1000)))
    ));
    let short = Sa {
        key: SecretBytes::copy_from(&[1; 20]),
        ..sa()
    };
    let short = client.install_sa(short).await.unwrap_err();
    assert_eq!(
        short.to_string(),
        "key: expected 36 bytes for Aes256Gcm16, got 20"
    );
}

#[tokio::test]
async fn events_after_the_call_arrive_and_missed_ones_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("dataplane.sock");
    let running = start(&socket).await;
    let client = DataplaneClient::new(&socket).unwrap();
    let mut events = client.events().await.unwrap();
    let first = Event::FirstPacket {
        peer: peer().id,
        spi: Spi(0x2000),
    };
    running.events.send(first.clone()).unwrap();
    assert_eq!(events.next().await.unwrap().unwrap(), first);

    // The server's task does not run between these sends: this test has one thread.
    for _ in 0..17 {
        running.events.send(first.clone()).unwrap();
    }
    let lagged = events.next().await.unwrap().unwrap_err();
    assert!(lagged.to_string().contains("missed 1 events"), "{lagged}");
}

#[tokio::test]
async fn a_client_outlives_its_data_plane() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("dataplane.sock");
    let client = DataplaneClient::new(&socket).unwrap();
    let nobody = client.hello().await.unwrap_err();
    assert!(matches!(nobody, Error::Unreachable(_)));
    let text = nobody.to_string();
    assert!(
        text.contains(&*socket.to_string_lossy()) && text.contains("start espalier-dataplane"),
        "{text}"
    );

    let first = start(&socket).await;
    client.hello().await.unwrap();
    let mut events = client.events().await.unwrap();
    first.stop.send(()).unwrap();
    // An open event stream does not keep the server from ending.
    first.server.await.unwrap().unwrap();
    assert!(!socket.exists());
    drop(first.events);
    assert!(matches!(events.next().await, None | Some(Err(_))));

    let _second = start(&socket).await;
    // A connection that died is noticed by the first call on it at the latest.
    let again = match client.hello().await {
        Ok(hello) => hello,
        Err(_) => client.hello().await.unwrap(),
    };
    assert_eq!(again.kind, "userspace");
}
