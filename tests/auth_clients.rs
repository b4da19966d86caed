//! Clients of others' making log in to a proxy that can do nothing else: start-up, TLS and every method.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pgsluice::auth::client_login::{ClientIdentity, LoginFailure, PasswordReason, authenticate};
use pgsluice::auth::secret::NodeSecret;
use pgsluice::auth::userlist::UserList;
use pgsluice::config::{AuthMethod, NodeTls, SslMode};
use pgsluice::wire::error_response::{ErrorFields, ErrorView};
use pgsluice::wire::sqlstate::SqlState;
use pgsluice::wire::startup::{
    CancelKey, Opening, SSL_REQUEST, StartupError, encode_startup, negotiate, negotiate_version_message,
};
use pgsluice::wire::stream::Stream;
use pgsluice::wire::tls::{HandshakeError, NodeTlsConnector, server_config};
use tempfile::{NamedTempFile, TempDir};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_postgres::NoTls;
use tokio_rustls::TlsAcceptor;

/// `pencil`, by RFC 7677's salt.
const VERIFIER: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

/// How a connection ended for the proxy.
#[derive(Debug)]
enum Outcome {
    NotOpened(StartupError),
    Cancel(CancelKey),
    LoggedIn { identity: ClientIdentity, encrypted: bool },
    Failed(LoginFailure),
}

/// Accepts, logs in, and answers every query with an empty result.
struct Proxy {
    address: SocketAddr,
    outcomes: mpsc::UnboundedReceiver<Outcome>,
}

impl Proxy {
    async fn start(method: AuthMethod, tls: Option<TlsAcceptor>, required: bool) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, outcomes) = mpsc::unbounded_channel();
        let users = Arc::new(users());
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (tls, users, sender) = (tls.clone(), Arc::clone(&users), sender.clone());
                tokio::spawn(async move { serve(tcp, tls.as_ref(), required, method, &users, &sender).await });
            }
        });
        Proxy { address, outcomes }
    }

    async fn outcome(&mut self) -> Outcome {
        tokio::time::timeout(Duration::from_secs(20), self.outcomes.recv())
            .await
            .unwrap()
            .unwrap()
    }

    /// Logs in with tokio-postgres; the SQLSTATE if that fails.
    async fn connect(&self, user: &str, password: &str) -> Result<(), String> {
        let port = self.address.port();
        let mut config = tokio_postgres::Config::new();
        config
            .host("127.0.0.1")
            .port(port)
            .user(user)
            .dbname("d")
            .password(password);
        match config.connect(NoTls).await {
            Ok(_) => Ok(()),
            Err(error) => Err(error
                .code()
                .map_or_else(|| error.to_string(), |code| code.code().to_owned())),
        }
    }
}

fn users() -> UserList {
    let mut file = NamedTempFile::new().unwrap();
    writeln!(file, "\"plain\" \"pencil\"\n\"scram\" \"{VERIFIER}\"").unwrap();
    writeln!(file, "\"md5\" \"md512acbd04a4b55346555b3fa88c638e11\"\n\"empty\" \"\"").unwrap();
    UserList::load(file.path()).unwrap()
}

async fn serve(
    tcp: TcpStream,
    tls: Option<&TlsAcceptor>,
    required: bool,
    method: AuthMethod,
    users: &UserList,
    outcomes: &mpsc::UnboundedSender<Outcome>,
) {
    let (mut stream, params) = match negotiate(tcp, tls, required).await {
        Ok((stream, Opening::Startup(params))) => (stream, params),
        Ok((_, Opening::Cancel(key))) => return outcomes.send(Outcome::Cancel(key)).unwrap(),
        Err(error) => return outcomes.send(Outcome::NotOpened(error)).unwrap(),
    };
    let mut out = Vec::new();
    if params.needs_negotiation(2) {
        negotiate_version_message(2, &params.unsupported_options, &mut out);
        stream.write_all(&out).await.unwrap();
    }
    let encrypted = stream.is_tls();
    match authenticate(&mut stream, &params.user, method, users).await {
        Ok(identity) => outcomes.send(Outcome::LoggedIn { identity, encrypted }).unwrap(),
        Err(failure) => {
            tell(&mut stream, failure.fields()).await;
            return outcomes.send(Outcome::Failed(failure)).unwrap();
        }
    }
    out.clear();
    CancelKey {
        pid: 1,
        secret: vec![1, 2, 3, 4],
    }
    .encode_backend_key_data(&mut out);
    out.extend(b"Z\0\0\0\x05I");
    stream.write_all(&out).await.unwrap();
    stream.flush().await.unwrap();
    let mut query = [0; 4096];
    while let Ok(1..) = stream.read(&mut query).await {
        if query[0] == b'Q' {
            stream.write_all(b"C\0\0\0\x07OK\0Z\0\0\0\x05I").await.unwrap();
            stream.flush().await.unwrap();
        }
    }
}

async fn tell(stream: &mut Stream, fields: Option<ErrorFields>) {
    let mut message = Vec::new();
    if let Some(fields) = fields {
        fields.encode_error(&mut message);
    }
    let _ = stream.write_all(&message).await;
    let _ = stream.shutdown().await;
}

fn denied_because(outcome: Outcome) -> PasswordReason {
    match outcome {
        Outcome::Failed(LoginFailure::Password { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

fn secret_of(outcome: Outcome) -> Option<NodeSecret> {
    match outcome {
        Outcome::LoggedIn { identity, .. } => identity.node_secret,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn scram_lets_the_right_password_in_and_gives_all_others_one_answer() {
    let mut proxy = Proxy::start(AuthMethod::ScramSha256, None, false).await;
    for _ in 0..2 {
        proxy.connect("plain", "pencil").await.unwrap();
        assert_eq!(secret_of(proxy.outcome().await), Some(NodeSecret::plain("pencil")));
    }
    proxy.connect("scram", "pencil").await.unwrap();
    assert!(matches!(secret_of(proxy.outcome().await), Some(NodeSecret::Scram(_))));
    let denied = [
        ("plain", "pencils", PasswordReason::Wrong),
        ("scram", "", PasswordReason::Wrong),
        ("ghost", "pencil", PasswordReason::UnknownUser),
        ("empty", "pencil", PasswordReason::NoPassword),
        ("md5", "pencil", PasswordReason::Md5Secret),
    ];
    for (user, password, reason) in denied {
        assert_eq!(proxy.connect(user, password).await.unwrap_err(), "28P01", "{user}");
        assert_eq!(denied_because(proxy.outcome().await), reason, "{user}");
    }
}

#[tokio::test]
async fn md5_lets_the_right_password_in_and_prefers_scram_for_a_verifier() {
    let mut proxy = Proxy::start(AuthMethod::Md5, None, false).await;
    for user in ["plain", "md5", "scram"] {
        proxy.connect(user, "pencil").await.unwrap();
        let secret = secret_of(proxy.outcome().await);
        let expected = match user {
            "plain" => matches!(secret, Some(NodeSecret::Plain(_))),
            "md5" => matches!(secret, Some(NodeSecret::Md5(_))),
            _ => matches!(secret, Some(NodeSecret::Scram(_))),
        };
        assert!(expected, "{user}: {secret:?}");
        assert_eq!(proxy.connect(user, "pencils").await.unwrap_err(), "28P01", "{user}");
        assert_eq!(denied_because(proxy.outcome().await), PasswordReason::Wrong, "{user}");
    }
    assert_eq!(proxy.connect("ghost", "pencil").await.unwrap_err(), "28P01");
    assert_eq!(denied_because(proxy.outcome().await), PasswordReason::UnknownUser);
}

#[tokio::test]
async fn trust_lets_everyone_in_and_finds_what_nodes_may_ask_for() {
    let mut proxy = Proxy::start(AuthMethod::Trust, None, false).await;
    proxy.connect("plain", "").await.unwrap();
    assert_eq!(secret_of(proxy.outcome().await), Some(NodeSecret::plain("pencil")));
    proxy.connect("ghost", "").await.unwrap();
    assert_eq!(secret_of(proxy.outcome().await), None);
}

/// Certificates by rcgen, each signed by itself: two marked as CAs, as the manual's recipe makes them, and one that isn't.
struct Certificates {
    directory: TempDir,
}

impl Certificates {
    fn make() -> Certificates {
        let directory = tempfile::tempdir().unwrap();
        for (file, name) in [
            ("own", "localhost"),
            ("foreign", "elsewhere.test"),
            ("leaf", "localhost"),
        ] {
            let mut params = rcgen::CertificateParams::new([name.to_owned()]).unwrap();
            if file != "leaf" {
                params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            }
            let key = rcgen::KeyPair::generate().unwrap();
            let certificate = params.self_signed(&key).unwrap();
            std::fs::write(directory.path().join(format!("{file}.crt")), certificate.pem()).unwrap();
            std::fs::write(directory.path().join(format!("{file}.key")), key.serialize_pem()).unwrap();
        }
        std::fs::write(directory.path().join("empty"), "").unwrap();
        Certificates { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn acceptor(&self, name: &str) -> TlsAcceptor {
        let (cert, key) = (self.path(&format!("{name}.crt")), self.path(&format!("{name}.key")));
        TlsAcceptor::from(server_config(&cert, &key).unwrap())
    }
}

/// Runs psql; its output, both streams together, and whether it was content.
async fn psql(proxy: &Proxy, conninfo: &str, password: &str) -> (bool, String) {
    let port = proxy.address.port();
    let output = tokio::process::Command::new("psql")
        .args(["-X", "-w", "-c", "SELECT 1"])
        .arg(format!("host=localhost port={port} dbname=d {conninfo}"))
        .env("PGPASSWORD", password)
        .output()
        .await
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[tokio::test]
async fn psql_logs_in_over_tls() {
    let certificates = Certificates::make();
    let mut proxy = Proxy::start(AuthMethod::ScramSha256, Some(certificates.acceptor("own")), true).await;
    let root = certificates.path("own.crt");
    for mode in [
        "prefer",
        "require",
        &format!("verify-full sslrootcert={}", root.display()).replace("127.0.0.1", ""),
    ] {
        let conninfo = format!("host=localhost user=scram sslmode={mode}");
        let (content, text) = psql(&proxy, &conninfo, "pencil").await;
        assert!(content, "{mode}: {text}");
        assert!(matches!(
            proxy.outcome().await,
            Outcome::LoggedIn { encrypted: true, .. }
        ));
    }
    let (content, text) = psql(&proxy, "user=scram sslmode=require", "pencils").await;
    assert!(
        !content && text.contains("password authentication failed for user \"scram\""),
        "{text}"
    );
    assert_eq!(denied_because(proxy.outcome().await), PasswordReason::Wrong);
    let (content, text) = psql(&proxy, "user=scram sslmode=disable", "pencil").await;
    assert!(
        !content && text.contains("only takes encrypted ones") && text.contains("sslmode=require"),
        "{text}"
    );
    assert!(matches!(
        proxy.outcome().await,
        Outcome::NotOpened(StartupError::TlsRequired)
    ));
}

#[tokio::test]
async fn psql_is_told_when_there_is_no_tls() {
    let mut proxy = Proxy::start(AuthMethod::Md5, None, false).await;
    let (content, text) = psql(&proxy, "user=plain sslmode=prefer", "pencil").await;
    assert!(content, "{text}");
    assert!(matches!(
        proxy.outcome().await,
        Outcome::LoggedIn { encrypted: false, .. }
    ));
    let (content, text) = psql(&proxy, "user=plain sslmode=require", "pencil").await;
    assert!(!content && text.contains("server does not support SSL"), "{text}");
    assert!(matches!(
        proxy.outcome().await,
        Outcome::NotOpened(StartupError::Gone(_))
    ));
    // Without a password psql leaves, to ask its user for one.
    let (content, _) = psql(&proxy, "user=plain sslmode=disable", "").await;
    assert!(!content);
    assert!(matches!(proxy.outcome().await, Outcome::Failed(LoginFailure::Gone(_))));
}

#[tokio::test]
async fn the_nodes_side_meets_the_clients_side() {
    let certificates = Certificates::make();
    let proxy = Proxy::start(AuthMethod::Trust, Some(certificates.acceptor("own")), false).await;
    let plain = Proxy::start(AuthMethod::Trust, None, false).await;
    let secure = async |proxy: &Proxy, mode: SslMode, root: Option<&str>, host: &str| {
        let root_cert = root.map(|name| certificates.path(name));
        let connector = NodeTlsConnector::new(&NodeTls {
            mode,
            root_cert,
            client: None,
        })
        .unwrap();
        connector
            .secure(TcpStream::connect(proxy.address).await.unwrap(), host)
            .await
    };
    let own = Some("own.crt");
    assert!(
        secure(&proxy, SslMode::VerifyFull, own, "localhost")
            .await
            .unwrap()
            .is_tls()
    );
    assert!(
        secure(&proxy, SslMode::VerifyCa, own, "no_dns name")
            .await
            .unwrap()
            .is_tls()
    );
    let refused = |result: Result<Stream, HandshakeError>| result.unwrap_err().to_string();
    assert!(refused(secure(&proxy, SslMode::VerifyFull, own, "127.0.0.1").await).contains("not valid for name"));
    assert!(refused(secure(&proxy, SslMode::VerifyCa, Some("foreign.crt"), "localhost").await).contains("certificate"));
    assert!(refused(secure(&proxy, SslMode::VerifyFull, own, "no_dns name").await).contains("no host name"));
    assert!(
        !secure(&plain, SslMode::Prefer, None, "localhost")
            .await
            .unwrap()
            .is_tls()
    );
    let error = secure(&plain, SslMode::Require, None, "localhost").await.unwrap_err();
    assert!(matches!(error, HandshakeError::Refused), "{error}");
}

#[test]
fn what_is_wrong_with_a_file_is_said_with_its_name() {
    let certificates = Certificates::make();
    let fault = |cert: &str, key: &str| {
        server_config(&certificates.path(cert), &certificates.path(key))
            .unwrap_err()
            .to_string()
    };
    assert!(fault("own.crt", "foreign.key").contains("foreign.key: this private key does not belong"));
    assert!(fault("missing", "own.key").contains("missing: "));
    assert!(fault("empty", "own.key").contains("empty: no certificate"));
    assert!(fault("own.crt", "own.crt").contains("own.crt: "));
}

/// A connection on which the test itself speaks.
async fn raw(proxy: &Proxy, bytes: &[u8]) -> TcpStream {
    let mut tcp = TcpStream::connect(proxy.address).await.unwrap();
    tcp.write_all(bytes).await.unwrap();
    tcp
}

async fn error_code(mut tcp: TcpStream) -> SqlState {
    let mut answer = Vec::new();
    tcp.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer[0], b'E');
    ErrorView::parse(&answer[5..]).unwrap().code
}

#[tokio::test]
async fn bytes_behind_an_ssl_request_are_refused() {
    let certificates = Certificates::make();
    let mut proxy = Proxy::start(AuthMethod::Trust, Some(certificates.acceptor("own")), false).await;
    let mut injected = SSL_REQUEST.to_vec();
    encode_startup(&[("user", "plain")], &mut injected).unwrap();
    let tcp = raw(&proxy, &injected).await;
    assert!(matches!(
        proxy.outcome().await,
        Outcome::NotOpened(StartupError::DataInTheClear)
    ));
    drop(tcp);
}

#[tokio::test]
async fn encryption_is_asked_for_once_each_in_either_order() {
    const GSSENC_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xD2, 0x16, 0x30];
    let mut proxy = Proxy::start(AuthMethod::Trust, None, false).await;
    for (first, second) in [(GSSENC_REQUEST, SSL_REQUEST), (SSL_REQUEST, GSSENC_REQUEST)] {
        let mut tcp = raw(&proxy, &first).await;
        assert_eq!(tcp.read_u8().await.unwrap(), b'N');
        tcp.write_all(&second).await.unwrap();
        assert_eq!(tcp.read_u8().await.unwrap(), b'N');
        tcp.write_all(&first).await.unwrap();
        assert_eq!(error_code(tcp).await, SqlState::FEATURE_NOT_SUPPORTED);
        assert!(matches!(
            proxy.outcome().await,
            Outcome::NotOpened(StartupError::UnsupportedProtocol { .. })
        ));
    }
}

#[tokio::test]
async fn what_follows_the_startup_packet_is_not_lost() {
    let mut proxy = Proxy::start(AuthMethod::Trust, None, false).await;
    let mut bytes = Vec::new();
    encode_startup(&[("user", "plain")], &mut bytes).unwrap();
    bytes.extend(b"Q\0\0\0\x05\0");
    let mut tcp = raw(&proxy, &bytes).await;
    let mut answer = vec![0; 9 + 13 + 6 + 8 + 6];
    tcp.read_exact(&mut answer).await.unwrap();
    assert!(answer.ends_with(b"C\0\0\0\x07OK\0Z\0\0\0\x05I"));
    assert!(matches!(proxy.outcome().await, Outcome::LoggedIn { .. }));
}

#[tokio::test]
async fn malformed_openings_get_their_sqlstate() {
    let mut proxy = Proxy::start(AuthMethod::ScramSha256, None, false).await;
    let cases: [(&[u8], SqlState); 5] = [
        (b"GET / HTTP/1.1\r\n", SqlState::PROTOCOL_VIOLATION),
        (b"\0\0\0\x04", SqlState::PROTOCOL_VIOLATION),
        (b"\0\0\0\x09\0\x02\0\0\0", SqlState::FEATURE_NOT_SUPPORTED),
        (b"\0\0\0\x09\0\x03\0\0\0", SqlState::INVALID_AUTHORIZATION_SPECIFICATION),
        (b"\0\0\0\x09\0\x03\0\0x", SqlState::PROTOCOL_VIOLATION),
    ];
    for (bytes, code) in cases {
        let mut tcp = raw(&proxy, bytes).await;
        let mut header = [0; 5];
        tcp.read_exact(&mut header).await.unwrap();
        let mut body = vec![0; u32::from_be_bytes(header[1..].try_into().unwrap()) as usize - 4];
        tcp.read_exact(&mut body).await.unwrap();
        assert_eq!(ErrorView::parse(&body).unwrap().code, code, "{bytes:?}");
        assert!(matches!(proxy.outcome().await, Outcome::NotOpened(_)));
    }
    let mut login = Vec::new();
    encode_startup(&[("user", "plain")], &mut login).unwrap();
    for answer in [
        &b"Q\0\0\0\x05\0"[..],
        b"p\0\0\0\x03",
        b"p\x7f\0\0\0",
        b"p\0\0\0\x05M",
        b"p\0\0\0\x08M\0\0\0",
    ] {
        let _tcp = raw(&proxy, &[&login, answer].concat()).await;
        let outcome = proxy.outcome().await;
        assert!(
            matches!(outcome, Outcome::Failed(LoginFailure::Protocol(_))),
            "{answer:?}: {outcome:?}"
        );
    }
}

#[tokio::test]
async fn a_cancel_request_is_taken_even_where_tls_is_required() {
    let certificates = Certificates::make();
    let mut proxy = Proxy::start(AuthMethod::Trust, Some(certificates.acceptor("own")), true).await;
    let key = CancelKey {
        pid: 7,
        secret: vec![9; 32],
    };
    let mut bytes = Vec::new();
    key.encode_cancel_request(&mut bytes);
    let _tcp = raw(&proxy, &bytes).await;
    let Outcome::Cancel(received) = proxy.outcome().await else {
        panic!("no cancel request")
    };
    assert!(received == key);
}

#[tokio::test]
async fn direct_tls_needs_the_protocols_name() {
    use rustls::pki_types::pem::PemObject;
    let certificates = Certificates::make();
    let mut proxy = Proxy::start(AuthMethod::Trust, Some(certificates.acceptor("leaf")), true).await;
    let mut no_tls = Proxy::start(AuthMethod::Trust, None, false).await;
    let connect = async |proxy: &Proxy, alpn: &[&[u8]]| {
        let mut roots = rustls::RootCertStore::empty();
        let certificate = rustls::pki_types::CertificateDer::from_pem_file(certificates.path("leaf.crt")).unwrap();
        roots.add(certificate).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let tcp = TcpStream::connect(proxy.address).await.unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect("localhost".try_into().unwrap(), tcp)
            .await
    };

    let mut named = connect(&proxy, &[b"postgresql"]).await.unwrap();
    let mut login = Vec::new();
    encode_startup(&[("user", "plain")], &mut login).unwrap();
    named.write_all(&login).await.unwrap();
    named.flush().await.unwrap();
    assert_eq!(named.read_u8().await.unwrap(), b'R');
    assert!(matches!(
        proxy.outcome().await,
        Outcome::LoggedIn { encrypted: true, .. }
    ));

    let mut nameless = connect(&proxy, &[]).await.unwrap();
    assert!(matches!(
        proxy.outcome().await,
        Outcome::NotOpened(StartupError::NoAlpn)
    ));
    assert_eq!(nameless.read_u8().await.unwrap(), b'E');
    assert!(connect(&proxy, &[b"h2"]).await.is_err());
    assert!(matches!(
        proxy.outcome().await,
        Outcome::NotOpened(StartupError::Handshake(_))
    ));
    assert!(connect(&no_tls, &[b"postgresql"]).await.is_err());
    assert!(matches!(
        no_tls.outcome().await,
        Outcome::NotOpened(StartupError::TlsNotConfigured)
    ));
}
