//! Logging in to a real PostgreSQL: every method, every sslmode, and what goes wrong.

mod server;

use std::io::Write;
use std::net::TcpListener;
use std::time::Duration;

use pgsluice::auth::client_login::authenticate;
use pgsluice::auth::md5::Md5Hash;
use pgsluice::auth::scram::{ScramError, ScramKeys};
use pgsluice::auth::secret::NodeSecret;
use pgsluice::auth::server_login::{ServerLogin, ServerLoginError, ServerSession, cancel, connect};
use pgsluice::auth::userlist::UserList;
use pgsluice::config::{AuthMethod, NodeAddress, NodeTls, SslMode};
use pgsluice::wire::error_response::ErrorView;
use pgsluice::wire::sqlstate::SqlState;
use pgsluice::wire::startup::{Opening, negotiate};
use pgsluice::wire::tls::{HandshakeError, NodeTlsConnector};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use server::Server;

const PLAIN: NodeTls = NodeTls {
    mode: SslMode::Disable,
    root_cert: None,
    client: None,
};

async fn login(
    server: &Server,
    host: &str,
    user: &str,
    secret: Option<&NodeSecret>,
    tls: &NodeTls,
) -> Result<ServerSession, ServerLoginError> {
    let address = NodeAddress {
        host: host.to_owned(),
        port: server.port,
    };
    let tls = NodeTlsConnector::new(tls).unwrap();
    let parameters = &[("application_name", "pgsluice test"), ("client_encoding", "UTF8")];
    let timeout = Duration::from_secs(20);
    let database = "postgres";
    connect(ServerLogin {
        address: &address,
        user,
        database,
        parameters,
        secret,
        tls: &tls,
        timeout,
    })
    .await
}

async fn plain_login(
    server: &Server,
    user: &str,
    secret: Option<&NodeSecret>,
) -> Result<ServerSession, ServerLoginError> {
    login(server, "127.0.0.1", user, secret, &PLAIN).await
}

fn refused(result: Result<ServerSession, ServerLoginError>) -> SqlState {
    match result {
        Err(ServerLoginError::Refused { code, fields, message }) => {
            assert_eq!(ErrorView::parse(&fields).unwrap().message_text(), message);
            code
        }
        other => panic!("{other:?}"),
    }
}

/// The first column of the first row, as text.
async fn query(session: &mut ServerSession, sql: &str) -> String {
    let mut message = vec![b'Q'];
    message.extend(u32::try_from(sql.len() + 5).unwrap().to_be_bytes());
    message.extend(sql.as_bytes());
    message.push(0);
    session.stream.write_all(&message).await.unwrap();
    session.stream.flush().await.unwrap();
    let mut value = String::new();
    loop {
        let tag = session.stream.read_u8().await.unwrap();
        let length = session.stream.read_u32().await.unwrap() as usize - 4;
        let mut body = vec![0; length];
        session.stream.read_exact(&mut body).await.unwrap();
        match tag {
            b'D' => value = String::from_utf8(body[6..].to_vec()).unwrap(),
            b'E' => value = ErrorView::parse(&body).unwrap().code.to_string(),
            b'Z' => return value,
            _ => {}
        }
    }
}

#[tokio::test]
async fn every_method_lets_the_right_password_in_and_no_other() {
    let server = Server::shared();
    let (right, wrong) = (NodeSecret::plain("pass word"), NodeSecret::plain("pass  word"));
    for user in ["md5_user", "scram_user", "plain_user"] {
        let mut session = plain_login(&server, user, Some(&right)).await.unwrap();
        assert_eq!(query(&mut session, "SELECT current_user").await, user);
        assert_eq!(
            refused(plain_login(&server, user, Some(&wrong)).await),
            SqlState::INVALID_PASSWORD,
            "{user}"
        );
        let error = plain_login(&server, user, None).await.unwrap_err();
        assert!(matches!(error, ServerLoginError::PasswordNeeded), "{user}: {error:?}");
        assert!(!error.is_node_down());
    }
    plain_login(&server, "trusted", None).await.unwrap();
}

#[tokio::test]
async fn a_session_knows_its_key_and_the_servers_parameters() {
    let server = Server::shared();
    let mut session = plain_login(&server, "trusted", None).await.unwrap();
    let parameter = |name: &str| {
        session
            .parameters
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.clone())
    };
    assert_eq!(parameter("application_name").as_deref(), Some("pgsluice test"));
    assert_eq!(parameter("in_hot_standby").as_deref(), Some("off"));
    assert_eq!(session.secret_key.len(), 4);
    let pid = session.pid.to_string();
    assert_eq!(query(&mut session, "SELECT pg_backend_pid()").await, pid);
    assert!(session.stream.tcp().nodelay().unwrap());
}

#[tokio::test]
async fn derived_and_stored_secrets_log_in_where_they_fit() {
    let server = Server::shared();
    let stored = server.sql("SELECT rolpassword FROM pg_authid WHERE rolname = 'scram_user'");
    let salt = base64(stored.split(['$', ':']).nth(2).unwrap());
    let keys = NodeSecret::Scram(ScramKeys::derive("pass word", &salt, 4096));
    plain_login(&server, "scram_user", Some(&keys)).await.unwrap();

    let other_salt = NodeSecret::Scram(ScramKeys::derive("pass word", b"another salt", 4096));
    let error = plain_login(&server, "scram_user", Some(&other_salt)).await.unwrap_err();
    assert!(
        matches!(error, ServerLoginError::Scram(ScramError::KeysDontFit)),
        "{error:?}"
    );
    assert!(error.hint().is_some());

    let hash = NodeSecret::Md5(Md5Hash::of("pass word", "md5_user"));
    plain_login(&server, "md5_user", Some(&hash)).await.unwrap();
    for (user, secret) in [("scram_user", &hash), ("md5_user", &keys), ("plain_user", &keys)] {
        let error = plain_login(&server, user, Some(secret)).await.unwrap_err();
        assert!(
            matches!(error, ServerLoginError::SecretUnfit { .. }),
            "{user}: {error:?}"
        );
    }
}

#[tokio::test]
async fn a_client_that_logs_in_to_the_proxy_lets_it_log_in_to_the_node() {
    let server = Server::shared();
    let stored = server.sql("SELECT rolpassword FROM pg_authid WHERE rolname = 'scram_user'");
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(file, "\"scram_user\" \"{stored}\"").unwrap();
    let users = UserList::load(file.path()).unwrap();
    assert_eq!(
        users.node_secret("scram_user"),
        None,
        "a verifier alone logs in nowhere"
    );

    let proxy = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = tokio_postgres::Config::new();
    config
        .host("127.0.0.1")
        .port(proxy.local_addr().unwrap().port())
        .user("scram_user")
        .password("pass word");
    let client = tokio::spawn(async move { config.connect(tokio_postgres::NoTls).await.map(|_| ()) });
    let (mut stream, opening) = negotiate(proxy.accept().await.unwrap().0, None, false).await.unwrap();
    let Opening::Startup(params) = opening else {
        panic!("{opening:?}")
    };
    let identity = authenticate(&mut stream, &params.user, AuthMethod::ScramSha256, &users)
        .await
        .unwrap();
    client.abort();

    let mut session = plain_login(&server, "scram_user", identity.node_secret.as_ref())
        .await
        .unwrap();
    assert_eq!(query(&mut session, "SELECT current_user").await, "scram_user");
}

fn base64(text: &str) -> Vec<u8> {
    use base64::Engine;
    base64::prelude::BASE64_STANDARD.decode(text).unwrap()
}

#[tokio::test]
async fn what_the_node_refuses_keeps_its_sqlstate() {
    let server = Server::shared();
    assert_eq!(
        refused(plain_login(&server, "stranger", None).await),
        SqlState::INVALID_AUTHORIZATION_SPECIFICATION
    );
    assert_eq!(
        refused(plain_login(&server, "full", None).await),
        SqlState::TOO_MANY_CONNECTIONS
    );
    let address = NodeAddress {
        host: "127.0.0.1".to_owned(),
        port: server.port,
    };
    let tls = NodeTlsConnector::disabled();
    let mut login = ServerLogin {
        address: &address,
        user: "trusted",
        database: "nowhere",
        parameters: &[],
        secret: None,
        tls: &tls,
        timeout: Duration::from_secs(20),
    };
    assert_eq!(refused(connect(login).await), SqlState::INVALID_CATALOG_NAME);
    login.database = "postgres";
    login.parameters = &[("options", "-c work_mem=-7")];
    assert_eq!(refused(connect(login).await), SqlState::INVALID_PARAMETER_VALUE);
    login.parameters = &[("application_name", "a\0user\0postgres")];
    assert!(matches!(connect(login).await, Err(ServerLoginError::Protocol(_))));
}

#[tokio::test]
async fn each_sslmode_encrypts_and_verifies_as_libpq_says() {
    let server = Server::shared();
    let ca = || Some("ca.crt");
    let other = || Some("other-ca.crt");
    let names = ["127.0.0.1", "localhost"];
    let foreign = ["127.0.0.2"];
    use SslMode::*;
    type Case<'a> = (SslMode, Option<&'a str>, &'a [&'a str], Option<bool>);
    let cases: [Case<'_>; 15] = [
        (Disable, ca(), &names, Some(false)),
        (Allow, None, &names, Some(true)),
        (Prefer, None, &names, Some(true)),
        (Prefer, other(), &foreign, Some(true)),
        (Require, None, &names, Some(true)),
        (Require, None, &foreign, Some(true)),
        (Require, ca(), &foreign, Some(true)),
        (Require, other(), &names, None),
        (VerifyCa, ca(), &names, Some(true)),
        (VerifyCa, ca(), &foreign, Some(true)),
        (VerifyCa, other(), &names, None),
        (VerifyFull, ca(), &names, Some(true)),
        (VerifyFull, ca(), &foreign, None),
        (VerifyFull, other(), &names, None),
        (VerifyFull, other(), &foreign, None),
    ];
    for (mode, root_cert, hosts, expected) in cases {
        for host in hosts {
            let tls = NodeTls {
                mode,
                root_cert: root_cert.map(|name| server.path(name).into()),
                client: None,
            };
            match (login(&server, host, "trusted", None, &tls).await, expected) {
                (Ok(mut session), Some(encrypted)) => {
                    assert_eq!(session.stream.is_tls(), encrypted, "{mode:?} {host}");
                    let shown = query(&mut session, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").await;
                    assert_eq!(shown, if encrypted { "t" } else { "f" }, "{mode:?} {host}");
                }
                (Err(ServerLoginError::Tls(HandshakeError::Handshake(_))), None) => {}
                (result, expected) => panic!("{mode:?} {root_cert:?} {host}: {result:?}, expected {expected:?}"),
            }
        }
    }
}

#[tokio::test]
async fn what_pg_hba_says_of_encryption_is_met() {
    let server = Server::shared();
    let secret = NodeSecret::plain("pass word");
    let prefer = NodeTls {
        mode: SslMode::Prefer,
        ..PLAIN
    };
    login(&server, "127.0.0.1", "tls_only", Some(&secret), &prefer)
        .await
        .unwrap();
    let denied = plain_login(&server, "tls_only", Some(&secret)).await;
    assert_eq!(refused(denied), SqlState::INVALID_AUTHORIZATION_SPECIFICATION);
    plain_login(&server, "plain_only", None).await.unwrap();
}

#[tokio::test]
async fn a_client_certificate_logs_in() {
    let server = Server::shared();
    let client = |crt: &str| Some((server.path(crt).into(), server.path("client.key").into()));
    let tls = NodeTls {
        mode: SslMode::VerifyFull,
        root_cert: Some(server.path("ca.crt").into()),
        client: client("client.crt"),
    };
    let mut session = login(&server, "localhost", "cert_user", None, &tls).await.unwrap();
    assert_eq!(query(&mut session, "SELECT current_user").await, "cert_user");

    let without = NodeTls {
        client: None,
        ..tls.clone()
    };
    let denied = login(&server, "localhost", "cert_user", None, &without).await;
    assert_eq!(refused(denied), SqlState::INVALID_AUTHORIZATION_SPECIFICATION);

    let mismatch = NodeTlsConnector::new(&NodeTls {
        client: client("server.crt"),
        ..tls
    })
    .unwrap_err()
    .to_string();
    assert!(
        mismatch.contains("client.key") && mismatch.contains("server.crt"),
        "{mismatch}"
    );
}

#[tokio::test]
async fn a_cancel_request_ends_the_statement() {
    let server = Server::shared();
    for mode in [SslMode::Disable, SslMode::Require] {
        let settings = NodeTls { mode, ..PLAIN };
        let mut session = login(&server, "127.0.0.1", "trusted", None, &settings).await.unwrap();
        let (pid, key) = (session.pid, session.secret_key.clone());
        let address = NodeAddress {
            host: "127.0.0.1".to_owned(),
            port: server.port,
        };
        let tls = NodeTlsConnector::new(&settings).unwrap();
        let sleeping = tokio::spawn(async move { query(&mut session, "SELECT pg_sleep(60)").await });
        let running = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND wait_event = 'PgSleep'");
        while server.sql(&running) != "1" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        cancel(&address, &tls, pid, &key).await.unwrap();
        let outcome = tokio::time::timeout(Duration::from_secs(20), sleeping)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(outcome, "57014", "{mode:?}");
    }
}

#[tokio::test]
async fn a_node_that_is_not_there_is_down() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let attempt = async |host: &str, port: u16, timeout: Duration| {
        let address = NodeAddress {
            host: host.to_owned(),
            port,
        };
        let tls = NodeTlsConnector::disabled();
        let (user, database) = ("u", "d");
        let login = ServerLogin {
            address: &address,
            user,
            database,
            parameters: &[],
            secret: None,
            tls: &tls,
            timeout,
        };
        connect(login).await.unwrap_err()
    };
    let error = attempt("127.0.0.1", port, Duration::from_secs(5)).await;
    assert!(
        matches!(error, ServerLoginError::Unreachable(_)) && error.is_node_down(),
        "{error:?}"
    );
    let error = attempt("host.invalid", port, Duration::from_secs(20)).await;
    assert!(error.is_node_down(), "{error:?}");

    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let error = attempt(
        "127.0.0.1",
        silent.local_addr().unwrap().port(),
        Duration::from_millis(200),
    )
    .await;
    assert!(
        matches!(error, ServerLoginError::TimedOut) && error.is_node_down(),
        "{error:?}"
    );
}
