//! The prepared statements that one client has, by the names it gave them.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use foldhash::HashMap;

use crate::pool::{Prepared, PreparedRegistry, SERVER_NAME, Shape};
use crate::sql::{SqlContext, StatementClass};

/// A named statement.
#[derive(Debug, Clone)]
pub struct Named {
    /// Its content.
    pub prepared: Arc<Prepared>,
    /// What it is.
    pub class: Arc<StatementClass>,
    /// How its text was read.
    pub context: SqlContext,
    /// What the client was told that it takes and returns, once it has asked.
    pub told: Option<Shape>,
    /// When the client prepared it, in microseconds since 1970; in its order.
    pub since: u64,
}

/// The unnamed statement: the proxy keeps its text, since the next batch may run on another connection.
#[derive(Debug)]
pub struct Unnamed {
    /// Its text.
    pub sql: Vec<u8>,
    /// Count and OIDs of its parameter types.
    pub types: Vec<u8>,
    /// What it is.
    pub class: Arc<StatementClass>,
    /// How its text was read.
    context: SqlContext,
}

impl Unnamed {
    /// With copies of its text and types.
    pub fn new(sql: &[u8], types: &[u8], class: Arc<StatementClass>, context: SqlContext) -> Unnamed {
        Unnamed {
            sql: sql.to_vec(),
            types: types.to_vec(),
            class,
            context,
        }
    }
}

/// All of one client's.
#[derive(Debug, Default)]
pub struct Statements {
    named: HashMap<Box<[u8]>, Named>,
    /// What the named ones weigh together.
    bytes: usize,
    unnamed: Option<Unnamed>,
    /// The latest `since`.
    latest: u64,
}

/// What a statement costs besides its name and its text.
const OVERHEAD: usize = 256;

/// An unnamed text beyond this doesn't keep its buffer when a shorter one takes its place.
const KEEP: usize = 4096;

fn weight(name: &[u8], statement: &Named) -> usize {
    OVERHEAD + name.len() + statement.prepared.sql.len() + statement.prepared.types.len()
}

impl Statements {
    /// Bytes of named statements that a client may have the proxy keep.
    pub const LIMIT: usize = 16 << 20;

    /// The statement of this name, if the client has it.
    pub fn named(&self, name: &[u8]) -> Option<&Named> {
        self.named.get(name)
    }

    /// The unnamed one.
    pub fn unnamed(&self) -> Option<&Unnamed> {
        self.unnamed.as_ref()
    }

    /// The class of `name`; empty is the unnamed one.
    pub fn class(&self, name: &[u8]) -> Option<&Arc<StatementClass>> {
        match name {
            [] => self.unnamed.as_ref().map(|unnamed| &unnamed.class),
            name => self.named.get(name).map(|named| &named.class),
        }
    }

    /// Text and parameter types of `name`; empty is the unnamed one.
    pub fn content(&self, name: &[u8]) -> Option<(&[u8], &[u8])> {
        match name {
            [] => self.unnamed.as_ref().map(|unnamed| (&*unnamed.sql, &*unnamed.types)),
            name => {
                let prepared = &self.named.get(name)?.prepared;
                Some((&prepared.sql, &prepared.types))
            }
        }
    }

    /// The client has parsed a new unnamed statement. Answers the one it had.
    pub fn replace_unnamed(&mut self, unnamed: Option<Unnamed>) -> Option<Unnamed> {
        std::mem::replace(&mut self.unnamed, unnamed)
    }

    /// The client has parsed a new unnamed statement, for certain: the buffers of the one it had are used again.
    pub fn set_unnamed(&mut self, sql: &[u8], types: &[u8], class: Arc<StatementClass>, context: SqlContext) {
        match &mut self.unnamed {
            Some(old) if old.sql.capacity() <= KEEP || sql.len() > KEEP => {
                old.sql.clear();
                old.sql.extend_from_slice(sql);
                old.types.clear();
                old.types.extend_from_slice(types);
                old.class = class;
                old.context = context;
            }
            other => *other = Some(Unnamed::new(sql, types, class, context)),
        }
    }

    /// Names in the texts may mean something else by now.
    pub fn reclassify(&mut self, classify: impl Fn(&[u8], &SqlContext) -> Arc<StatementClass>) {
        for named in self.named.values_mut() {
            named.class = classify(&named.prepared.sql, &named.context);
        }
        if let Some(unnamed) = &mut self.unnamed {
            unnamed.class = classify(&unnamed.sql, &unnamed.context);
        }
    }

    /// There is no unnamed statement any more.
    pub fn forget_unnamed(&mut self) {
        self.unnamed = None;
    }

    /// The named ones, in no order.
    pub fn all_named(&self) -> impl Iterator<Item = (&[u8], &Named)> {
        self.named.iter().map(|(name, named)| (&**name, named))
    }

    /// What the client prepares `now` is later than all that it has prepared before, though the clock has not moved on.
    pub fn time(&mut self, now: SystemTime) -> u64 {
        let micros = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros());
        self.latest = u64::try_from(micros).unwrap_or(0).max(self.latest + 1);
        self.latest
    }

    /// The client has named a statement. Answers the one it had by that name.
    pub fn insert(&mut self, name: Box<[u8]>, statement: Named) -> Option<Named> {
        self.bytes += weight(&name, &statement);
        let before = self.named.insert(name.clone(), statement);
        self.bytes -= before.as_ref().map_or(0, |before| weight(&name, before));
        before
    }

    /// The client has closed one.
    pub fn remove(&mut self, name: &[u8]) -> Option<Named> {
        let gone = self.named.remove(name);
        self.bytes -= gone.as_ref().map_or(0, |gone| weight(name, gone));
        gone
    }

    /// The client was told what `name` takes and returns.
    pub fn tell(&mut self, name: &[u8], shape: Shape) {
        if let Some(named) = self.named.get_mut(name) {
            named.told = Some(shape);
        }
    }

    /// A server's plan of some of them is out of date. Those of which the client was told nothing may mean what they mean now; the others
    /// are refused until it prepares them anew.
    pub fn outdate(&mut self, registry: &PreparedRegistry) {
        for named in self.named.values_mut() {
            match named.told {
                Some(_) => registry.retire(&named.prepared),
                None => named.prepared = registry.renew(&named.prepared),
            }
        }
    }

    /// Whether the client has as many named statements as it may.
    pub fn is_full(&self) -> bool {
        self.bytes >= Statements::LIMIT
    }

    /// A server's error that speaks of a statement by its name there, as a whole message with the client's own name in it. `None` if it
    /// speaks of none, which is what most do. `name` is the one meant, where that is known: several may have one text.
    pub fn in_clients_words(&self, error: &[u8], name: Option<&[u8]>) -> Option<Vec<u8>> {
        if !error.ends_with(b"\0\0") {
            return None; // Too long to be here whole.
        }
        let quoted = format!("\"{SERVER_NAME}");
        let start = error
            .windows(quoted.len())
            .position(|window| window == quoted.as_bytes())?
            + 1;
        let end = start + error[start..].iter().position(|&byte| byte == b'"')?;
        let known = || {
            let of_that_name = |named: &Named| named.prepared.server_name() == error[start..end];
            self.named
                .iter()
                .find(|(_, named)| of_that_name(named))
                .map(|(name, _)| &**name)
        };
        let name = name.or_else(known)?;
        let body = [&error[..start], name, &error[end..]].concat();
        let length = u32::try_from(body.len() + 4).ok()?;
        Some([&[b'E'][..], &length.to_be_bytes(), &body].concat())
    }

    /// `DEALLOCATE ALL`, `DISCARD ALL`.
    pub fn clear(&mut self) {
        self.named = HashMap::default();
        self.bytes = 0;
        self.unnamed = None;
    }
}
