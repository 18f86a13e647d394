//! Which peer has which reqid, kept in a file for as long as the kernel keeps the states: without it a restarted process could
//! not tell whose they are.
//!
//! ```text
//! {"version":1,"instance":"9f3c…"}        of which kernel and network namespace; another one: the states are gone, so is this
//! {"put":{"reqid":1163067393,"id":"node-b","local":"192.0.2.1",…}}
//! {"remove":"node-b"}
//! ```
//!
//! One JSON object a line, appended: thousands of peers are put one after the other. The file is written anew, under another
//! name and then renamed, when it is opened and when most of it is history. No fsync: after a power cut the states are gone as
//! well. There is no key in it.

mod line;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use espalier_dataplane_core::{Error, Peer, PeerId};
use tracing::warn;

use crate::reqid::PEERS;
use line::Line;

pub use line::{Contents, parse as parse_peers_file};

/// Name of the file in the run directory.
pub(crate) const FILE: &str = "kernel-peers.json";
/// Lines of history that are never worth a new file.
const SLACK: usize = 256;

/// The peers and their reqids.
#[derive(Debug)]
pub(crate) struct Book {
    path: PathBuf,
    instance: u64,
    /// `None`: the last write failed; the next one writes everything.
    file: Option<File>,
    lines: usize,
    next: u32,
    reqids: BTreeMap<PeerId, u32>,
    peers: BTreeMap<u32, Peer>,
}

impl Book {
    /// Reads what an earlier process of this kernel left. A file that is missing, damaged, or of another kernel means fewer
    /// known peers, not an error.
    pub(crate) fn open(run_dir: &Path, instance: u64) -> Self {
        let path = run_dir.join(FILE);
        let contents = match fs::read(&path) {
            Ok(bytes) => line::parse(&bytes, instance),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Contents::default(),
            Err(error) => {
                warn!(path = %path.display(), %error, "the list of peers cannot be read; their SAs will be negotiated anew");
                Contents::default()
            }
        };
        if contents.skipped > 0 {
            warn!(path = %path.display(), lines = contents.skipped, "lines of the list of peers cannot be read; SAs of these peers will be negotiated anew");
        }
        let mut book = Self {
            path,
            instance,
            file: None,
            lines: 0,
            next: *PEERS.start(),
            reqids: BTreeMap::new(),
            peers: BTreeMap::new(),
        };
        for (reqid, peer) in contents.peers {
            book.reqids.insert(peer.id.clone(), reqid);
            book.peers.insert(reqid, peer);
        }
        book.next = book
            .peers
            .keys()
            .next_back()
            .map_or(book.next, |last| last + 1);
        book.rewrite();
        book
    }

    pub(crate) fn reqid(&self, id: &PeerId) -> Option<u32> {
        self.reqids.get(id).copied()
    }

    pub(crate) fn peer(&self, reqid: u32) -> Option<&Peer> {
        self.peers.get(&reqid)
    }

    pub(crate) fn peers(&self) -> impl Iterator<Item = (u32, &Peer)> {
        self.peers.iter().map(|(reqid, peer)| (*reqid, peer))
    }

    /// Adds or changes a peer; `taken` tells reqids that states of forgotten peers have.
    pub(crate) fn put(&mut self, peer: Peer, taken: impl Fn(u32) -> bool) -> Result<u32, Error> {
        let reqid = match self.reqid(&peer.id) {
            Some(reqid) => reqid,
            None => self.free(taken)?,
        };
        if self.peers.get(&reqid) != Some(&peer) {
            let line = Line::put(reqid, &peer);
            self.reqids.insert(peer.id.clone(), reqid);
            self.peers.insert(reqid, peer);
            self.write(&line);
        }
        Ok(reqid)
    }

    pub(crate) fn remove(&mut self, id: &PeerId) {
        if let Some(reqid) = self.reqids.remove(id) {
            self.peers.remove(&reqid);
            self.write(&Line::Remove(id.0.clone()));
        }
    }

    /// The next one, not the lowest: policies of a peer that is gone may name the old one for a moment.
    fn free(&mut self, taken: impl Fn(u32) -> bool) -> Result<u32, Error> {
        let start = if PEERS.contains(&self.next) {
            self.next
        } else {
            *PEERS.start()
        };
        let mut all = (start..=*PEERS.end()).chain(*PEERS.start()..start);
        let free = all.find(|reqid| !self.peers.contains_key(reqid) && !taken(*reqid));
        let reqid = free.ok_or_else(|| Error::Invalid {
            field: "peer",
            why: format!(
                "all {} reqids are in use; remove peers first",
                PEERS.count()
            ),
        })?;
        self.next = reqid + 1;
        Ok(reqid)
    }

    fn write(&mut self, line: &Line) {
        self.lines += 1;
        if self.lines > 2 * self.peers.len() + SLACK {
            self.file = None;
        }
        let appended = match &mut self.file {
            Some(file) => file.write_all(line.to_text().as_bytes()),
            None => return self.rewrite(),
        };
        if let Err(error) = appended {
            self.failed(&error);
        }
    }

    fn rewrite(&mut self) {
        match self.write_anew() {
            Ok(file) => {
                self.lines = self.peers.len();
                self.file = Some(file);
            }
            Err(error) => self.failed(&error),
        }
    }

    fn write_anew(&self) -> io::Result<File> {
        let new = self.path.with_extension("json.new");
        let mut text = line::header(self.instance);
        for (reqid, peer) in &self.peers {
            text.push_str(&Line::put(*reqid, peer).to_text());
        }
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&new, &self.path)?;
        Ok(file)
    }

    fn failed(&mut self, error: &io::Error) {
        warn!(path = %self.path.display(), %error, "the list of peers cannot be written; after a restart of this process SAs of new peers are negotiated anew");
        self.file = None;
    }
}

#[cfg(test)]
mod tests;
