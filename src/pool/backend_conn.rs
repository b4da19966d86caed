//! One connection to a server, and everything that is known of its state.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::node_link::{NodeLink, Registration};
use super::own_answer::OwnAnswer;
use super::prepared::PreparedSet;
use super::quota::Places;
use super::settings::Settings;
use crate::auth::server_login::ServerSession;
use crate::cluster::{Epoch, NodeId};
use crate::wire::backend::TransactionStatus;
use crate::wire::frontend;
use crate::wire::sqlstate::SqlState;
use crate::wire::stream::Stream;

/// The first units on a connection, whose times are not representative.
const COLD: u8 = 3;

/// A server connection. Whoever owns it talks to the server directly; there is no task behind it.
#[derive(Debug)]
pub struct BackendConn {
    // The socket stands before its registration: it is closed first, and the node's count falls after that.
    /// The socket.
    pub stream: Stream,
    registration: Registration,
    _places: Places,
    /// The node it leads to.
    pub node: NodeId,
    /// The epoch of the routing table when it was opened.
    pub epoch: Epoch,
    /// The server process, for cancel requests.
    pub pid: i32,
    /// Its secret.
    pub secret: Arc<[u8]>,
    /// The settings it has.
    pub settings: Arc<Settings>,
    /// The statements it has.
    pub prepared: PreparedSet,
    /// What it has reported, newest values.
    parameters: Vec<(Box<str>, Box<str>)>,
    /// Notifications that came while something ran on the proxy's own account, as whole messages: they are for the session that listens.
    overheard: Vec<u8>,
    /// Notices that came with what ran last on the proxy's own account, as whole messages.
    remarks: Vec<u8>,
    /// The session that last drew from a sequence on it: what `currval()` and `lastval()` tell is that session's. 0 if it is nobody's.
    pub drawn_by: u64,
    /// The process id that the client was told who last wrote on it; 0 if none has.
    pub writer: i32,
    /// The session that has run code of which nothing is known: whatever that has left is for nobody else.
    suspect: Option<u64>,
    /// What the server said last of its transaction.
    pub status: TransactionStatus,
    /// The server has ended it.
    parted: bool,
    /// The worker whose runtime watches the socket.
    worker: usize,
    opened: Instant,
    /// Units it has carried out, as far as [`COLD`] counts.
    carried: u8,
    /// When it was last checked in.
    pub(super) last_used: Instant,
}

/// Why something asked of a connection on the proxy's own account failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnError {
    /// The connection is lost.
    #[error("connection to the server was lost: {0}")]
    Lost(#[from] io::Error),
    /// The server refused; the connection is good.
    #[error("{message}")]
    Refused {
        /// Its SQLSTATE.
        code: SqlState,
        /// Its message.
        message: String,
    },
}

/// State that binds a session to its connection, and that the server can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bonds {
    /// Anything in the temporary schema.
    pub temporary_table: bool,
    /// An advisory lock of the session's.
    pub advisory_lock: bool,
    /// A channel that it listens on.
    pub listen: bool,
    /// A cursor that has outlived its block.
    pub with_hold_cursor: bool,
    /// A statement prepared by SQL.
    pub prepare: bool,
}

/// What a setting is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CurrentSetting {
    /// This.
    Is(Box<str>),
    /// There is none of that name.
    Missing,
    /// Of more than some 16 KB, or not UTF-8: it can't be taken along.
    Unreadable,
}

impl BackendConn {
    /// A connection that has just been logged in.
    ///
    /// # Errors
    /// The operating system has no descriptor left.
    pub(super) fn new(
        session: ServerSession,
        link: &Arc<NodeLink>,
        generation: u64,
        epoch: Epoch,
        worker: usize,
        places: Places,
    ) -> io::Result<BackendConn> {
        let registration = Registration::enter(link, session.stream.tcp(), generation)?;
        let now = Instant::now();
        Ok(BackendConn {
            stream: session.stream,
            registration,
            _places: places,
            node: link.id,
            epoch,
            pid: session.pid,
            secret: session.secret_key.as_slice().into(),
            settings: Arc::default(),
            prepared: PreparedSet::default(),
            parameters: session
                .parameters
                .into_iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
            overheard: Vec::new(),
            remarks: Vec::new(),
            drawn_by: 0,
            writer: 0,
            suspect: None,
            status: TransactionStatus::Idle,
            parted: false,
            worker,
            opened: now,
            carried: 0,
            last_used: now,
        })
    }

    /// What it reported, in the order first reported.
    pub fn parameters(&self) -> &[(Box<str>, Box<str>)] {
        &self.parameters
    }

    /// The server reported a value. Answers whether it is news.
    pub fn note_parameter(&mut self, name: &str, value: &str) -> bool {
        match self.parameters.iter_mut().find(|(known, _)| **known == *name) {
            Some((_, old)) if **old == *value => false,
            Some((_, old)) => {
                *old = value.into();
                true
            }
            None => {
                self.parameters.push((name.into(), value.into()));
                true
            }
        }
    }

    /// Notifications that have come meanwhile. Whoever gives the connection back has taken them.
    pub fn take_overheard(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.overheard)
    }

    /// What the server remarked on what ran last on the proxy's own account, such as a setting that it has made shorter.
    pub fn take_remarks(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.remarks)
    }

    /// The server has ended it.
    pub fn part(&mut self) {
        self.parted = true;
    }

    /// Whether it may still be used: its node was not cut, and nothing has arrived that nobody asked for (which, on a connection at
    /// rest, is the server saying goodbye).
    pub fn is_fit(&self) -> bool {
        !self.parted && !self.registration.is_cut() && !self.stream.has_news()
    }

    /// One more unit is about to run. Answers whether the time it takes says something about the node: the first few on a connection
    /// fill the server process's caches, and take many times as long.
    pub fn warms_up(&mut self) -> bool {
        self.carried = self.carried.saturating_add(1);
        self.carried > COLD
    }

    /// When it was opened.
    pub fn opened(&self) -> Instant {
        self.opened
    }

    /// How long ago it was opened.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.opened)
    }

    /// The worker whose runtime watches the socket.
    pub(super) fn worker(&self) -> usize {
        self.worker
    }

    /// Makes `worker`, whose thread this must be called on, the one that watches the socket. An encrypted socket stays where it is: its
    /// wake-ups then cross threads, which costs time and nothing else.
    pub(super) fn adopt(mut self: Box<Self>, worker: usize) -> io::Result<Box<BackendConn>> {
        if self.worker == worker {
            return Ok(self);
        }
        self.stream = match self.stream {
            Stream::Plain(tcp) => Stream::Plain(TcpStream::from_std(tcp.into_std()?)?),
            tls @ Stream::Tls(_) => tls,
        };
        self.worker = worker;
        Ok(self)
    }

    /// `session` has run code of which nothing is known.
    pub fn suspect(&mut self, session: u64) {
        self.suspect = Some(session);
    }

    /// Makes the connection one that `session` may have, with the settings that are `wanted`: what another one may have left on it in secret
    /// goes, and so do other settings. One round trip; nothing is sent if there is nothing to do.
    ///
    /// # Errors
    /// As [`BackendConn::apply_settings`].
    pub async fn make_ready(
        &mut self,
        session: u64,
        wanted: &Arc<Settings>,
    ) -> Result<Vec<(String, String)>, ConnError> {
        /// DISCARD ALL (manual), but for the statements and plans, which are the proxy's own, and in a form that may stand with others.
        const CLEAN: &str = "CLOSE ALL;SET SESSION AUTHORIZATION DEFAULT;RESET ALL;UNLISTEN *;\
            SELECT pg_catalog.pg_advisory_unlock_all();DISCARD TEMP;DISCARD SEQUENCES;";
        if self.suspect.is_none_or(|suspect| suspect == session) {
            return self.apply_settings(wanted, TransactionStatus::Idle).await;
        }
        let sql = format!("{CLEAN}{}", Settings::default().sql_towards(wanted));
        let said = self.run_until(sql.as_bytes(), TransactionStatus::Idle).await?;
        self.suspect = None;
        // They were for channels that are left now.
        self.overheard.clear();
        self.settings = Arc::clone(wanted);
        Ok(said.reported)
    }

    /// The request that takes the connection to the settings that are `wanted`, to be sent in front of a statement; `None` if there is nothing
    /// to do, or more than that. A server that refuses any of them refuses the statement too: their block is left open, and failed.
    pub fn prelude(&self, session: u64, wanted: &Arc<Settings>) -> Option<Vec<u8>> {
        let cleaned = self.suspect.is_some_and(|suspect| suspect != session);
        if cleaned || Settings::same(&self.settings, wanted) {
            return None;
        }
        let sql = format!("BEGIN;{};COMMIT", self.settings.sql_towards(wanted));
        let mut request = Vec::with_capacity(sql.len() + 6);
        frontend::put_query(&mut request, sql.as_bytes());
        Some(request)
    }

    /// Takes the answer to a prelude that was sent in front of a statement with `ready` answers of its own. What comes behind it stays in
    /// `buffer`. Answers the parameters that the server reported.
    ///
    /// # Errors
    /// [`ConnError::Refused`]: neither the settings nor the statement were carried out, and the connection is as it was;
    /// [`ConnError::Lost`].
    pub async fn hear_prelude(
        &mut self,
        buffer: &mut BytesMut,
        wanted: &Arc<Settings>,
        ready: u32,
    ) -> Result<Vec<(String, String)>, ConnError> {
        let mut answer = OwnAnswer::before(ready);
        loop {
            answer.take(buffer)?;
            if answer.is_over() {
                break;
            }
            if self.stream.read_buf(buffer).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
        self.note(&mut answer);
        match answer.refused {
            None => {
                self.settings = Arc::clone(wanted);
                Ok(answer.reported)
            }
            Some((code, message)) => {
                self.run(b"ROLLBACK").await?;
                Err(ConnError::Refused { code, message })
            }
        }
    }

    /// Makes the connection's settings those that are `wanted`, in a round trip of its own; nothing is sent if they are already. `status` is
    /// the connection's, inside a block or outside.
    /// Answers the parameters that the server reported because of it.
    ///
    /// # Errors
    /// [`ConnError::Refused`] when the server takes none of them, with the connection as it was; [`ConnError::Lost`].
    pub async fn apply_settings(
        &mut self,
        wanted: &Arc<Settings>,
        status: TransactionStatus,
    ) -> Result<Vec<(String, String)>, ConnError> {
        if Settings::same(&self.settings, wanted) {
            return Ok(Vec::new());
        }
        let sql = self.settings.sql_towards(wanted);
        let said = self.run_until(sql.as_bytes(), status).await?;
        self.settings = Arc::clone(wanted);
        Ok(said.reported)
    }

    /// Runs `sql` on the proxy's own account and answers the parameters reported meanwhile. Rows are thrown away.
    ///
    /// Not safe to drop half-way: the connection must then be closed, which dropping its lease does.
    ///
    /// # Errors
    /// As [`BackendConn::apply_settings`].
    pub async fn run(&mut self, sql: &[u8]) -> Result<Vec<(String, String)>, ConnError> {
        Ok(self.run_until(sql, TransactionStatus::Idle).await?.reported)
    }

    /// What the setting `name` is at this moment, inside a block or outside.
    ///
    /// # Errors
    /// As [`BackendConn::run`].
    pub async fn setting(&mut self, name: &str, status: TransactionStatus) -> Result<CurrentSetting, ConnError> {
        let sql = format!(
            "SELECT pg_catalog.current_setting({}, true)",
            super::settings::literal(name)
        );
        let row = self.run_until(sql.as_bytes(), status).await?.row;
        Ok(match row {
            Some(None) => CurrentSetting::Missing,
            Some(Some(value)) => String::from_utf8(value.into())
                .map_or(CurrentSetting::Unreadable, |value| CurrentSetting::Is(value.into())),
            None => CurrentSetting::Unreadable,
        })
    }

    /// Forgets what `currval()` and `lastval()` would tell of other sessions, inside a block or outside.
    ///
    /// # Errors
    /// As [`BackendConn::run`].
    pub async fn discard_sequences(&mut self, status: TransactionStatus) -> Result<(), ConnError> {
        self.run_until(b"DISCARD SEQUENCES", status).await.map(drop)
    }

    /// What of the state that binds a session to its connection is there, outside a block.
    ///
    /// # Errors
    /// As [`BackendConn::run`].
    pub async fn bonds(&mut self) -> Result<Bonds, ConnError> {
        const ASK: &[u8] = b"SELECT pg_catalog.concat(\
            EXISTS (SELECT FROM pg_catalog.pg_depend WHERE refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass \
                AND refobjid = pg_catalog.pg_my_temp_schema()), \
            EXISTS (SELECT FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid()), \
            EXISTS (SELECT FROM pg_catalog.pg_listening_channels()), \
            EXISTS (SELECT FROM pg_catalog.pg_cursors WHERE is_holdable), \
            EXISTS (SELECT FROM pg_catalog.pg_prepared_statements WHERE from_sql))";
        match self.run_until(ASK, TransactionStatus::Idle).await?.row {
            Some(Some(answer)) => match *answer {
                [temporary, lock, listen, cursor, prepared] => Ok(Bonds {
                    temporary_table: temporary == b't',
                    advisory_lock: lock == b't',
                    listen: listen == b't',
                    with_hold_cursor: cursor == b't',
                    prepare: prepared == b't',
                }),
                _ => Err(io::Error::from(io::ErrorKind::InvalidData).into()),
            },
            _ => Err(io::Error::from(io::ErrorKind::InvalidData).into()),
        }
    }

    /// Makes sure that each statement of the open block sees the newest state (READ COMMITTED), whatever default it was begun with.
    ///
    /// # Errors
    /// It doesn't, and the block has failed now; or as [`BackendConn::run`].
    pub async fn sees_anew(&mut self) -> Result<(), ConnError> {
        const OR_FAIL: &[u8] = b"SELECT 1 / CASE WHEN pg_catalog.current_setting('transaction_isolation') \
            IN ('read committed', 'read uncommitted') THEN 1 ELSE 0 END";
        self.run_until(OR_FAIL, TransactionStatus::InBlock).await.map(drop)
    }

    /// Begins a transaction block with `sql`, on the proxy's own account.
    ///
    /// # Errors
    /// As [`BackendConn::run`].
    pub async fn begin(&mut self, sql: &[u8]) -> Result<(), ConnError> {
        self.run_until(sql, TransactionStatus::InBlock).await.map(drop)
    }

    async fn run_until(&mut self, sql: &[u8], want: TransactionStatus) -> Result<OwnAnswer, ConnError> {
        let mut request = Vec::with_capacity(sql.len() + 6);
        frontend::put_query(&mut request, sql);
        self.stream.write_all(&request).await?;
        self.stream.flush().await?;
        self.remarks.clear();
        let (mut buffer, mut answer) = (BytesMut::with_capacity(4096), OwnAnswer::before(0));
        loop {
            answer.take_all(&mut buffer)?;
            // What has come behind it, such as a notification, is somebody's too.
            if answer.is_over() && buffer.is_empty() {
                break;
            }
            if self.stream.read_buf(&mut buffer).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
        self.note(&mut answer);
        self.remarks = std::mem::take(&mut answer.remarks);
        match (answer.refused.take(), answer.status) {
            (None, Some(status)) if status == want => Ok(answer),
            (Some((code, message)), Some(TransactionStatus::Idle)) => Err(ConnError::Refused { code, message }),
            _ => Err(io::Error::from(io::ErrorKind::InvalidData).into()),
        }
    }

    /// Keeps what an answer says of the connection.
    fn note(&mut self, answer: &mut OwnAnswer) {
        self.overheard.append(&mut answer.overheard);
        self.status = answer.status.unwrap_or(self.status);
        for (name, value) in &answer.reported {
            self.note_parameter(name, value);
        }
    }
}
