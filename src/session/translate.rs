//! From the client's messages to the server's: statement names are the proxy's own on server connections, what a connection lacks is
//! prepared on the way, and what it has already is not sent again.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use super::aim::Shot;
use super::expect::{Awaited, Expectations, Undo};
use super::login::Told;
use super::prepared_view;
use super::request::FrameAt;
use super::statements::{Named as NamedStatement, Statements, Unnamed};
use crate::pool::{Prepared, PreparedRegistry, PreparedSet, SERVER_NAME, Shape};
use crate::sql::{Effect, SqlContext, StatementClass, prepared_names, prepared_views};
use crate::wire::frame::HEADER;
use crate::wire::frontend::{self, Named};

/// A portal of a statement of which the client has been told nothing yet.
#[derive(Debug)]
pub struct Untold {
    portal: Box<[u8]>,
    statement: Box<[u8]>,
}

/// What a Bind becomes that can't be sent as it is.
enum BindInstead {
    /// One of this text, with these types of its parameters.
    Text(Vec<u8>, Vec<u8>),
    /// One with these formats and values.
    Values(Vec<u8>),
}

/// What a translation reads and changes.
pub struct Translator<'a> {
    /// The client's statements.
    pub statements: &'a mut Statements,
    /// The connection's.
    pub connection: &'a mut PreparedSet,
    /// Identities.
    pub registry: &'a PreparedRegistry,
    /// How the client's texts are read.
    pub context: &'a SqlContext,
    /// What stands in place of the process id that a text or a Bind signals.
    pub shot: Option<Shot>,
    /// What the names in texts mean for this client.
    pub scope: &'a str,
    /// What the client was told of the server's parameters.
    pub told: &'a Told,
    /// Where in `out` sending must stop until a statement that was prepared anew is known to be what the client was told.
    pub stops: &'a mut VecDeque<usize>,
    /// Portals of statements of which the client has been told nothing yet.
    pub untold: &'a mut Vec<Untold>,
    /// What is owed for what is written here.
    pub expect: &'a mut Expectations,
    /// Where the server's messages are written.
    pub out: &'a mut Vec<u8>,
    /// The connection's unnamed statement is the client's: it was parsed, for this client, since the exchange began.
    pub unnamed_is_ours: &'a mut bool,
    /// The block has failed: the server refuses every Parse but that of a block's end, also of what it has.
    pub failed_block: bool,
    /// The batch only prepares: a Sync takes the place of its Flush.
    pub flush_is_sync: bool,
}

impl Translator<'_> {
    /// Translates one message, of which all or only the front is in `bytes`.
    pub fn message(&mut self, frame: FrameAt, bytes: &[u8], classify: &mut impl FnMut(&[u8]) -> Arc<StatementClass>) {
        let end = frame.end.min(bytes.len());
        let raw = &bytes[frame.start..end];
        let body = &bytes[frame.start + HEADER..end];
        let to_come = frame.end - end;
        match frame.tag {
            b'H' if self.flush_is_sync => {
                self.out.extend_from_slice(&frontend::SYNC);
                self.expect.push(Awaited::HiddenReady);
                return;
            }
            b'P' if to_come == 0 => {
                if let Some(parse) = frontend::parse(body) {
                    self.parse(parse, raw, classify);
                    return;
                }
            }
            b'B' => {
                if let Some(bind) = frontend::bind(body) {
                    self.bind(bind, raw, to_come);
                    return;
                }
            }
            b'D' | b'C' => match frontend::named(body) {
                Some(Named::Statement(name)) => {
                    self.about_statement(frame.tag, name, raw);
                    return;
                }
                Some(Named::Portal(portal)) => {
                    let awaited = match self.untold.iter().find(|untold| *untold.portal == *portal) {
                        _ if frame.tag == b'C' => Awaited::Close { evicted: None },
                        Some(untold) => Awaited::Tell(untold.statement.clone()),
                        None => Awaited::Describe,
                    };
                    self.expect.push(awaited);
                    self.out.extend_from_slice(raw);
                    return;
                }
                None => {}
            },
            b'Q' if to_come == 0 => {
                if let Some(sql) = frontend::query(body) {
                    *self.unnamed_is_ours = false;
                    let aimed = self.shot.and_then(|shot| shot.in_text(sql, self.context));
                    match aimed.or_else(|| self.for_the_server(sql, &classify(sql))) {
                        Some(renamed) => frontend::put_query(self.out, &renamed),
                        None => self.out.extend_from_slice(raw),
                    }
                    self.expect.push(Awaited::Query);
                    return;
                }
            }
            _ => {}
        }
        match frame.tag {
            b'P' => {
                *self.unnamed_is_ours = true;
                // Only its front is here: what it is can't be known, nor could it be prepared elsewhere.
                let before = self.statements.replace_unnamed(None);
                self.expect.push(Awaited::Parse {
                    prepared: None,
                    asked: Some(Undo::Unnamed(before)),
                    hidden: false,
                });
            }
            b'B' => self.expect.push(Awaited::Bind),
            b'E' => self.expect.push(Awaited::Execute),
            b'Q' | b'F' => self.expect.push(Awaited::Query),
            b'S' => self.expect.push(Awaited::Ready),
            _ => {}
        }
        self.out.extend_from_slice(raw);
    }

    fn parse(
        &mut self,
        parse: frontend::Parse<'_>,
        raw: &[u8],
        classify: &mut impl FnMut(&[u8]) -> Arc<StatementClass>,
    ) {
        if parse.name.is_empty() {
            let class = classify(parse.sql);
            let renamed = self.with_servers_names(parse.sql, &class);
            *self.unnamed_is_ours = true;
            let unnamed = Unnamed::new(parse.sql, parse.types, class, *self.context);
            let before = self.statements.replace_unnamed(Some(unnamed));
            self.expect.push(Awaited::Parse {
                prepared: None,
                asked: Some(Undo::Unnamed(before)),
                hidden: false,
            });
            match renamed {
                Some(renamed) => frontend::put_parse(self.out, b"", &renamed, parse.types),
                None => self.out.extend_from_slice(raw),
            }
            return;
        }
        if let Some(taken) = self.statements.named(parse.name) {
            // The server finds what it would find, the text's own faults first, and then that the name is taken.
            let taken = Arc::clone(&taken.prepared);
            self.ensure(&taken, None);
            frontend::put_parse(self.out, &taken.server_name(), parse.sql, parse.types);
            self.expect.push(Awaited::ParseTaken(parse.name.into()));
            return;
        }
        let prepared = self.registry.intern(parse.sql, parse.types, self.scope);
        let class = classify(parse.sql);
        let named = NamedStatement {
            prepared: Arc::clone(&prepared),
            class: Arc::clone(&class),
            context: *self.context,
            told: None,
            since: self.statements.time(SystemTime::now()),
        };
        let before = self.statements.insert(parse.name.into(), named);
        let undo = Undo::Named(parse.name.into(), before);
        let ends_block = matches!(
            &class.effects[..],
            [Effect::Commit { .. } | Effect::Rollback { .. } | Effect::RollbackTo { .. }]
        );
        if self.has(&prepared) && (!self.failed_block || ends_block) {
            self.expect.push(Awaited::ParseKnown(undo));
            return;
        }
        self.make_room(&prepared);
        frontend::put_parse(self.out, &prepared.server_name(), parse.sql, parse.types);
        self.expect.push(Awaited::Parse {
            prepared: Some(Arc::clone(&prepared)),
            asked: Some(undo),
            hidden: false,
        });
        self.describe(&prepared, None);
    }

    fn bind(&mut self, bind: frontend::Bind<'_>, raw: &[u8], to_come: usize) {
        self.untold.retain(|untold| *untold.portal != *bind.portal);
        let instead = if to_come == 0 { self.instead_of(bind) } else { None };
        let bind = match &instead {
            Some(BindInstead::Text(sql, types)) => {
                self.stand_in(sql, types);
                self.expect.push(Awaited::Bind);
                frontend::put_bind_head(self.out, bind.portal, b"", bind.rest.len());
                self.out.extend_from_slice(bind.rest);
                return;
            }
            Some(BindInstead::Values(rest)) => frontend::Bind { rest, ..bind },
            None => bind,
        };
        if bind.statement.is_empty() {
            self.ensure_unnamed();
        } else if let Some(named) = self.statements.named(bind.statement) {
            let (prepared, told) = (Arc::clone(&named.prepared), named.told);
            if told.is_none() {
                self.untold.push(Untold {
                    portal: bind.portal.into(),
                    statement: bind.statement.into(),
                });
            }
            self.ensure(&prepared, told);
            self.expect.push(Awaited::Bind);
            frontend::put_bind_head(
                self.out,
                bind.portal,
                &prepared.server_name(),
                bind.rest.len() + to_come,
            );
            self.out.extend_from_slice(bind.rest);
            return;
        }
        self.expect.push(Awaited::Bind);
        if instead.is_some() {
            frontend::put_bind_head(self.out, bind.portal, bind.statement, bind.rest.len());
            self.out.extend_from_slice(bind.rest);
        } else {
            self.out.extend_from_slice(raw);
        }
    }

    /// A text that the server gets as its unnamed statement, in the place of a statement of the client's.
    fn stand_in(&mut self, sql: &[u8], types: &[u8]) {
        frontend::put_parse(self.out, b"", sql, types);
        self.expect.push(Awaited::Parse {
            prepared: None,
            asked: None,
            hidden: true,
        });
        *self.unnamed_is_ours = false;
    }

    /// What a Bind becomes whose statement says something that means something else to the server now.
    fn instead_of(&mut self, bind: frontend::Bind<'_>) -> Option<BindInstead> {
        let aimed = self.shot.and_then(|shot| self.aimed(shot, bind));
        aimed.or_else(|| {
            let class = self.statements.class(bind.statement)?;
            // The unnamed statement that the server has names what it was parsed with.
            let names = class.names_prepared() && !(bind.statement.is_empty() && *self.unnamed_is_ours);
            if !class.reads_prepared && !names {
                return None;
            }
            let class = Arc::clone(class);
            let (sql, types) = self.statements.content(bind.statement)?;
            let (sql, types) = (sql.to_vec(), types.to_vec());
            Some(BindInstead::Text(self.for_the_server(&sql, &class)?, types))
        })
    }

    /// What a Bind becomes that is to signal the server's process, if it does so at all.
    fn aimed(&self, shot: Shot, bind: frontend::Bind<'_>) -> Option<BindInstead> {
        let (sql, types) = self.statements.content(bind.statement)?;
        let text = || Some(BindInstead::Text(shot.in_text(sql, self.context)?, types.to_vec()));
        let values = || Some(BindInstead::Values(shot.in_values(bind.rest, sql, self.context)?));
        text().or_else(values)
    }

    fn about_statement(&mut self, tag: u8, name: &[u8], raw: &[u8]) {
        let known = self.statements.named(name).map(|named| Arc::clone(&named.prepared));
        match (tag, known) {
            (b'D', Some(prepared)) => {
                if let Some(class) = self.statements.class(name).filter(|class| class.names_prepared())
                    && let class = Arc::clone(class)
                    && let Some(renamed) = self.with_servers_names(&prepared.sql, &class)
                {
                    // What it returns is told by a text that names what the server has.
                    self.stand_in(&renamed, &prepared.types);
                    self.expect.push(Awaited::Describe);
                    frontend::put_statement(self.out, b'D', b"");
                    return;
                }
                self.ensure(&prepared, None);
                self.expect.push(Awaited::Tell(name.into()));
                frontend::put_statement(self.out, b'D', &prepared.server_name());
            }
            (b'D', None) => {
                if name.is_empty() {
                    self.ensure_unnamed();
                }
                self.expect.push(Awaited::Describe);
                self.out.extend_from_slice(raw);
            }
            (_, Some(_)) => {
                let before = self.statements.remove(name);
                self.expect.push(Awaited::CloseKnown(Undo::Named(name.into(), before)));
            }
            // The proxy's own: no client has it.
            (_, None) if name.starts_with(SERVER_NAME.as_bytes()) => {
                self.expect.push(Awaited::CloseKnown(Undo::Named(name.into(), None)));
            }
            (_, None) => {
                if name.is_empty() {
                    self.statements.forget_unnamed();
                }
                self.expect.push(Awaited::Close { evicted: None });
                self.out.extend_from_slice(raw);
            }
        }
    }

    /// A text that means something else to the server than to the client, as the server is to have it.
    fn for_the_server(&mut self, sql: &[u8], class: &StatementClass) -> Option<Vec<u8>> {
        let mut changes = self.names_changed(sql, class);
        if class.reads_prepared {
            let views = prepared_views(sql, self.context);
            if !views.is_empty() {
                let listing = prepared_view::listing(self.statements, self.told.value("server_version"));
                let instead = |(at, form)| (at, prepared_view::instead(form, &listing));
                changes.extend(views.into_iter().map(instead));
            }
        }
        changed(sql, changes)
    }

    /// A text that executes or deallocates statements which the client prepared by the protocol, with their names on the server, where they
    /// then are.
    fn with_servers_names(&mut self, sql: &[u8], class: &StatementClass) -> Option<Vec<u8>> {
        changed(sql, self.names_changed(sql, class))
    }

    fn names_changed(&mut self, sql: &[u8], class: &StatementClass) -> Vec<Change> {
        let mut changes = Vec::new();
        if !class.names_prepared() {
            return changes;
        }
        for (at, name) in prepared_names(sql, self.context) {
            let Some(named) = self.statements.named(name.as_bytes()) else {
                continue;
            };
            let statement = Arc::clone(&named.prepared);
            self.ensure(&statement, None);
            changes.push((at, [b"\"", &*statement.server_name(), b"\""].concat()));
        }
        changes
    }

    /// Whether the connection has the statement, or will have it when it comes to what is translated now: after an error before that, it
    /// comes to nothing more of this batch.
    fn has(&mut self, prepared: &Prepared) -> bool {
        let is_it = |awaited: &Awaited| matches!(awaited, Awaited::Parse { prepared: Some(other), .. } if other.id() == prepared.id());
        self.connection.touch(prepared.id()) || self.expect.iter().any(is_it)
    }

    /// Prepares a statement on the connection, if it isn't. If it is there, or will be, as something else than the client was `told`, an error
    /// takes its place: the types of its columns may have changed, and with them what the bytes of a row mean.
    fn ensure(&mut self, prepared: &Arc<Prepared>, told: Option<Shape>) {
        if self.has(prepared) {
            let is = self.connection.shape(prepared.id());
            let changed = told.zip(is).is_some_and(|(told, is)| !told.agrees_with(is));
            if changed && !self.failed_block {
                put_outdated(self.out);
                self.expect.push(Awaited::Outdated);
            }
            return;
        }
        self.make_room(prepared);
        frontend::put_parse(self.out, &prepared.server_name(), &prepared.sql, &prepared.types);
        self.expect.push(Awaited::Parse {
            prepared: Some(Arc::clone(prepared)),
            asked: None,
            hidden: true,
        });
        self.describe(prepared, told);
        if told.is_some() {
            self.out.extend_from_slice(&frontend::FLUSH);
            self.stops.push_back(self.out.len());
        }
    }

    /// Has the server say what it has just prepared.
    fn describe(&mut self, prepared: &Arc<Prepared>, told: Option<Shape>) {
        frontend::put_statement(self.out, b'D', &prepared.server_name());
        self.expect.push(Awaited::Shape {
            prepared: Arc::clone(prepared),
            told,
        });
    }

    fn ensure_unnamed(&mut self) {
        if *self.unnamed_is_ours {
            return;
        }
        if let Some(unnamed) = self.statements.unnamed() {
            if unnamed.class.names_prepared() {
                let (class, sql, types) = (Arc::clone(&unnamed.class), unnamed.sql.clone(), unnamed.types.clone());
                let renamed = self.with_servers_names(&sql, &class);
                frontend::put_parse(self.out, b"", renamed.as_deref().unwrap_or(&sql), &types);
            } else {
                frontend::put_parse(self.out, b"", &unnamed.sql, &unnamed.types);
            }
            self.expect.push(Awaited::Parse {
                prepared: None,
                asked: None,
                hidden: true,
            });
            *self.unnamed_is_ours = true;
        }
    }

    fn make_room(&mut self, statement: &Prepared) {
        while let Some(oldest) = self.connection.evict(statement) {
            frontend::put_statement(self.out, b'C', format!("{SERVER_NAME}{}", oldest.id).as_bytes());
            self.expect.push(Awaited::Close { evicted: Some(oldest) });
        }
    }
}

/// What stands in a text, and what is to stand there.
type Change = (Range<usize>, Vec<u8>);

/// The text with the changes made; `None` if there are none.
fn changed(text: &[u8], mut changes: Vec<Change>) -> Option<Vec<u8>> {
    if changes.is_empty() {
        return None;
    }
    changes.sort_by_key(|(at, _)| at.start);
    let (mut out, mut taken) = (Vec::with_capacity(text.len() + 64), 0);
    for (at, instead) in changes {
        out.extend_from_slice(&text[taken..at.start]);
        out.extend_from_slice(&instead);
        taken = at.end;
    }
    out.extend_from_slice(&text[taken..]);
    Some(out)
}

/// What makes the server fail where a statement is outdated, in the block that may be open too: it describes one that never was.
pub fn put_outdated(out: &mut Vec<u8>) {
    frontend::put_statement(out, b'D', format!("{SERVER_NAME}0").as_bytes());
}
