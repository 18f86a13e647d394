//! Datagrams moved by hand: a test sees what waits, and delivers, reorders, repeats or drops each one as it likes.

use espalier_ike::Path;

use super::{Net, Packet};

/// A request.
pub const ASK: bool = false;
/// A response.
pub const ANSWER: bool = true;

impl Net {
    /// From now on nothing that is sent moves by itself.
    pub fn by_hand(&mut self) {
        assert_eq!(
            self.agenda.under_way(),
            0,
            "datagrams are under way already"
        );
        self.held = Some(Vec::new());
    }

    /// What waits, oldest first.
    pub fn held(&self) -> &[Packet] {
        self.held.as_deref().unwrap_or_default()
    }

    /// Takes the oldest one of this kind out of what waits. Not delivering it drops it.
    pub fn take(&mut self, from: usize, exchange: u8, answer: bool) -> Packet {
        let ip = self.nodes[from].address.ip();
        let fits = |packet: &Packet| {
            let (kind, response, _) = packet.kind();
            packet.path.local.ip() == ip && (kind, response) == (exchange, answer)
        };
        let at = self.held().iter().position(fits);
        let Some(at) = at else {
            let waits: Vec<String> = self.held().iter().map(describe).collect();
            panic!("node {from} has sent no {exchange} (answer: {answer}); there are {waits:#?}");
        };
        self.take_at(at)
    }

    /// Takes the one at a place in [`Net::held`].
    pub fn take_at(&mut self, at: usize) -> Packet {
        self.held.as_mut().expect("not by hand").remove(at)
    }

    /// Takes one and delivers it; what holds after each step is checked.
    pub fn hand(&mut self, from: usize, exchange: u8, answer: bool) {
        let packet = self.take(from, exchange, answer);
        self.deliver(&packet);
    }

    /// A request of this kind and its answer.
    pub fn exchange(&mut self, from: usize, exchange: u8) {
        self.hand(from, exchange, ASK);
        self.hand(1 - from, exchange, ANSWER);
    }

    /// Lets the network carry what waits and what comes, again.
    pub fn let_go(&mut self) {
        for packet in self.held.take().unwrap_or_default() {
            self.carry(packet);
        }
    }

    /// How many wait of a kind.
    pub fn waiting(&self, from: usize, exchange: u8, answer: bool) -> usize {
        let ip = self.nodes[from].address.ip();
        let fits = |packet: &&Packet| {
            let (kind, response, _) = packet.kind();
            packet.path.local.ip() == ip && (kind, response) == (exchange, answer)
        };
        self.held().iter().filter(fits).count()
    }
}

fn describe(packet: &Packet) -> String {
    let Path { local, remote } = packet.path;
    let (exchange, answer, id) = packet.kind();
    let what = if answer { "answer" } else { "request" };
    format!("{local} → {remote}: {what} {id} of exchange {exchange}")
}
