//! The cases. Each starts both sides afresh in namespaces of its own.

mod basic;
mod life;
mod quantum;
mod rekey;

use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::capture::{Capture, Form};
use crate::command::until;
use crate::foreign::{self, Daemon, Place, Wish};
use crate::lab::{self, Lab, OUR_NET, OURS, THEIR_NET, THEIRS};
use crate::matrix::{Auth, Case, Item, Role};
use crate::ours::{Ours, Spis};
use crate::pki::{self, GATEWAY, NODE};
use crate::probe::{Files, ProbeConfig, Range};
use crate::report::Outcome;

/// How a case ended.
pub(crate) type Verdict = Result<(Outcome, String)>;

/// Runs one.
pub(crate) fn run(item: Item, place: &Place, id: &str) -> Verdict {
    let case = match item.case {
        Case::Transport => basic::transport,
        Case::Tunnel => basic::tunnel,
        Case::Ah => basic::ah,
        Case::UdpEncap => basic::udp_encap,
        Case::Fragmentation => basic::fragmentation,
        Case::MlKem768 => quantum::ml_kem,
        Case::Ppk => quantum::ppk,
        Case::ChildRekeyPfs => rekey::child,
        Case::IkeRekey => rekey::ike,
        Case::ChildRekeyCollision => rekey::child_collision,
        Case::IkeRekeyCollision => rekey::ike_collision,
        Case::Dpd => life::dpd,
        Case::Delete => life::delete,
        Case::Cookies => life::cookies,
    };
    case(item, place, id)
}

fn pass(detail: impl Into<String>) -> Verdict {
    Ok((Outcome::Pass, detail.into()))
}

/// Both sides, the cable and what crosses it. Dropped in this order.
pub(crate) struct Stage {
    pub(crate) item: Item,
    pub(crate) ours: Ours,
    pub(crate) theirs: Box<dyn Daemon>,
    capture: Capture,
    pub(crate) lab: Lab,
    transport: bool,
    form: Form,
}

impl Stage {
    /// Everything is started, nothing is said yet.
    pub(crate) fn set(item: Item, place: &Place, id: &str, wish: &Wish) -> Result<Self> {
        Self::set_with(item, place, id, wish, |_| ())
    }

    /// With changes to our side's configuration.
    pub(crate) fn set_with(
        item: Item,
        place: &Place,
        id: &str,
        wish: &Wish,
        change: impl FnOnce(&mut ProbeConfig),
    ) -> Result<Self> {
        let lab = Lab::new(id).context("namespaces")?;
        let place = Place {
            namespace: lab.theirs.clone(),
            ..place.clone()
        };
        let capture = Capture::start([&lab.ours, &lab.theirs], &place.folder)?;
        let theirs = foreign::start(&place, wish)?;
        let mut config = probe_config(item, &place, wish)?;
        change(&mut config);
        let ours = Ours::start(&lab.ours, &place.folder, &config)?;
        let form = match (wish.ah, wish.encap) {
            (true, _) => Form::Ah,
            (_, true) => Form::EspInUdp,
            _ => Form::Esp,
        };
        Ok(Self {
            item,
            ours,
            theirs,
            capture,
            lab,
            transport: wish.transport,
            form,
        })
    }

    /// How packets are to look, if not as the foreign side's settings say.
    pub(crate) fn expect(&mut self, form: Form) {
        self.form = form;
    }

    /// The first exchanges, begun by whose turn it is; then packets.
    pub(crate) fn establish(&mut self) -> Result<Spis> {
        match self.item.role {
            Role::Initiator => self.ours.tell("connect")?,
            Role::Responder => self.theirs.initiate()?,
        }
        self.ours.wait("ike-up", 20)?;
        let spis = self.ours.wait_child(20)?;
        self.ours.wait_switched(&spis, 10)?;
        // The other side may answer before its kernel is ready.
        let passes = || Ok(self.lab.ping(!self.transport, 1).is_ok());
        until("a packet passes", Duration::from_secs(5), passes)?;
        self.traffic(&spis).context("after the first exchanges")?;
        Ok(spis)
    }

    /// Packets go both ways through this CHILD_SA, and look as they should.
    pub(crate) fn traffic(&mut self, spis: &Spis) -> Result<()> {
        self.ours.wait_switched(spis, 10)?;
        let before = (
            Lab::counters(&self.lab.ours)?,
            Lab::counters(&self.lab.theirs)?,
        );
        self.ping()?;
        let after = (
            Lab::counters(&self.lab.ours)?,
            Lab::counters(&self.lab.theirs)?,
        );
        for (who, before, after) in [("ours", before.0, after.0), ("theirs", before.1, after.1)] {
            for spi in [&spis.inbound, &spis.outbound] {
                let more = lab::growth(&before, &after, spi)?;
                if more < 4 {
                    bail!(
                        "SPI {spi} of {who} took {more} packets of 4; before {before:?}, after {after:?}"
                    );
                }
            }
        }
        self.capture.check(self.form, &spis.inbound, 4)?;
        self.capture.check(self.form, &spis.outbound, 4)
    }

    /// Packets go both ways, through whatever CHILD_SA.
    pub(crate) fn ping(&self) -> Result<()> {
        let pinged = self.lab.ping(!self.transport, 4);
        pinged.with_context(|| {
            let drops = |namespace: &str| Lab::drops(namespace).unwrap_or_default();
            let (ours, theirs) = (drops(&self.lab.ours), drops(&self.lab.theirs));
            format!(
                "we dropped: {ours}; they dropped: {theirs}; {}",
                self.states()
            )
        })
    }

    /// Exactly this CHILD_SA is left, in the kernels of both sides too, our kernel dropped nothing, and no packet was clear.
    pub(crate) fn check_rest(&mut self, spis: &Spis) -> Result<()> {
        let only = || -> Result<bool> {
            let both = [&self.lab.ours, &self.lab.theirs];
            for namespace in both {
                let counters = Lab::counters(namespace)?;
                if counters.len() != 2 || !counters.contains_key(&spis.inbound) {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        until(
            "exactly one pair of states on both sides",
            Duration::from_secs(15),
            only,
        )
        .with_context(|| self.states())?;
        self.check_drops()
    }

    /// Our kernel dropped nothing, and no packet was clear.
    pub(crate) fn check_drops(&self) -> Result<()> {
        let drops = Lab::drops(&self.lab.ours)?;
        if !drops.is_empty() {
            bail!("we dropped packets: {drops}");
        }
        self.capture.check_no_clear()
    }

    /// For messages.
    pub(crate) fn states(&self) -> String {
        let of = |namespace: &str| Lab::counters(namespace).unwrap_or_default();
        format!(
            "ours {:?}, theirs {:?}",
            of(&self.lab.ours),
            of(&self.lab.theirs)
        )
    }
}

fn probe_config(item: Item, place: &Place, wish: &Wish) -> Result<ProbeConfig> {
    let file = |kind| pki::file(&place.pki, NODE, kind);
    let (local_ts, remote_ts) = if wish.transport {
        (OURS, THEIRS)
    } else {
        (OUR_NET, THEIR_NET)
    };
    let range = |address: &str| -> Result<Range> { Ok(Range(address.parse()?, address.parse()?)) };
    let files = Files {
        ca: place.pki.join("ca.crt"),
        chain: file("crt"),
        key: file("key"),
    };
    Ok(ProbeConfig {
        identity: NODE.into(),
        peer: GATEWAY.into(),
        local: format!("{OURS}:500").parse()?,
        remote: format!("{THEIRS}:500").parse()?,
        psk: (item.auth == Auth::Psk).then(|| place.psk.clone()),
        files: (item.auth == Auth::Ecdsa).then_some(files),
        transport: wish.transport,
        ah: wish.ah,
        force_encap: false,
        more_ts: 0,
        lose: 0,
        ppk: wish
            .ppk
            .as_ref()
            .map(|ppk| (ppk.id.clone(), ppk.hex.clone())),
        local_ts: range(local_ts)?,
        remote_ts: range(remote_ts)?,
        record: place.folder.join("ike.jsonl"),
    })
}
