//! Who a node is: missing, expired, foreign and forged certificates, wrong PSKs, a node made anew.

use std::fs;

use anyhow::{Result, ensure};
use espalier_e2e::{
    Cluster, Mode, Pki, Pod, blocked, encrypted, expect_words, node_manifest, pod_cidr,
    send_numbered, test, uid, underlay, until,
};

#[test]
fn a_missing_certificate_blocks_its_node_only_and_heals_without_a_restart() {
    test(
        "identity::a_missing_certificate_blocks_its_node_only_and_heals_without_a_restart",
        |bench| {
            let mut mesh = Cluster::prepare(bench, 3, Mode::Required)?;
            for file in ["node-3.crt", "node-3.key"] {
                fs::remove_file(bench.pki.file(file))?;
            }
            mesh.start_all()?;
            let pods = mesh.pods(&[1, 2, 3])?;
            mesh.await_problem(3, &["node-3.crt", "cannot read", "espalier pki issue"])?;
            node_3_is_cut_off(&mut mesh, &pods)?;

            let pid = mesh.node(3)?.status()?.map_err(anyhow::Error::msg)?.pid;
            bench.pki.issue("node-3", &uid(3, 1), &[])?;
            mesh.works(&[1, 2, 3], &pods)?;
            let status = mesh.node(3)?.status()?.map_err(anyhow::Error::msg)?;
            ensure!(status.pid == pid, "the agent was restarted");
            ensure!(status.problems.is_empty(), "{:?}", status.problems);
            Ok(())
        },
    );
}

#[test]
fn an_expired_certificate_is_refused_by_name() {
    test(
        "identity::an_expired_certificate_is_refused_by_name",
        |bench| {
            let mut mesh = Cluster::prepare(bench, 3, Mode::Required)?;
            bench.pki.issue("node-3", &uid(3, 1), &["--expired"])?;
            mesh.start_all()?;
            let pods = mesh.pods(&[1, 2, 3])?;
            let words = ["node-3", "expired: valid until", "espalier pki issue"];
            mesh.await_problem(3, &words)?;
            mesh.await_peer_problem(1, 3, &words)?;
            mesh.await_peer_problem(2, 3, &words)?;
            node_3_is_cut_off(&mut mesh, &pods)
        },
    );
}

#[test]
fn a_certificate_of_another_ca_is_refused_by_name() {
    test(
        "identity::a_certificate_of_another_ca_is_refused_by_name",
        |bench| {
            let mut mesh = Cluster::prepare(bench, 3, Mode::Required)?;
            let other = Pki::new(&bench.bin, &bench.root.join("other-pki"))?;
            other.issue("node-3", &uid(3, 1), &[])?;
            let files = [
                other.file("node-3.crt"),
                other.file("node-3.key"),
                bench.pki.file("ca.crt"),
            ];
            mesh.node(3)?.auth.certificate = Some(files);
            mesh.start_all()?;
            let pods = mesh.pods(&[1, 2, 3])?;
            let words = ["node-3", "does not trust", "issue it by that CA"];
            mesh.await_problem(3, &words)?;
            mesh.await_peer_problem(1, 3, &words)?;
            mesh.await_peer_problem(2, 3, &words)?;
            node_3_is_cut_off(&mut mesh, &pods)
        },
    );
}

#[test]
fn a_wrong_psk_blocks_its_pair_only() {
    test("identity::a_wrong_psk_blocks_its_pair_only", |bench| {
        let mut mesh = Cluster::prepare(bench, 3, Mode::Required)?;
        for (index, peer) in [(1, "node-3"), (3, "node-1")] {
            let node = mesh.node(index)?;
            let folder = node.dir().join("psk");
            fs::create_dir(&folder)?;
            bench.pki.psk(&folder.join(format!("{peer}.psk")))?;
            node.auth.psk_dir = Some(folder);
        }
        mesh.start_all()?;
        let pods = mesh.pods(&[1, 2, 3])?;
        let (mut named, mut refused) = (["node-1", "node-3"], ["node-3", "node-1"]);
        // The side that does not begin sees the difference; the other one is pointed to it.
        let differs = ["pre-shared key differs", "same key file on both nodes"];
        let problem = until("word of the wrong PSK", || {
            let problems = [mesh.node(1)?.peer("node-3")?, mesh.node(3)?.peer("node-1")?];
            let problems = problems.map(|peer| peer.problem);
            let by = problems
                .iter()
                .position(|p| expect_words(p, &differs).is_ok());
            Ok(by.ok_or_else(|| format!("{problems:?}")))
        })?;
        if problem == 0 {
            std::mem::swap(&mut named, &mut refused);
        }
        let (finder, pointed) = if problem == 0 { (1, 3) } else { (3, 1) };
        mesh.await_peer_problem(finder, pointed, &[named[0]])?;
        mesh.await_peer_problem(pointed, finder, &[refused[0], "refused", "log"])?;
        mesh.await_pairs(&[1, 3], blocked)?;
        sends_nothing_clear(&mesh, &pods[2], &pods[0])?;
        mesh.works(&[1, 2], &pods[..2])?;
        mesh.works(&[2, 3], &pods[1..])?;

        let right = mesh.node_ref(1)?.dir().join("psk/node-3.psk");
        let wrong = mesh.node_ref(3)?.dir().join("psk/node-1.psk");
        fs::copy(right, wrong)?;
        mesh.works(&[1, 2, 3], &pods)
    });
}

/// Node 3 is in an attacker's hands, who has stolen node 2's certificate and key.
#[test]
fn a_stolen_identity_is_of_no_use_at_another_address() {
    test(
        "identity::a_stolen_identity_is_of_no_use_at_another_address",
        |bench| {
            let mut mesh = Cluster::prepare(bench, 3, Mode::Required)?;
            for index in [1, 2] {
                mesh.node(index)?.start()?;
            }
            let pods = mesh.pods(&[1, 2])?;
            mesh.works(&[1, 2], &pods)?;

            // As node 2, whole: its name, its certificate; only the address is not its own.
            let attacker = mesh.node(3)?;
            let own = node_manifest("node-2", &uid(2, 1), underlay(3), pod_cidr(2));
            attacker.write_manifest("node-2.yaml", &own)?;
            attacker.remove_manifest("node-3.yaml")?;
            attacker.name = "node-2".to_owned();
            let stolen = [
                bench.pki.file("node-2.crt"),
                bench.pki.file("node-2.key"),
                bench.pki.file("ca.crt"),
            ];
            attacker.auth.certificate = Some(stolen);
            attacker.start()?;
            let words = [
                "node-2",
                "10.99.0.13",
                "10.99.0.12",
                "not an address of Node node-2",
            ];
            until("node 1 to name the forged identity", || {
                let log = mesh.node_ref(1)?.log("agent")?;
                let found = log.lines().any(|line| expect_words(line, &words).is_ok());
                Ok(found
                    .then_some(())
                    .ok_or_else(|| "not in its log".to_owned()))
            })?;
            let tried = mesh.node(3)?.peer("node-1")?;
            ensure!(
                encrypted(&tried).is_err(),
                "the attacker got SAs: {tried:?}"
            );
            mesh.works(&[1, 2], &pods)?;

            // As itself, but with the stolen certificate.
            let attacker = mesh.node(3)?;
            attacker.kill_agent()?;
            attacker.name = "node-3".to_owned();
            mesh.announce_node(3, &uid(3, 1))?;
            mesh.announce_node(2, &uid(2, 1))?;
            mesh.node(3)?.start_agent()?;
            let words = [
                "claims to be node-3",
                "certificate is for node-2",
                "espalier pki issue",
            ];
            mesh.await_peer_problem(1, 3, &words)?;
            mesh.await_pairs(&[1, 3], blocked)?;
            mesh.works(&[1, 2], &pods)
        },
    );
}

#[test]
fn a_node_made_anew_needs_a_new_certificate() {
    test(
        "identity::a_node_made_anew_needs_a_new_certificate",
        |bench| {
            let mut mesh = Cluster::start(bench, 3, Mode::Required)?;
            let pods = mesh.pods(&[1, 2, 3])?;
            mesh.works(&[1, 2, 3], &pods)?;

            // The Node object is another one of the same name; the host still has the old certificate.
            mesh.announce_node(3, &uid(3, 2))?;
            let remedy = format!("espalier pki issue --node node-3 --uid {}", uid(3, 2));
            let words = ["node-3", &uid(3, 1), "made anew", &remedy];
            mesh.await_peer_problem(1, 3, &words)?;
            mesh.await_peer_problem(2, 3, &words)?;
            node_3_is_cut_off(&mut mesh, &pods)?;

            bench.pki.issue("node-3", &uid(3, 2), &[])?;
            mesh.works(&[1, 2, 3], &pods)
        },
    );
}

/// Node 3's pairs are blocked at both ends, nothing goes out in clear, and nodes 1 and 2 do not notice.
fn node_3_is_cut_off(mesh: &mut Cluster, pods: &[Pod]) -> Result<()> {
    for index in [1, 2] {
        mesh.await_pairs(&[index, 3], blocked)?;
    }
    sends_nothing_clear(mesh, &pods[2], &pods[0])?;
    sends_nothing_clear(mesh, &pods[1], &pods[2])?;
    mesh.works(&[1, 2], &pods[..2])
}

fn sends_nothing_clear(mesh: &Cluster, from: &Pod, to: &Pod) -> Result<()> {
    let before = mesh.watch.now()?;
    send_numbered(from, to.address, 50)?;
    mesh.watch.nothing_clear_since(&before).map(drop)
}
