//! One client's talk with the console: its messages, answered in the protocol's order, its prepared statements and its portals.
//!
//! It knows of no socket. Only SWITCHOVER and RELOAD take time; meanwhile an [`Interruption`] may come. There are no transactions: a Sync
//! ends the portals of its batch, and the client is always told that it is in no block.
//! Manual: 55.2 "Message Flow".

use std::collections::HashMap;
use std::sync::Arc;

use super::command::{Command, NodeName, parse};
use super::error::ConsoleError;
use super::operator::Operator;
use super::show::{self, Row};
use crate::session::request::{Tail, Unit};
use crate::wire::backend::{
    BIND_COMPLETE, CLOSE_COMPLETE, EMPTY_QUERY, NO_DATA, NO_PARAMETERS, PARSE_COMPLETE, PORTAL_SUSPENDED,
    TransactionStatus, put_command_complete, put_ready,
};
use crate::wire::error_response::{ErrorFields, Severity};
use crate::wire::frame::HEADER;
use crate::wire::frontend::{self, Format, Named};
use crate::wire::rows::{put_columns, put_row};
use crate::wire::sqlstate::SqlState;

/// Prepared statements that a client may have, and portals in one batch.
const MOST: usize = 256;
/// The longest name of either.
const LONGEST_NAME: usize = 1024;

/// What comes while a command is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interrupt {
    /// The client has sent a cancel request.
    Cancelled,
    /// The proxy doesn't wait any longer.
    Leaving,
    /// The client is gone.
    Gone,
}

/// Whoever listens meanwhile.
pub(super) trait Interruption {
    /// Waits for it. Dropping it loses nothing.
    async fn interrupted(&mut self) -> Interrupt;
}

/// What becomes of the client after a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    /// It goes on.
    Listen,
    /// It goes on with the next Sync.
    SkipToSync,
    /// It has been told why it ends here, unless it is gone.
    Leave,
}

/// Why a message isn't answered as it asks.
enum Stop {
    Refused(ErrorFields),
    Interrupted(Interrupt),
}

impl<E: Into<ErrorFields>> From<E> for Stop {
    fn from(error: E) -> Stop {
        Stop::Refused(error.into())
    }
}

/// One client's.
pub(super) struct Conversation<O> {
    operator: Arc<O>,
    user: String,
    /// By name. An empty text is none of the commands.
    statements: HashMap<Vec<u8>, Option<Command>>,
    portals: HashMap<Vec<u8>, Portal>,
}

struct Portal {
    command: Option<Command>,
    formats: Vec<Format>,
    progress: Progress,
}

enum Progress {
    Unrun,
    /// Some rows are still to be fetched.
    Fetching(std::vec::IntoIter<Row>),
    Done,
}

/// What a command has come to.
struct Answer {
    rows: Vec<Row>,
    warnings: Vec<String>,
}

impl<O: Operator> Conversation<O> {
    pub(super) fn new(operator: &Arc<O>, user: String) -> Conversation<O> {
        Conversation {
            operator: Arc::clone(operator),
            user,
            statements: HashMap::new(),
            portals: HashMap::new(),
        }
    }

    /// Answers the unit that `bytes` begin with.
    pub(super) async fn answer(
        &mut self,
        unit: &Unit,
        bytes: &[u8],
        out: &mut Vec<u8>,
        interruption: &mut impl Interruption,
    ) -> After {
        if unit.tail == Tail::Cut {
            let fields = ErrorFields::fatal(SqlState::PROGRAM_LIMIT_EXCEEDED, "the message is too long");
            fields.encode_error(out);
            return After::Leave;
        }
        let mut failed = false;
        for frame in &unit.frames {
            // What follows an error means nothing until the batch ends.
            if failed && frame.tag != b'S' {
                continue;
            }
            let body = &bytes[frame.start + HEADER..frame.end];
            match self.message(frame.tag, body, out, interruption).await {
                Ok(()) => {}
                Err(Stop::Refused(fields)) => {
                    fields.encode_error(out);
                    failed = true;
                }
                Err(Stop::Interrupted(Interrupt::Gone)) => return After::Leave,
                Err(Stop::Interrupted(Interrupt::Leaving)) => {
                    ConsoleError::Leaving.fields().encode_error(out);
                    return After::Leave;
                }
                Err(Stop::Interrupted(Interrupt::Cancelled)) => {
                    ConsoleError::Cancelled.fields().encode_error(out);
                    failed = true;
                }
            }
            if matches!(frame.tag, b'Q' | b'F' | b'S') {
                self.portals.clear();
                put_ready(out, TransactionStatus::Idle);
                failed = false;
            }
        }
        if failed { After::SkipToSync } else { After::Listen }
    }

    async fn message(
        &mut self,
        tag: u8,
        body: &[u8],
        out: &mut Vec<u8>,
        interruption: &mut impl Interruption,
    ) -> Result<(), Stop> {
        match tag {
            b'Q' => self.query(body, out, interruption).await,
            b'P' => self.parse(body, out),
            b'B' => self.bind(body, out),
            b'D' => self.describe(body, out),
            b'E' => self.execute(body, out, interruption).await,
            b'C' => self.close(body, out),
            b'F' => Err(ConsoleError::FunctionCall.into()),
            // Sync and Flush: what they ask for is done for every unit.
            _ => Ok(()),
        }
    }

    async fn query(
        &mut self,
        body: &[u8],
        out: &mut Vec<u8>,
        interruption: &mut impl Interruption,
    ) -> Result<(), Stop> {
        // As a server's, it takes the unnamed statement's and the unnamed portal's place.
        self.statements.remove(&[][..]);
        let commands = parse(frontend::query(body).ok_or(ConsoleError::Malformed)?)?;
        if commands.is_empty() {
            out.extend_from_slice(&EMPTY_QUERY);
        }
        for command in commands {
            let answer = self.carry_out(&command, interruption).await?;
            put_warnings(&answer, out);
            let columns = show::columns(&command);
            if !columns.is_empty() {
                put_columns(out, columns, &[]);
            }
            for row in &answer.rows {
                put_row(out, row, &[]);
            }
            put_command_complete(out, tag(&command));
        }
        Ok(())
    }

    fn parse(&mut self, body: &[u8], out: &mut Vec<u8>) -> Result<(), Stop> {
        let message = frontend::parse(body).ok_or(ConsoleError::Malformed)?;
        let mut commands = parse(message.sql)?;
        if commands.len() > 1 {
            return Err(ConsoleError::Several.into());
        }
        if !message.name.is_empty() && self.statements.contains_key(message.name) {
            return Err(ConsoleError::StatementExists(shown(message.name)).into());
        }
        if self.statements.len() >= MOST || message.name.len() > LONGEST_NAME {
            return Err(ConsoleError::TooMany.into());
        }
        self.statements.insert(message.name.to_vec(), commands.pop());
        out.extend_from_slice(&PARSE_COMPLETE);
        Ok(())
    }

    fn bind(&mut self, body: &[u8], out: &mut Vec<u8>) -> Result<(), Stop> {
        let message = frontend::bind(body).ok_or(ConsoleError::Malformed)?;
        let (values, formats) = frontend::bound(message.rest).ok_or(ConsoleError::Malformed)?;
        let command = self.statement(message.statement)?.clone();
        if values > 0 {
            return Err(ConsoleError::Parameters(values).into());
        }
        let columns = command.as_ref().map_or(0, |command| show::columns(command).len());
        if formats.len() > 1 && formats.len() != columns {
            let formats = formats.len();
            return Err(ConsoleError::Formats { formats, columns }.into());
        }
        if !message.portal.is_empty() && self.portals.contains_key(message.portal) {
            return Err(ConsoleError::PortalExists(shown(message.portal)).into());
        }
        if self.portals.len() >= MOST || message.portal.len() > LONGEST_NAME {
            return Err(ConsoleError::TooMany.into());
        }
        let portal = Portal {
            command,
            formats,
            progress: Progress::Unrun,
        };
        self.portals.insert(message.portal.to_vec(), portal);
        out.extend_from_slice(&BIND_COMPLETE);
        Ok(())
    }

    fn describe(&mut self, body: &[u8], out: &mut Vec<u8>) -> Result<(), Stop> {
        let (command, formats) = match frontend::named(body).ok_or(ConsoleError::Malformed)? {
            Named::Statement(name) => {
                let command = self.statement(name)?;
                out.extend_from_slice(&NO_PARAMETERS);
                (command, &[][..])
            }
            Named::Portal(name) => {
                let portal = self
                    .portals
                    .get(name)
                    .ok_or_else(|| ConsoleError::NoPortal(shown(name)))?;
                (&portal.command, &portal.formats[..])
            }
        };
        match command.as_ref().map(show::columns) {
            None | Some([]) => out.extend_from_slice(&NO_DATA),
            Some(columns) => put_columns(out, columns, formats),
        }
        Ok(())
    }

    async fn execute(
        &mut self,
        body: &[u8],
        out: &mut Vec<u8>,
        interruption: &mut impl Interruption,
    ) -> Result<(), Stop> {
        let (name, most) = frontend::execute(body).ok_or(ConsoleError::Malformed)?;
        let portal = self
            .portals
            .get_mut(name)
            .ok_or_else(|| ConsoleError::NoPortal(shown(name)))?;
        let Some(command) = portal.command.clone() else {
            out.extend_from_slice(&EMPTY_QUERY);
            return Ok(());
        };
        let formats = portal.formats.clone();
        let mut rows = match std::mem::replace(&mut portal.progress, Progress::Done) {
            Progress::Done => return Err(ConsoleError::PortalDone(shown(name)).into()),
            Progress::Fetching(rows) => rows,
            Progress::Unrun => {
                let answer = self.carry_out(&command, interruption).await?;
                put_warnings(&answer, out);
                answer.rows.into_iter()
            }
        };
        for row in rows.by_ref().take(most.unwrap_or(usize::MAX)) {
            put_row(out, &row, &formats);
        }
        if rows.len() == 0 {
            put_command_complete(out, tag(&command));
            return Ok(());
        }
        out.extend_from_slice(&PORTAL_SUSPENDED);
        if let Some(portal) = self.portals.get_mut(name) {
            portal.progress = Progress::Fetching(rows);
        }
        Ok(())
    }

    /// Closing what there isn't is no error.
    fn close(&mut self, body: &[u8], out: &mut Vec<u8>) -> Result<(), Stop> {
        match frontend::named(body).ok_or(ConsoleError::Malformed)? {
            Named::Statement(name) => drop(self.statements.remove(name)),
            Named::Portal(name) => drop(self.portals.remove(name)),
        }
        out.extend_from_slice(&CLOSE_COMPLETE);
        Ok(())
    }

    fn statement(&self, name: &[u8]) -> Result<&Option<Command>, ConsoleError> {
        self.statements
            .get(name)
            .ok_or_else(|| ConsoleError::NoStatement(shown(name)))
    }

    async fn carry_out(&mut self, command: &Command, interruption: &mut impl Interruption) -> Result<Answer, Stop> {
        match command {
            Command::Show(topic) => {
                let (status, config) = (self.operator.status(), self.operator.config());
                Ok(Answer::of(show::rows(*topic, &status, &config)))
            }
            Command::Reload => {
                let operator = Arc::clone(&self.operator);
                let unchanged = to_its_end(async move { operator.reload().await }, interruption).await?;
                let mut answer = Answer::of(Vec::new());
                if !unchanged.is_empty() {
                    let keys = unchanged.join(", ");
                    answer
                        .warnings
                        .push(format!("these need a restart, and stay as they were: {keys}"));
                }
                Ok(answer)
            }
            Command::Switchover(to) => {
                let to = to.as_ref().map(|name| self.node(name)).transpose()?;
                tracing::info!(user = %self.user, to = to.as_deref(), "a switchover is asked for in the console");
                let operator = Arc::clone(&self.operator);
                let work = async move { operator.switchover(to.as_deref()).await };
                let switched = to_its_end(work, interruption).await?;
                Ok(Answer {
                    rows: vec![show::switched(&switched)],
                    warnings: switched.warnings,
                })
            }
            Command::Courtesy(tag) => {
                if *tag == "DISCARD ALL" {
                    self.statements.clear();
                }
                Ok(Answer::of(Vec::new()))
            }
        }
    }

    /// The node that is meant.
    fn node(&self, name: &NodeName) -> Result<String, ConsoleError> {
        let nodes: Vec<String> = self.operator.status().nodes.into_iter().map(|node| node.name).collect();
        let found = name.among(nodes.iter().map(String::as_str)).map(str::to_owned);
        found.ok_or_else(|| ConsoleError::UnknownNode {
            name: name.text.clone(),
            nodes,
        })
    }
}

impl Answer {
    fn of(rows: Vec<Row>) -> Answer {
        Answer {
            rows,
            warnings: Vec::new(),
        }
    }
}

/// Carries something out that isn't to be dropped halfway: it goes on when nobody waits for it any more.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, ErrorFields>> + Send + 'static,
    interruption: &mut impl Interruption,
) -> Result<T, Stop> {
    let mut task = tokio::spawn(work);
    tokio::select! {
        biased;
        done = &mut task => Ok(done.map_err(|_| ConsoleError::Broken)??),
        interrupt = interruption.interrupted() => Err(Stop::Interrupted(interrupt)),
    }
}

fn put_warnings(answer: &Answer, out: &mut Vec<u8>) {
    for warning in &answer.warnings {
        ErrorFields::new(Severity::Warning, SqlState::WARNING, warning.clone()).encode_notice(out);
    }
}

fn tag(command: &Command) -> &'static str {
    match command {
        Command::Show(_) => "SHOW",
        Command::Reload => "RELOAD",
        Command::Switchover(_) => "SWITCHOVER",
        Command::Courtesy(tag) => tag,
    }
}

fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}
