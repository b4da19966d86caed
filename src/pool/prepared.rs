//! Prepared statements by content.
//!
//! Clients name their statements as they like; on a server connection a statement is known by the identity of its text and parameter
//! types, and of what its names may mean, so that one preparation serves every client that wants the same, on whatever node it lands.
//! [`PreparedRegistry`] gives out identities, [`PreparedSet`] is what one connection has.

use std::sync::{Arc, OnceLock, Weak};

use foldhash::HashMap;
use parking_lot::Mutex;

use super::shape::Shape;

/// How the names of statements begin on server connections; the identity follows.
pub const SERVER_NAME: &str = "pgsluice_";

/// A statement's content. Two that are equal are one and the same `Arc`.
#[derive(Debug)]
pub struct Prepared {
    id: u64,
    /// The text.
    pub sql: Box<[u8]>,
    /// Count and OIDs of the parameter types, as sent in `Parse`.
    pub types: Box<[u8]>,
    scope: Box<str>,
    parameters: OnceLock<Box<[u8]>>,
}

impl Prepared {
    /// Its identity, for as long as the process runs.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// A server has described its parameters. What it found when the statement was prepared stays.
    pub fn learn_parameters(&self, types: &[u8]) {
        self.parameters.get_or_init(|| types.into());
    }

    /// Count and OIDs of its parameters' types, once a server has told them.
    pub fn parameters(&self) -> Option<&[u8]> {
        self.parameters.get().map(|types| &**types)
    }

    /// Its name on every server connection.
    pub fn server_name(&self) -> Vec<u8> {
        format!("{SERVER_NAME}{}", self.id).into_bytes()
    }
}

/// Gives equal statements one identity. Entries live as long as some session uses them.
#[derive(Debug, Default)]
pub struct PreparedRegistry {
    inner: Mutex<Registered>,
}

/// A text, the count and OIDs of its parameter types, and its scope.
type Content = (Box<[u8]>, Box<[u8]>, Box<str>);

#[derive(Debug, Default)]
struct Registered {
    next_id: u64,
    by_content: HashMap<Content, Weak<Prepared>>,
    sweep_at: usize,
}

impl PreparedRegistry {
    /// The statement of this content. `scope` stands for what its names mean where it is prepared: the search path, for one.
    pub fn intern(&self, sql: &[u8], types: &[u8], scope: &str) -> Arc<Prepared> {
        let mut inner = self.inner.lock();
        let key = (Box::from(sql), Box::from(types), Box::from(scope));
        if let Some(known) = inner.by_content.get(&key).and_then(Weak::upgrade) {
            return known;
        }
        if inner.by_content.len() >= inner.sweep_at.max(1024) {
            inner.by_content.retain(|_, statement| statement.strong_count() > 0);
            inner.sweep_at = inner.by_content.len() * 2;
        }
        inner.next_id += 1;
        let statement = Arc::new(Prepared {
            id: inner.next_id,
            sql: key.0.clone(),
            types: key.1.clone(),
            scope: key.2.clone(),
            parameters: OnceLock::new(),
        });
        inner.by_content.insert(key, Arc::downgrade(&statement));
        statement
    }

    /// The plan of `statement` is out of date on some server: who prepares the same text from now on gets another identity, and so a fresh
    /// statement on every connection.
    pub fn retire(&self, statement: &Prepared) {
        let key = (statement.sql.clone(), statement.types.clone(), statement.scope.clone());
        let mut inner = self.inner.lock();
        let known = inner.by_content.get(&key).and_then(Weak::upgrade);
        if known.is_some_and(|known| known.id == statement.id) {
            inner.by_content.remove(&key);
        }
    }

    /// Texts may mean something else than they did: what is prepared from now on is analysed from now on. A server goes on with the
    /// parameter types that it found when it prepared a statement.
    pub fn retire_all(&self) {
        self.inner.lock().by_content.clear();
    }

    /// The same text under an identity that isn't retired.
    pub fn renew(&self, statement: &Prepared) -> Arc<Prepared> {
        self.retire(statement);
        self.intern(&statement.sql, &statement.types, &statement.scope)
    }
}

/// The statements that one server connection has, bounded: the least recently used goes first.
#[derive(Debug, Default)]
pub struct PreparedSet {
    held: HashMap<u64, Held>,
    /// Bytes of their texts.
    size: usize,
    clock: u64,
}

/// A statement that makes room for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evicted {
    /// Its identity.
    pub id: u64,
    size: usize,
}

#[derive(Debug)]
struct Held {
    last_use: u64,
    size: usize,
    shape: Option<Shape>,
}

impl PreparedSet {
    /// Statements that one connection keeps.
    pub const LIMIT: usize = 500;
    /// Bytes that their texts may have together; what the server makes of them is some ten times as much. One that has more by itself is the
    /// only one.
    pub const SIZE: usize = 4 << 20;

    /// Whether the connection has it; if so it counts as used now.
    pub fn touch(&mut self, id: u64) -> bool {
        self.clock += 1;
        let clock = self.clock;
        self.held.get_mut(&id).map(|held| held.last_use = clock).is_some()
    }

    /// The server has confirmed it.
    pub fn insert(&mut self, statement: &Prepared) {
        self.hold(statement.id, statement.sql.len());
    }

    /// The server has it still, or again.
    pub fn put_back(&mut self, evicted: Evicted) {
        self.hold(evicted.id, evicted.size);
    }

    fn hold(&mut self, id: u64, size: usize) {
        self.clock += 1;
        let held = Held {
            last_use: self.clock,
            size,
            shape: None,
        };
        self.size += size;
        if let Some(before) = self.held.insert(id, held) {
            self.size -= before.size;
        }
    }

    /// The server has described it, when it had just been prepared. That holds for as long as the server has it.
    pub fn learn(&mut self, id: u64, shape: Shape) {
        if let Some(held) = self.held.get_mut(&id) {
            held.shape = Some(shape);
        }
    }

    /// How the server has described it.
    pub fn shape(&self, id: u64) -> Option<Shape> {
        self.held.get(&id)?.shape
    }

    /// The server has dropped it.
    pub fn remove(&mut self, id: u64) {
        if let Some(gone) = self.held.remove(&id) {
            self.size -= gone.size;
        }
    }

    /// The server has dropped all (`DISCARD ALL`, `DEALLOCATE ALL`).
    pub fn clear(&mut self) {
        self.held.clear();
        self.size = 0;
    }

    /// If there is no room for `statement`, one to close before it is prepared.
    pub fn evict(&mut self, statement: &Prepared) -> Option<Evicted> {
        if self.held.len() < PreparedSet::LIMIT && self.size + statement.sql.len() <= PreparedSet::SIZE {
            return None;
        }
        let (&id, held) = self.held.iter().min_by_key(|(_, held)| held.last_use)?;
        let oldest = Evicted { id, size: held.size };
        self.remove(id);
        Some(oldest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_content_has_one_identity() {
        let registry = PreparedRegistry::default();
        let one = registry.intern(b"select 1", &[0, 0], "");
        assert!(Arc::ptr_eq(&one, &registry.intern(b"select 1", &[0, 0], "")));
        assert_ne!(one.id(), registry.intern(b"select 1", &[0, 1, 0, 0, 0, 23], "").id());
        assert_ne!(one.id(), registry.intern(b"select 2", &[0, 0], "").id());
        assert_ne!(one.id(), registry.intern(b"select 1", &[0, 0], "elsewhere").id());
    }

    #[test]
    fn a_retired_statement_is_prepared_anew() {
        let registry = PreparedRegistry::default();
        let old = registry.intern(b"select * from t", &[0, 0], "");
        let new = registry.renew(&old);
        assert_ne!(new.id(), old.id());
        // Whoever else has the old one gets the same.
        assert_eq!(registry.renew(&old).id(), new.id());
        registry.retire_all();
        assert_ne!(registry.intern(b"select * from t", &[0, 0], "").id(), new.id());
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let registry = PreparedRegistry::default();
        let statement = |number: usize, size: usize| registry.intern(&vec![b'x'; size], &number.to_be_bytes(), "");
        let mut set = PreparedSet::default();
        let held: Vec<_> = (0..PreparedSet::LIMIT).map(|number| statement(number, 10)).collect();
        held.iter().for_each(|statement| set.insert(statement));
        assert!(set.touch(held[0].id()));
        let next = statement(PreparedSet::LIMIT, 10);
        let evicted = set.evict(&next).expect("the set is full");
        assert_eq!(evicted.id, held[1].id());
        assert_eq!(set.evict(&next), None);
        set.put_back(evicted);
        assert!(set.touch(held[1].id()));
        // A text that takes all the room is alone.
        let huge = statement(0, PreparedSet::SIZE);
        let evicted = std::iter::from_fn(|| set.evict(&huge)).count();
        assert_eq!(evicted, PreparedSet::LIMIT);
        set.insert(&huge);
        assert!(set.evict(&next).is_some());
        assert_eq!(set.evict(&next), None);
        assert_eq!(set.size, 0);
        assert!(!set.touch(1));
    }
}
