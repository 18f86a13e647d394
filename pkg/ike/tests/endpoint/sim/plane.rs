//! A data plane and the driver's part for it, as the agent does it: SPIs and keys per peer, which one seals.

use std::collections::BTreeMap;

use espalier_ike::{ChildId, ChildKeys, ChildSa, Endpoint, Identity, Role};

/// What one node has of one peer. It outlives the endpoint, as the real one does.
#[derive(Clone, Debug, Default)]
pub struct Pair {
    /// Inbound SPI → key.
    pub inbound: BTreeMap<u32, Vec<u8>>,
    /// Outbound SPI → key, in order of installation.
    pub outbound: Vec<(u32, Vec<u8>)>,
    /// Which outbound SPI seals.
    pub seals: Option<u32>,
    /// SPI pairs of an endpoint that is gone: removed when a successor is confirmed.
    pub adopted: Vec<(u32, u32)>,
    /// (in, out) of the newest CHILD_SA.
    pub newest: Option<(u32, u32)>,
    /// This end's in the exchange that made it.
    pub role: Option<Role>,
    /// Further CHILD_SAs, each as this one.
    pub more: BTreeMap<ChildId, Pair>,
}

impl Pair {
    /// `ChildUp`: install both directions; an initiator seals at once.
    pub fn up(&mut self, child: &ChildSa) {
        match child.id {
            ChildId::FIRST => self.up_here(child),
            id => self.more.entry(id).or_default().up_here(child),
        }
    }

    fn up_here(&mut self, child: &ChildSa) {
        let key = |keys: &ChildKeys| [keys.key.expose(), keys.integrity.expose()].concat();
        assert!(
            self.inbound
                .insert(child.spi_in, key(&child.keys_in))
                .is_none(),
            "inbound SPI reused"
        );
        assert!(
            self.outbound.iter().all(|(spi, _)| *spi != child.spi_out),
            "outbound SPI reused"
        );
        self.outbound.push((child.spi_out, key(&child.keys_out)));
        self.newest = Some((child.spi_in, child.spi_out));
        self.role = Some(child.role);
        if child.role == Role::Initiator {
            self.seals = Some(child.spi_out);
        }
    }

    /// The peer says what it opens: a responder seals with the newest from now on. Nothing of the kind follows for an initiator: its
    /// peer opens before it answers, and may seal with an older one still.
    pub fn switch(&mut self, opens: &dyn Fn(u32) -> bool, endpoint: &mut Endpoint) -> Option<u32> {
        for more in self.more.values_mut() {
            more.switch(opens, endpoint);
        }
        let responder = self.role == Some(Role::Responder);
        let (spi_in, spi_out) = self.newest.filter(|(_, out)| responder && opens(*out))?;
        self.seals = Some(spi_out);
        // The peer has switched to this SA before it announced: nothing comes on adopted ones any more.
        self.drop_own_adopted(endpoint);
        Some(spi_in)
    }

    /// `ChildDown`: remove both directions; what is left, if anything, seals.
    pub fn down(&mut self, spi_in: u32, spi_out: u32) {
        let mut more = self.more.values_mut();
        if let Some(more) = more.find(|more| more.inbound.contains_key(&spi_in)) {
            return more.down(spi_in, spi_out);
        }
        assert!(
            self.inbound.remove(&spi_in).is_some(),
            "unknown inbound SPI went down"
        );
        self.outbound.retain(|(spi, _)| *spi != spi_out);
        if self.newest == Some((spi_in, spi_out)) {
            self.newest = None;
        }
        if self.seals == Some(spi_out) {
            self.seals = self.outbound.last().map(|(spi, _)| *spi);
        }
    }

    /// A new endpoint takes over: what is here belongs to nobody any more.
    pub fn adopt(&mut self) {
        self.more.values_mut().for_each(Self::adopt);
        let spis: Vec<u32> = self.outbound.iter().map(|(spi, _)| *spi).collect();
        self.adopted = self.inbound.keys().copied().zip(spis).collect();
        self.newest = None;
    }

    /// This one and all further ones.
    pub fn each(&self) -> impl Iterator<Item = &Self> {
        [self].into_iter().chain(self.more.values())
    }

    /// The successor of adopted SAs is confirmed.
    pub fn drop_adopted(&mut self, endpoint: &mut Endpoint) {
        // Only where there is something to take their place.
        for more in self.more.values_mut().filter(|more| more.newest.is_some()) {
            more.drop_adopted(endpoint);
        }
        self.drop_own_adopted(endpoint);
    }

    fn drop_own_adopted(&mut self, endpoint: &mut Endpoint) {
        for (spi_in, spi_out) in std::mem::take(&mut self.adopted) {
            self.down(spi_in, spi_out);
            endpoint.release_spi(spi_in);
        }
    }
}

/// All peers of one node.
pub type Plane = BTreeMap<Identity, Pair>;
