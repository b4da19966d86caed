//! From an accepted socket to a session that is ready for its first query.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::cancel::{Registered, UnderWay};
use super::client_link::ClientLink;
use super::client_session::ClientSession;
use super::error::SessionError;
use super::own_settings;
use super::placing::Wish;
use super::replication::{self, Replication};
use super::visitor::{self, Visitor};
use super::worker::{Present, Worker};
use crate::auth::client_login::{self, ClientIdentity};
use crate::auth::server_login;
use crate::cluster::SystemIdentifier;
use crate::pool::{PrincipalPools, SettingValue, Settings, Welcome};
use crate::route::consistency::History;
use crate::route::{RouteReason, Want};
use crate::wire::backend::{TransactionStatus, put_parameter_status, put_ready};
use crate::wire::error_response::ErrorFields;
use crate::wire::sqlstate::SqlState;
use crate::wire::startup::{CancelKey, Opening, StartupParams, negotiate, negotiate_version_message, parse_options};
use crate::wire::stream::Stream;

/// The newest minor version of protocol 3 that is spoken with clients.
const NEWEST_MINOR: u16 = 2;

/// What a client has been told of the server's parameters.
#[derive(Debug)]
pub struct Told {
    welcome: Arc<Welcome>,
    since: Vec<(Box<str>, Box<str>)>,
}

impl Told {
    /// Told at login.
    pub fn new(welcome: Arc<Welcome>) -> Told {
        Told {
            welcome,
            since: Vec::new(),
        }
    }

    /// The last value told.
    pub fn value(&self, name: &str) -> Option<&str> {
        value(&self.since, name).or_else(|| value(&self.welcome.parameters, name))
    }

    /// The value told at login, to a session that started with the settings `startup`.
    pub fn at_login<'a>(&'a self, startup: &'a Settings, name: &str) -> Option<&'a str> {
        let own = simple_application_name(startup).filter(|_| name == "application_name");
        own.or_else(|| value(&self.welcome.parameters, name))
    }

    /// The client is told a value. Answers whether that is news to it.
    pub fn note(&mut self, name: &str, value: &str) -> bool {
        if self.value(name) == Some(value) {
            return false;
        }
        match self.since.iter_mut().find(|(known, _)| **known == *name) {
            Some((_, told)) => *told = value.into(),
            None => self.since.push((name.into(), value.into())),
        }
        true
    }
}

fn value<'a>(list: &'a [(Box<str>, Box<str>)], name: &str) -> Option<&'a str> {
    let mut list = list.iter();
    list.find(|(known, _)| **known == *name).map(|(_, value)| &**value)
}

/// Serves one accepted connection to its end, or answers who has come for the console.
pub async fn serve(worker: Rc<Worker>, tcp: TcpStream, peer: SocketAddr) -> Option<Box<Visitor>> {
    let present = worker.enter();
    let limit = worker.shared.config.load().listen.login_timeout;
    let login = tokio::time::timeout(limit, Box::pin(log_in(&worker, present, tcp))).await;
    match login {
        Ok(Ok(LoggedIn::Session(session))) => {
            worker.shared.count_login("ok");
            session.run().await;
        }
        Ok(Ok(LoggedIn::Replication(replication))) => {
            worker.shared.count_login("ok");
            Box::pin(replication.run()).await;
        }
        Ok(Ok(LoggedIn::Console(visitor))) => {
            worker.shared.count_login("ok");
            return Some(visitor);
        }
        Ok(Ok(LoggedIn::Gone)) => {}
        Ok(Err(refusal)) => {
            let Refusal {
                stream,
                fields,
                outcome,
            } = *refusal;
            worker.shared.count_login(outcome);
            if let (Some(mut stream), Some(fields)) = (stream, fields) {
                tracing::info!(%peer, code = %fields.code, message = %fields.message, "client refused");
                worker.shared.count_error(fields.code);
                let mut out = Vec::new();
                fields.encode_error(&mut out);
                farewell(&mut stream, &out).await;
            }
        }
        Err(_) => {
            worker.shared.count_login("timeout");
            tracing::info!(%peer, "client did not log in within login_timeout");
        }
    }
    None
}

/// Says a last word, and closes. Bounded: nobody waits for a client that doesn't listen.
pub async fn farewell(stream: &mut Stream, bytes: &[u8]) {
    let say = async {
        stream.write_all(bytes).await?;
        stream.shutdown().await
    };
    let _ = tokio::time::timeout(std::time::Duration::from_secs(1), say).await;
}

/// What a connection has become.
#[expect(
    clippy::large_enum_variant,
    reason = "it is moved once, into the session's own future"
)]
enum LoggedIn {
    Session(ClientSession),
    Replication(Box<Replication>),
    Console(Box<Visitor>),
    /// It was a cancel request, or its client has left.
    Gone,
}

/// Why a client gets no session, and whom to tell.
struct Refusal {
    stream: Option<Stream>,
    fields: Option<ErrorFields>,
    outcome: &'static str,
}

async fn log_in(worker: &Rc<Worker>, present: Present, tcp: TcpStream) -> Result<LoggedIn, Box<Refusal>> {
    let _ = tcp.set_nodelay(true);
    let shared = &worker.shared;
    let config = shared.config.load_full();
    let tls = shared.tls.load_full();
    let required = config.listen.tls.as_ref().is_some_and(|tls| tls.required);
    let opening = negotiate(tcp, tls.as_deref(), required).await;
    // negotiate() has told the client itself.
    let (mut stream, opening) = opening.map_err(|_| {
        Box::new(Refusal {
            stream: None,
            fields: None,
            outcome: "refused",
        })
    })?;
    let startup = match opening {
        Opening::Cancel(key) => {
            Box::pin(cancel(worker, &key)).await;
            return Ok(LoggedIn::Gone);
        }
        Opening::Startup(startup) => startup,
    };
    let visits = startup.database == config.admin.database;
    let most = config.listen.max_clients + if visits { visitor::SPARE } else { 0 };
    let over = shared.clients.load(std::sync::atomic::Ordering::Relaxed) > most;
    let refuse = |stream, fields| {
        Box::new(Refusal {
            stream: Some(stream),
            fields: Some(fields),
            outcome: "refused",
        })
    };
    if over {
        return Err(refuse(stream, SessionError::TooManyClients.fatal()));
    }
    if shared.draining.load(std::sync::atomic::Ordering::Relaxed) {
        let fields = ErrorFields::fatal(SqlState::CANNOT_CONNECT_NOW, "the proxy is shutting down");
        return Err(refuse(stream, fields));
    }
    let cluster = shared.cluster.table().system_identifier;
    let settings = match startup_settings(&startup, cluster) {
        Ok(settings) => settings,
        Err(fields) => return Err(refuse(stream, fields)),
    };
    let mut hello = Vec::with_capacity(512);
    if startup.needs_negotiation(NEWEST_MINOR) {
        let minor = startup.protocol_minor.min(NEWEST_MINOR);
        negotiate_version_message(minor, &startup.unsupported_options, &mut hello);
        if stream.write_all(&hello).await.is_err() {
            return Ok(LoggedIn::Gone);
        }
        hello.clear();
    }
    let users = shared.users.load_full();
    let identity = client_login::authenticate(&mut stream, &startup.user, config.auth.method, &users).await;
    let ClientIdentity { user, node_secret } = match identity {
        Ok(identity) => identity,
        Err(failure) => {
            let fields = failure.fields();
            return Err(Box::new(Refusal {
                stream: Some(stream),
                fields,
                outcome: "auth_failed",
            }));
        }
    };
    let secret_length = if startup.protocol_minor >= 2 { 32 } else { 4 };
    let Ok(registered) = shared.cancels.register(secret_length) else {
        return Err(refuse(
            stream,
            ErrorFields::fatal(SqlState::INTERNAL_ERROR, "no randomness for a cancel key"),
        ));
    };
    if visits {
        return match visitor::admit(&config.admin, &user, startup.replication.is_some()) {
            Ok(()) => Ok(LoggedIn::Console(Box::new(Visitor {
                present,
                client: ClientLink::new(stream, Rc::clone(&worker.buffers)),
                registered,
                user,
            }))),
            Err(fields) => Err(refuse(stream, fields)),
        };
    }
    let principal = shared.pools.of(&startup.database, &user, node_secret);
    let settings = Arc::new(settings);
    if let Some(replication) = &startup.replication {
        let opened = replication::open(worker, &principal, replication, &startup).await;
        let conn = match opened {
            Ok(conn) => conn,
            Err(error) => return Err(refuse(stream, error.fatal())),
        };
        return Ok(LoggedIn::Replication(Box::new(Replication::new(
            worker, present, stream, conn, registered, hello,
        ))));
    }
    let welcome = match welcome(worker, &principal, &settings).await {
        Ok(welcome) => welcome,
        Err(fields) => return Err(refuse(stream, fields)),
    };
    let mut told = Told::new(welcome);
    greet(&mut hello, &mut told, &settings, &registered);
    if stream.write_all(&hello).await.is_err() || stream.flush().await.is_err() {
        return Ok(LoggedIn::Gone);
    }
    Ok(LoggedIn::Session(ClientSession::new(
        worker, present, stream, principal, settings, told, registered,
    )))
}

/// Notices, `ParameterStatus`, `BackendKeyData`, `ReadyForQuery`.
fn greet(out: &mut Vec<u8>, told: &mut Told, settings: &Settings, registered: &Registered) {
    if let Some(name) = simple_application_name(settings) {
        told.note("application_name", name);
    }
    out.extend_from_slice(&told.welcome.notices);
    let names: Vec<Box<str>> = told.welcome.parameters.iter().map(|(name, _)| name.clone()).collect();
    for name in names {
        if let Some(value) = told.value(&name) {
            put_parameter_status(out, &name, value);
        }
    }
    registered.key.encode_backend_key_data(out);
    put_ready(out, TransactionStatus::Idle);
}

/// The `application_name`, if a server takes it as it is. Others are changed by rules that differ between versions, and a longer one is
/// cut with a notice.
fn simple_application_name(settings: &Settings) -> Option<&str> {
    /// `NAMEDATALEN`, less its terminator.
    const LONGEST: usize = 63;
    match settings.value("application_name") {
        Some(SettingValue::Raw(name)) => {
            let simple = name.len() <= LONGEST && name.bytes().all(|byte| matches!(byte, b' '..=b'~'));
            simple.then_some(&**name)
        }
        _ => None,
    }
}

/// The settings that a start-up packet asks for. Later ones win, and those of their own win over `options`, as in the server.
fn startup_settings(startup: &StartupParams, cluster: Option<SystemIdentifier>) -> Result<Settings, ErrorFields> {
    let mut settings = Settings::default();
    if let Some(options) = startup.parameter("options") {
        let parsed = parse_options(options)
            .map_err(|error| ErrorFields::fatal(error.sqlstate(), error.to_string()).with_hint(error.hint()))?;
        for (name, value) in parsed {
            settings = settings.with(&name.to_ascii_lowercase(), SettingValue::Raw(value.into()));
        }
    }
    for (name, value) in &startup.parameters {
        if !name.eq_ignore_ascii_case("options") {
            settings = settings.with(&name.to_ascii_lowercase(), SettingValue::Raw(value.as_str().into()));
        }
    }
    for (name, value) in settings.iter() {
        let (SettingValue::Raw(value) | SettingValue::Sql(value)) = value;
        if let Some(error) = own_settings::refused(name, value, cluster) {
            return Err(error.fatal());
        }
    }
    Ok(settings)
}

/// What a server tells clients of these settings. The first client with them has a server asked, which also shows whether the database
/// and the role exist; an `application_name` makes no difference but for itself, unless the server would change it.
async fn welcome(
    worker: &Rc<Worker>,
    principal: &Arc<PrincipalPools>,
    settings: &Arc<Settings>,
) -> Result<Arc<Welcome>, ErrorFields> {
    let plain = match simple_application_name(settings) {
        Some(_) => settings.without("application_name"),
        None => Settings::clone(settings),
    };
    // What only the proxy looks at may be another with every connection.
    let plain = plain.without("pgsluice.min_position");
    if let Some(known) = principal.welcome(&plain) {
        return Ok(known);
    }
    let plain = Arc::new(plain);
    let rules = super::client_session::rules(&worker.shared.config.load());
    let mut placing = super::client_session::Placing::new(worker);
    let wish = Wish {
        want: Want::Primary(RouteReason::NeedsPrimary),
        rules: &rules,
        history: &History::default(),
        settings: &plain,
        defer: false,
        session: 0,
        reclaim: None,
    };
    let mut placed = placing.connect(principal, wish).await.map_err(|error| error.fatal())?;
    let mut parameters: Vec<_> = placed.lease.conn().parameters().to_vec();
    for (name, value) in &mut parameters {
        if **name == *"in_hot_standby" {
            *value = "off".into();
        }
    }
    let notices = placed.lease.conn().take_remarks();
    placed.lease.check_in(Instant::now());
    let welcome = Arc::new(Welcome { parameters, notices });
    principal.remember_welcome(&plain, Arc::clone(&welcome));
    Ok(welcome)
}

/// Passes a cancel request on to the server process that has the statement that is meant. Until that is done its client waits, and so a next
/// statement isn't hit.
async fn cancel(worker: &Worker, key: &CancelKey) {
    let Some(mut request) = worker.shared.cancels.ask(key) else {
        return;
    };
    while let Some(under_way) = request.turn().await {
        deliver(worker, under_way).await;
    }
}

/// Tells a server process to cancel what it does.
pub(super) async fn deliver(worker: &Worker, under_way: UnderWay) {
    let process = &under_way.process;
    let Some(address) = worker.shared.pools.link(process.node).address() else {
        return;
    };
    let sent = server_login::cancel(&address, &worker.shared.node_tls, process.pid, &process.secret).await;
    if let Err(error) = sent {
        tracing::debug!(%error, "cancel request was not delivered");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<A, B, C, F: Future>(_: fn(A, B, C) -> F) -> usize {
        std::mem::size_of::<F>()
    }

    #[test]
    fn a_waiting_session_is_small() {
        let size = size_of_future(serve);
        assert!(size <= 2304, "each idle client costs {size} bytes");
    }
}
