//! Connections and messages between nodes: lost, repeated, late; cut one way or both.
//!
//! A connection is one object with two ends, and each end learns of its rise and fall in its own
//! time, so one side may believe in a connection that the other has given up. A partition blocks a
//! direction at once and lets a connection die of it a little later, as a real idle timeout does.

use flocker_core::{Input, Message};

use super::world::{Ev, World};
use crate::sim::host::{fingerprint_of, index_of};

/// One connection of a pair of nodes.
#[derive(Debug, Clone, Default)]
struct Connection {
    /// Which one: grows with each.
    number: u64,
    alive: bool,
    /// An attempt is scheduled.
    connecting: bool,
}

/// All links.
#[derive(Debug)]
pub struct Net {
    nodes: usize,
    /// `[from * nodes + to]`: nothing gets through.
    blocked: Vec<bool>,
    /// `[low * nodes + high]`.
    connections: Vec<Connection>,
    /// `[node * nodes + peer]`: the connection this end believes in.
    views: Vec<Option<u64>>,
    /// `[from * nodes + to]`: no message of an orderly network is delivered before this moment.
    delivered_ms: Vec<u64>,
}

impl Net {
    /// No connections yet, no obstacles.
    pub fn new(nodes: usize) -> Self {
        Self {
            nodes,
            blocked: vec![false; nodes * nodes],
            connections: vec![Connection::default(); nodes * nodes],
            views: vec![None; nodes * nodes],
            delivered_ms: vec![0; nodes * nodes],
        }
    }

    fn pair(&self, a: usize, b: usize) -> usize {
        a.min(b) * self.nodes + a.max(b)
    }

    /// Whether this direction is cut.
    pub fn is_blocked(&self, from: usize, to: usize) -> bool {
        self.blocked[from * self.nodes + to]
    }

    /// Whether bytes can flow both ways now.
    pub fn is_open(&self, a: usize, b: usize) -> bool {
        !self.is_blocked(a, b) && !self.is_blocked(b, a)
    }

    /// Whether a connection stands in truth.
    pub fn is_connected(&self, a: usize, b: usize) -> bool {
        self.connections[self.pair(a, b)].alive && self.is_open(a, b)
    }

    /// Whether `node` believes to be connected to `peer`.
    pub fn believes(&self, node: usize, peer: usize) -> bool {
        self.views[node * self.nodes + peer].is_some()
    }

    /// A crashed node believes nothing.
    pub fn forget_views(&mut self, node: usize) {
        for peer in 0..self.nodes {
            self.views[node * self.nodes + peer] = None;
        }
    }
}

impl World {
    /// Cuts one direction.
    pub(super) fn block(&mut self, from: usize, to: usize) {
        let at = from * self.net.nodes + to;
        if !self.net.blocked[at] {
            self.net.blocked[at] = true;
            self.break_connection(from, to, true);
        }
    }

    /// Opens every direction between two nodes.
    pub(super) fn unblock(&mut self, a: usize, b: usize) {
        let nodes = self.net.nodes;
        self.net.blocked[a * nodes + b] = false;
        self.net.blocked[b * nodes + a] = false;
        self.seek_connection(a, b);
    }

    /// The connection dies; each end notices in its own time. `slowly`: only by its idle timeout.
    pub(super) fn break_connection(&mut self, a: usize, b: usize, slowly: bool) {
        let pair = self.net.pair(a, b);
        if !self.net.connections[pair].alive {
            return;
        }
        self.net.connections[pair].alive = false;
        let number = self.net.connections[pair].number;
        let idle = if slowly { self.scenario.net.idle_ms } else { 100 };
        for (node, peer) in [(a, b), (b, a)] {
            let after = self.rng.range(1, idle.max(2));
            self.after(after, Ev::ViewDown { node, peer, number });
        }
        self.break_bulk_between(a, b);
        // An end that notices first may dial while the other still believes in the old one.
        self.seek_connection(a, b);
    }

    /// Dials, a little later, if it makes sense then.
    pub(super) fn seek_connection(&mut self, a: usize, b: usize) {
        let pair = self.net.pair(a, b);
        let connection = &mut self.net.connections[pair];
        if connection.alive || connection.connecting {
            return;
        }
        connection.connecting = true;
        let idle = self.scenario.net.idle_ms;
        let after = self.rng.range(20, 200 + idle / 2);
        self.after(after, Ev::Connect { a, b });
    }

    pub(super) fn on_connect(&mut self, a: usize, b: usize) {
        let pair = self.net.pair(a, b);
        self.net.connections[pair].connecting = false;
        let trusts = |x: usize, y: usize| {
            self.hosts[x].life.is_some()
                && self.hosts[x].durable.peers.contains_key(&fingerprint_of(y))
        };
        if !self.net.is_open(a, b) || !trusts(a, b) || !trusts(b, a) {
            return; // Whoever removes the obstacle dials again.
        }
        let connection = &mut self.net.connections[pair];
        connection.alive = true;
        connection.number += 1;
        let number = connection.number;
        for (node, peer) in [(a, b), (b, a)] {
            let after = self.rng.range(1, 2 + self.scenario.net.latency_ms * 2);
            self.after(after, Ev::ViewUp { node, peer, number });
        }
    }

    pub(super) fn on_view_up(&mut self, node: usize, peer: usize, number: u64) {
        let connection = &self.net.connections[self.net.pair(node, peer)];
        let at = node * self.net.nodes + peer;
        if connection.number != number || !connection.alive || self.net.views[at] == Some(number) {
            return;
        }
        if self.hosts[node].life.is_none() {
            return;
        }
        // The transport may announce a replaced connection with or without the fall of the old.
        if self.net.views[at].is_some() && self.rng.one_in(2) {
            self.input(node, Input::PeerDown { peer: fingerprint_of(peer) });
        }
        self.net.views[at] = Some(number);
        self.input(node, Input::PeerUp { peer: fingerprint_of(peer) });
    }

    pub(super) fn on_view_down(&mut self, node: usize, peer: usize, number: u64) {
        let at = node * self.net.nodes + peer;
        if self.net.views[at].is_some_and(|view| view <= number) {
            self.net.views[at] = None;
            self.input(node, Input::PeerDown { peer: fingerprint_of(peer) });
        }
        self.seek_connection(node, peer);
    }

    /// A message leaves a node.
    pub(super) fn send_message(&mut self, from: usize, to: usize, message: Message) {
        let net = self.scenario.net.clone();
        let calm = self.healing;
        if !self.net.believes(from, to) {
            return;
        }
        if self.net.is_blocked(from, to) || (!calm && self.rng.chance_ppm(net.loss_ppm)) {
            self.note_loss(message.unit);
            return;
        }
        let copies = if !calm && self.rng.chance_ppm(net.repeat_ppm) { 2 } else { 1 };
        for _ in 0..copies {
            let mut at = self.now_ms + net.latency_ms + self.rng.range(0, net.jitter_ms);
            if net.orderly || calm {
                let earliest = &mut self.net.delivered_ms[from * self.net.nodes + to];
                at = at.max(*earliest);
                *earliest = at;
            } else if self.rng.chance_ppm(net.late_ppm) {
                at += self.rng.range(0, net.late_ms);
            }
            let message = Box::new(message.clone());
            self.at(at, Ev::Deliver { from, to, message });
        }
    }

    pub(super) fn on_deliver(&mut self, from: usize, to: usize, message: Message) {
        if self.hosts[to].life.is_none() || self.net.is_blocked(from, to) {
            self.note_loss(message.unit);
            return;
        }
        if !self.net.believes(to, from) {
            let connection = &self.net.connections[self.net.pair(from, to)];
            if !connection.alive {
                return;
            }
            let number = connection.number;
            self.on_view_up(to, from, number);
        }
        let peer = fingerprint_of(from);
        self.check_delivered(from, to, &message);
        if let Some(life) = &mut self.hosts[to].life {
            life.heard.insert((message.unit, peer));
            self.input(to, Input::Message { peer, message });
        }
    }

    /// The set of trusted peers changed at a node.
    pub(super) fn peers_changed(&mut self, node: usize) {
        let peers: Vec<usize> =
            self.hosts[node].durable.peers.keys().filter_map(|f| index_of(*f)).collect();
        for peer in peers {
            self.seek_connection(node, peer);
        }
    }
}
