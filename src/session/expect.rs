//! What the server still owes, message by message, for a unit in which something was added or left out.
//!
//! The client must see the answers to what *it* sent, in order: what the proxy added is swallowed, what it left out is answered by the
//! proxy at its turn. A unit that is passed on untouched needs none of this.

use std::collections::VecDeque;
use std::sync::Arc;

use super::statements::{Named, Statements, Unnamed};
use crate::pool::{Evicted, Prepared, PreparedSet, Shape};
use crate::wire::backend::{CLOSE_COMPLETE, PARSE_COMPLETE};

/// One answer.
#[derive(Debug)]
pub enum Awaited {
    /// A Parse that was sent: ParseComplete.
    Parse {
        /// What the connection has once it is confirmed; `None` for the unnamed statement.
        prepared: Option<Arc<Prepared>>,
        /// The client's own name for it, when the client asked.
        asked: Option<Undo>,
        /// The proxy added it: the answer is swallowed.
        hidden: bool,
    },
    /// A Parse of a name that is taken, which was sent by the taken statement's name: an error.
    ParseTaken(Box<[u8]>),
    /// A Parse that was not sent, since the connection has the statement: the proxy answers.
    ParseKnown(Undo),
    /// A Close that was not sent: the proxy answers.
    CloseKnown(Undo),
    /// A Close that was sent.
    Close {
        /// The proxy added it, to make room: the connection has this statement until it is confirmed.
        evicted: Option<Evicted>,
    },
    /// A Bind.
    Bind,
    /// A Describe: RowDescription or NoData, perhaps after a ParameterDescription.
    Describe,
    /// A Describe of a named statement of the client's, or of a portal of it: the client will rely on it.
    Tell(Box<[u8]>),
    /// A Describe of a statement that the proxy added behind its Parse: the answers are swallowed.
    Shape {
        /// What was described.
        prepared: Arc<Prepared>,
        /// What the client was told of it; then nothing more is sent until it is known whether that still holds.
        told: Option<Shape>,
    },
    /// What stands for a statement that is no longer what the client was told: an error.
    Outdated,
    /// An Execute: everything up to CommandComplete, EmptyQueryResponse or PortalSuspended.
    Execute,
    /// A Sync: ReadyForQuery.
    Ready,
    /// A Query or FunctionCall: everything up to ReadyForQuery.
    Query,
    /// A Sync that the proxy put in a Flush's place: its ReadyForQuery is swallowed.
    HiddenReady,
    /// CopyDone or CopyFail was sent: nothing answers it by itself.
    CopyEnd,
}

/// How to take back what a message has done to the client's statements, should the server never get to it.
#[derive(Debug)]
pub enum Undo {
    /// The name stood for another statement, or for none.
    Named(Box<[u8]>, Option<Named>),
    /// The unnamed statement was another, or there was none.
    Unnamed(Option<Unnamed>),
}

/// What becomes of a message of the server's.
#[derive(Debug, PartialEq, Eq)]
pub enum Fate {
    /// The client gets it.
    Forward,
    /// It answers what the proxy added.
    Swallow,
    /// The client gets this instead.
    Replace(Vec<u8>),
}

/// The queue.
#[derive(Debug, Default)]
pub struct Expectations {
    queue: VecDeque<Awaited>,
    /// The name that the client's last refused Parse would have taken.
    refused_name: Option<Box<[u8]>>,
    /// Queries that the server passed over after an error in the batch before them.
    passed_over: u32,
    /// After an error the server waits for a Sync that it has not been sent.
    lacks_sync: bool,
    /// What was answered has done this to the client's statements; it is taken back if the unit runs again.
    done: Vec<Undo>,
    /// The last ParameterDescription, if a RowDescription or NoData follows it.
    parameters: Option<Box<[u8]>>,
    checked: Option<Checked>,
}

/// A statement was prepared anew, and what it is now was compared with what the client was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    /// It is the same, or can't be compared.
    Same,
    /// It isn't.
    Changed,
}

impl Expectations {
    /// One more answer.
    pub fn push(&mut self, awaited: Awaited) {
        self.queue.push_back(awaited);
    }

    /// What is owed, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Awaited> {
        self.queue.iter()
    }

    /// Whether nothing is owed.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Answers that are the proxy's to give now, before the server's next.
    pub fn answer_known(&mut self, out: &mut Vec<u8>) {
        while matches!(
            self.queue.front(),
            Some(Awaited::ParseKnown(_) | Awaited::CloseKnown(_))
        ) {
            let Some(known) = self.queue.pop_front() else { return };
            match known {
                Awaited::ParseKnown(undo) => {
                    out.extend_from_slice(&PARSE_COMPLETE);
                    self.done.push(undo);
                }
                Awaited::CloseKnown(undo) => {
                    out.extend_from_slice(&CLOSE_COMPLETE);
                    self.done.push(undo);
                }
                _ => {}
            }
        }
    }

    /// The server's next message, whose body is `None` if it is too long to be waited for.
    pub fn meet(
        &mut self,
        tag: u8,
        body: Option<&[u8]>,
        statements: &mut Statements,
        connection: &mut PreparedSet,
    ) -> Fate {
        while matches!(self.queue.front(), Some(Awaited::CopyEnd)) {
            self.queue.pop_front();
        }
        match (tag, self.queue.front()) {
            (b'1', Some(Awaited::Parse { .. })) => {
                let Some(Awaited::Parse {
                    prepared,
                    hidden,
                    asked,
                }) = self.queue.pop_front()
                else {
                    return Fate::Forward;
                };
                self.done.extend(asked);
                if let Some(prepared) = prepared {
                    connection.insert(&prepared);
                }
                if hidden { Fate::Swallow } else { Fate::Forward }
            }
            (b'3', Some(Awaited::Close { evicted })) => {
                let hidden = evicted.is_some();
                self.queue.pop_front();
                if hidden { Fate::Swallow } else { Fate::Forward }
            }
            (b't', Some(Awaited::Tell(_) | Awaited::Shape { .. })) => {
                self.parameters = body.map(Box::from);
                match self.queue.front() {
                    Some(Awaited::Shape { .. }) => Fate::Swallow,
                    _ => Fate::Forward,
                }
            }
            (b'T' | b'n', Some(Awaited::Tell(_) | Awaited::Shape { .. })) => {
                let row = body.filter(|_| tag == b'T');
                let parameters = self.parameters.take();
                if let (Some(Awaited::Shape { prepared, .. }), Some(types)) = (self.queue.front(), &parameters) {
                    prepared.learn_parameters(types);
                }
                let shape = body.and_then(|_| Shape::of(parameters.as_deref(), row));
                self.described(shape, statements, connection)
            }
            (b'2', Some(Awaited::Bind))
            | (b'T' | b'n', Some(Awaited::Describe))
            | (b'C' | b'I' | b's', Some(Awaited::Execute))
            | (b'Z', Some(Awaited::Ready | Awaited::Query)) => {
                self.queue.pop_front();
                Fate::Forward
            }
            (b'Z', Some(Awaited::HiddenReady)) => {
                self.queue.pop_front();
                Fate::Swallow
            }
            // An error in a Query ends nothing: ReadyForQuery follows by itself.
            (b'E', Some(Awaited::Ready | Awaited::Query | Awaited::HiddenReady) | None) => Fate::Forward,
            (b'E', Some(front)) => {
                self.refused_name = match front {
                    Awaited::ParseTaken(name) => Some(name.clone()),
                    _ => None,
                };
                self.skip_to_ready(statements, connection);
                Fate::Forward
            }
            _ => Fate::Forward,
        }
    }

    /// The statement at the front of the queue takes and returns this, if that is known.
    fn described(&mut self, shape: Option<Shape>, statements: &mut Statements, connection: &mut PreparedSet) -> Fate {
        match self.queue.pop_front() {
            Some(Awaited::Shape { prepared, told }) => {
                if let Some(shape) = shape {
                    connection.learn(prepared.id(), shape);
                }
                if let Some(told) = told {
                    let changed = shape.is_some_and(|shape| !shape.agrees_with(told));
                    self.checked = Some(if changed { Checked::Changed } else { Checked::Same });
                }
                Fate::Swallow
            }
            Some(Awaited::Tell(name)) => {
                if let Some(shape) = shape {
                    statements.tell(&name, shape);
                }
                Fate::Forward
            }
            _ => Fate::Forward,
        }
    }

    /// The answer for which sending has stopped, once it is there.
    pub fn checked(&mut self) -> Option<Checked> {
        self.checked.take()
    }

    /// What is sent next stands for a statement that is outdated.
    pub fn push_outdated_first(&mut self) {
        self.queue.push_front(Awaited::Outdated);
    }

    /// Whether the server's next error is about a statement that is outdated.
    pub fn is_outdated(&self) -> bool {
        matches!(self.queue.front(), Some(Awaited::Outdated))
    }

    /// After an error the server passes over everything up to Sync, a Query included.
    fn skip_to_ready(&mut self, statements: &mut Statements, connection: &mut PreparedSet) {
        let sync = self
            .queue
            .iter()
            .position(|awaited| matches!(awaited, Awaited::Ready | Awaited::HiddenReady));
        self.lacks_sync = sync.is_none();
        let skipped: Vec<Awaited> = self.queue.drain(..sync.unwrap_or(self.queue.len())).collect();
        for awaited in &skipped {
            if let Awaited::Close { evicted: Some(evicted) } = awaited {
                connection.put_back(*evicted);
            }
        }
        let queries = skipped
            .iter()
            .filter(|awaited| matches!(awaited, Awaited::Query))
            .count();
        self.passed_over += u32::try_from(queries).unwrap_or(u32::MAX);
        take_back(skipped.into_iter().filter_map(Awaited::into_undo).collect(), statements);
    }

    /// The name that the Parse which the server has just refused would have taken, if it was taken.
    pub fn refused_name(&mut self) -> Option<Box<[u8]>> {
        self.refused_name.take()
    }

    /// Queries that will not be answered, since the last time this was asked; and whether the server waits for a Sync.
    pub fn passed_over(&mut self) -> (u32, bool) {
        (
            std::mem::take(&mut self.passed_over),
            std::mem::take(&mut self.lacks_sync),
        )
    }

    /// The server has begun to take copy data. Answers whether the end of the data is on its way already, and how many Syncs were sent before
    /// that end: the server passes those over.
    pub fn copy_began(&mut self) -> (bool, u32) {
        let end = self
            .queue
            .iter()
            .position(|awaited| matches!(awaited, Awaited::CopyEnd));
        let mut voided = 0;
        let mut at = 0;
        let limit = end.unwrap_or(self.queue.len());
        self.queue.retain(|awaited| {
            let void = at < limit && matches!(awaited, Awaited::Ready);
            voided += u32::from(void);
            at += 1;
            !void
        });
        (end.is_some(), voided)
    }

    /// Nothing of what is still owed will come. If the client has `seen` nothing of the answer, the unit has not happened at all.
    pub fn give_up(&mut self, statements: &mut Statements, seen: bool) {
        take_back(
            self.queue.drain(..).filter_map(Awaited::into_undo).collect(),
            statements,
        );
        if !seen {
            take_back(std::mem::take(&mut self.done), statements);
        }
    }
}

impl Awaited {
    fn into_undo(self) -> Option<Undo> {
        match self {
            Awaited::Parse { asked, .. } => asked,
            Awaited::ParseKnown(undo) | Awaited::CloseKnown(undo) => Some(undo),
            Awaited::Close { .. }
            | Awaited::Bind
            | Awaited::Describe
            | Awaited::Tell(_)
            | Awaited::Shape { .. }
            | Awaited::Outdated
            | Awaited::Execute
            | Awaited::Ready
            | Awaited::Query
            | Awaited::HiddenReady
            | Awaited::CopyEnd
            | Awaited::ParseTaken(_) => None,
        }
    }
}

fn take_back(done: Vec<Undo>, statements: &mut Statements) {
    for undo in done.into_iter().rev() {
        match undo {
            Undo::Named(name, Some(before)) => drop(statements.insert(name, before)),
            Undo::Named(name, None) => drop(statements.remove(&name)),
            Undo::Unnamed(before) => drop(statements.replace_unnamed(before)),
        }
    }
}
