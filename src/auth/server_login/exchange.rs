//! What is said between StartupMessage and ReadyForQuery.
//!
//! ```text
//! Asked ─┬─ password or md5 ─▶ Answered ─┐
//!        ├─ SASL ─▶ Introduced ─ continue ─▶ Proving ─ final, verified ─▶ Answered
//!        └─────────── Ok (trust) ────────┴─ Ok ─▶ LoggedIn ─ … ReadyForQuery
//! ```
//! An Ok in any other state is refused: a server that skips its own proof is not the one that has the verifier.

use std::borrow::Cow;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{ServerLogin, ServerLoginError, ServerSession};
use crate::auth::md5::Md5Hash;
use crate::auth::message::{self, request};
use crate::auth::scram::{self, ScramError, client};
use crate::auth::secret::NodeSecret;
use crate::wire::startup::encode_startup;
use crate::wire::stream::Stream;

/// All that a node may say before it is ready: some dozen ParameterStatus, and notices.
const MAX_RECEIVED: usize = 256 * 1024;

/// How far the login has come.
enum Phase {
    /// The StartupMessage is out.
    Asked,
    /// client-first-message is out.
    Introduced(client::Start),
    /// client-final-message is out; the server must prove itself.
    Proving(client::Answered),
    /// A proof is out, and the server's own, if it owes one, was right.
    Answered,
    /// AuthenticationOk came.
    LoggedIn,
}

/// A connection to a node before it is ready.
pub(super) struct Exchange {
    stream: Stream,
    /// Received, not yet understood.
    buffer: BytesMut,
    /// Received so far, all in all.
    received: usize,
    pid: i32,
    secret_key: Vec<u8>,
    parameters: Vec<(String, String)>,
}

impl Exchange {
    pub(super) fn new(stream: Stream) -> Exchange {
        let buffer = BytesMut::with_capacity(4096);
        Exchange {
            stream,
            buffer,
            received: 0,
            pid: 0,
            secret_key: Vec::new(),
            parameters: Vec::new(),
        }
    }

    /// Until ReadyForQuery, and until everything that came along with it is read too, such as a parameter that has just changed.
    pub(super) async fn log_in(mut self, login: &ServerLogin<'_>) -> Result<ServerSession, ServerLoginError> {
        self.ask(login).await?;
        let mut phase = Phase::Asked;
        let mut ready = false;
        while !ready || !self.buffer.is_empty() {
            let (tag, body) = self.next_message().await?;
            match (tag, &phase) {
                (b'E', _) => return Err(ServerLoginError::refused(body)),
                (b'N', _) => {}
                // An older version of the protocol: what 3.2 adds is a longer key, and that comes or doesn't.
                (b'v', Phase::Asked) => {}
                (b'R', _) => phase = self.authenticate(phase, &body, login.user, login.secret).await?,
                (b'S', Phase::LoggedIn) => self.note_parameter(&body)?,
                (b'K', Phase::LoggedIn) => self.note_key(&body)?,
                (b'Z', Phase::LoggedIn) => ready = true,
                (other, _) => {
                    return Err(violation(format!(
                        "unexpected message {:?} at login",
                        char::from(other)
                    )));
                }
            }
        }
        let Exchange {
            stream,
            pid,
            secret_key,
            parameters,
            ..
        } = self;
        Ok(ServerSession {
            stream,
            pid,
            secret_key,
            parameters,
        })
    }

    async fn ask(&mut self, login: &ServerLogin<'_>) -> Result<(), ServerLoginError> {
        let mut parameters = vec![("user", login.user), ("database", login.database)];
        parameters.extend_from_slice(login.parameters);
        let mut packet = Vec::new();
        encode_startup(&parameters, &mut packet)
            .ok_or_else(|| violation("a start-up parameter has an empty name or a zero byte"))?;
        self.send(&packet).await
    }

    /// Answers an AuthenticationRequest.
    async fn authenticate(
        &mut self,
        phase: Phase,
        mut body: &[u8],
        user: &str,
        secret: Option<&NodeSecret>,
    ) -> Result<Phase, ServerLoginError> {
        let kind = body
            .try_get_i32()
            .map_err(|_| violation("malformed AuthenticationRequest"))?;
        let mut out = Vec::new();
        let next = match (kind, phase) {
            (request::OK, Phase::Asked | Phase::Answered) => return Ok(Phase::LoggedIn),
            (request::OK, Phase::Introduced(_) | Phase::Proving(_)) => {
                return Err(ServerLoginError::Scram(ScramError::ServerSignature));
            }
            (request::CLEARTEXT, Phase::Asked) => {
                message::put_password(cleartext(secret)?, &mut out);
                Phase::Answered
            }
            (request::MD5, Phase::Asked) => {
                let salt = body.try_into().map_err(|_| violation("malformed md5 request"))?;
                message::put_password(&md5_hash(user, secret)?.answer(salt), &mut out);
                Phase::Answered
            }
            (request::SASL, Phase::Asked) => {
                if !body
                    .split(|byte| *byte == 0)
                    .any(|mechanism| mechanism == scram::MECHANISM.as_bytes())
                {
                    return Err(ServerLoginError::UnsupportedAuth(kind));
                }
                fit_for_scram(secret)?;
                let start = client::Start::new("", &scram::nonce());
                message::put_sasl_initial(scram::MECHANISM, start.message().as_bytes(), &mut out);
                Phase::Introduced(start)
            }
            (request::SASL_CONTINUE, Phase::Introduced(start)) => {
                let answered = prove(start.challenged(body).map_err(ServerLoginError::Scram)?, secret).await?;
                message::put_sasl_response(answered.message().as_bytes(), &mut out);
                Phase::Proving(answered)
            }
            (request::SASL_FINAL, Phase::Proving(answered)) => {
                answered.verify(body).map_err(ServerLoginError::Scram)?;
                return Ok(Phase::Answered);
            }
            (
                request::OK
                | request::CLEARTEXT
                | request::MD5
                | request::SASL
                | request::SASL_CONTINUE
                | request::SASL_FINAL,
                _,
            ) => return Err(violation(format!("authentication request {kind} out of turn"))),
            (unknown, _) => return Err(ServerLoginError::UnsupportedAuth(unknown)),
        };
        self.send(&out).await?;
        Ok(next)
    }

    fn note_parameter(&mut self, body: &[u8]) -> Result<(), ServerLoginError> {
        let mut texts = body
            .split(|byte| *byte == 0)
            .map(|text| String::from_utf8_lossy(text).into_owned());
        let (Some(name), Some(value), Some(_end)) = (texts.next(), texts.next(), texts.next()) else {
            return Err(violation("malformed ParameterStatus"));
        };
        match self.parameters.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value,
            None => self.parameters.push((name, value)),
        }
        Ok(())
    }

    fn note_key(&mut self, body: &[u8]) -> Result<(), ServerLoginError> {
        let Some((pid, key)) = body
            .split_first_chunk::<4>()
            .filter(|(_, key)| (4..=256).contains(&key.len()))
        else {
            return Err(violation("malformed BackendKeyData"));
        };
        self.pid = i32::from_be_bytes(*pid);
        self.secret_key = key.to_vec();
        Ok(())
    }

    /// A whole message: its tag and its body.
    async fn next_message(&mut self) -> Result<(u8, Bytes), ServerLoginError> {
        loop {
            if let Some(message) = take_message(&mut self.buffer)? {
                return Ok(message);
            }
            if self.received > MAX_RECEIVED {
                return Err(violation("the login is longer than 256 KB"));
            }
            match self.stream.read_buf(&mut self.buffer).await? {
                0 => return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
                received => self.received += received,
            }
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), ServerLoginError> {
        self.stream.write_all(bytes).await?;
        Ok(self.stream.flush().await?)
    }
}

/// Takes a message off the front of what was received; `None` while it isn't complete.
fn take_message(buffer: &mut BytesMut) -> Result<Option<(u8, Bytes)>, ServerLoginError> {
    let Some(&[tag, length @ ..]) = buffer.first_chunk::<5>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(length);
    let length = usize::try_from(length)
        .ok()
        .filter(|length| (4..=MAX_RECEIVED).contains(length))
        .ok_or_else(|| violation(format!("message {:?} of {length} bytes at login", char::from(tag))))?;
    if buffer.len() < 1 + length {
        return Ok(None);
    }
    let mut message = buffer.split_to(1 + length).freeze();
    message.advance(5);
    Ok(Some((tag, message)))
}

fn cleartext(secret: Option<&NodeSecret>) -> Result<&str, ServerLoginError> {
    match secret.ok_or(ServerLoginError::PasswordNeeded)? {
        NodeSecret::Plain(password) => Ok(password.text()),
        other => Err(ServerLoginError::SecretUnfit {
            asked: "the password itself",
            have: other.kind(),
        }),
    }
}

fn md5_hash<'a>(user: &str, secret: Option<&'a NodeSecret>) -> Result<Cow<'a, Md5Hash>, ServerLoginError> {
    match secret.ok_or(ServerLoginError::PasswordNeeded)? {
        NodeSecret::Plain(password) => Ok(Cow::Owned(Md5Hash::of(password.text(), user))),
        NodeSecret::Md5(hash) => Ok(Cow::Borrowed(hash)),
        other => Err(ServerLoginError::SecretUnfit {
            asked: "md5",
            have: other.kind(),
        }),
    }
}

/// Before anything is said, since an exchange that can't end well would count as a failed login in the node's log.
fn fit_for_scram(secret: Option<&NodeSecret>) -> Result<(), ServerLoginError> {
    match secret.ok_or(ServerLoginError::PasswordNeeded)? {
        NodeSecret::Plain(_) | NodeSecret::Scram(_) => Ok(()),
        other => Err(ServerLoginError::SecretUnfit {
            asked: "SCRAM-SHA-256",
            have: other.kind(),
        }),
    }
}

async fn prove(
    challenged: client::Challenged,
    secret: Option<&NodeSecret>,
) -> Result<client::Answered, ServerLoginError> {
    let keys = match secret.ok_or(ServerLoginError::PasswordNeeded)? {
        NodeSecret::Plain(password) => password.scram_keys(challenged.salt(), challenged.iterations()).await,
        NodeSecret::Scram(keys) => keys.clone(),
        other => {
            return Err(ServerLoginError::SecretUnfit {
                asked: "SCRAM-SHA-256",
                have: other.kind(),
            });
        }
    };
    challenged.answer(&keys).map_err(ServerLoginError::Scram)
}

fn violation(what: impl Into<String>) -> ServerLoginError {
    ServerLoginError::Protocol(what.into())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::auth::scram::{Verifier, server::Challenge};
    use crate::auth::server_login::connect;
    use crate::config::NodeAddress;
    use crate::wire::error_response::ErrorFields;
    use crate::wire::sqlstate::SqlState;
    use crate::wire::tls::NodeTlsConnector;

    const OK: &[u8] = b"R\0\0\0\x08\0\0\0\0";
    const READY: &[u8] = b"Z\0\0\0\x05I";

    /// Logs in, with a password, to a server that does what `play` does after it has read the StartupMessage.
    async fn login_to<F>(play: impl FnOnce(TcpStream) -> F + Send + 'static) -> Result<ServerSession, ServerLoginError>
    where
        F: Future<Output = ()> + Send,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = NodeAddress {
            host: "127.0.0.1".to_owned(),
            port: listener.local_addr().unwrap().port(),
        };
        let (tls, secret) = (NodeTlsConnector::disabled(), NodeSecret::plain("pencil"));
        let login = ServerLogin {
            address: &address,
            user: "u",
            database: "d",
            parameters: &[],
            secret: Some(&secret),
            tls: &tls,
            timeout: Duration::from_secs(20),
        };
        tokio::spawn(async move {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let length = tcp.read_u32().await.unwrap() as usize;
            tcp.read_exact(&mut vec![0; length - 4]).await.unwrap();
            play(tcp).await;
        });
        connect(login).await
    }

    /// Logs in to a server that says this and closes.
    async fn login_to_one_that_says(parts: &[&[u8]]) -> Result<ServerSession, ServerLoginError> {
        let bytes = parts.concat();
        login_to(async move |mut tcp| {
            let _ = tcp.write_all(&bytes).await;
            let _ = tcp.shutdown().await;
            let _ = tcp.read(&mut [0; 64]).await;
        })
        .await
    }

    fn parameter(name: &str, value: &str) -> Vec<u8> {
        let body = format!("{name}\0{value}\0");
        [
            &b"S"[..],
            &u32::try_from(body.len() + 4).unwrap().to_be_bytes(),
            body.as_bytes(),
        ]
        .concat()
    }

    #[tokio::test]
    async fn all_that_comes_with_ready_for_query_is_read() {
        let negotiated = b"v\0\0\0\x0c\0\x03\0\0\0\0\0\0";
        let mut notice = Vec::new();
        ErrorFields::error(SqlState::WARNING, "mind the gap").encode_notice(&mut notice);
        let (before, after) = (parameter("in_hot_standby", "on"), parameter("in_hot_standby", "off"));
        let key = b"K\0\0\0\x0c\0\0\0\x07abcd";
        let session = login_to_one_that_says(&[negotiated, &notice, OK, &before, key, READY, &after])
            .await
            .unwrap();
        assert_eq!(session.parameters, [("in_hot_standby".to_owned(), "off".to_owned())]);
        assert_eq!((session.pid, &session.secret_key[..]), (7, &b"abcd"[..]));
    }

    #[tokio::test]
    async fn what_no_server_says_is_a_violation() {
        let long = parameter("x", &"y".repeat(MAX_RECEIVED));
        let many = parameter("x", "y").repeat(MAX_RECEIVED / 8);
        let cases: [&[&[u8]]; 10] = [
            &[READY],
            &[b"S\0\0\0\x08a\0b\0", OK],
            &[OK, b"T\0\0\0\x04"],
            &[OK, b"S\0\0\0\x06ab"],
            &[OK, b"K\0\0\0\x08\0\0\0\x07"],
            &[b"R\0\0\0\x04"],
            &[b"E\0\0\0\x05\0"],
            &[b"HTTP/1.1 400 Bad Request\r\n"],
            &[OK, &long],
            &[OK, &many],
        ];
        for (number, says) in cases.into_iter().enumerate() {
            let error = login_to_one_that_says(says).await.unwrap_err();
            assert!(matches!(error, ServerLoginError::Protocol(_)), "{number}: {error:?}");
        }
        let error = login_to_one_that_says(&[b"R\0\0\0\x08\0\0\0\x07"]).await.unwrap_err();
        assert!(matches!(error, ServerLoginError::UnsupportedAuth(7)), "{error:?}");
        let error = login_to_one_that_says(&[b"R\0\0\0\x1d\0\0\0\x0aSCRAM-SHA-512-PLUS\0\0\0"])
            .await
            .unwrap_err();
        assert!(matches!(error, ServerLoginError::UnsupportedAuth(10)), "{error:?}");
    }

    #[tokio::test]
    async fn a_node_that_stops_or_breaks_off_is_down() {
        for code in [SqlState::CANNOT_CONNECT_NOW, SqlState::ADMIN_SHUTDOWN] {
            let mut refusal = Vec::new();
            ErrorFields::fatal(code, "not now").encode_error(&mut refusal);
            let error = login_to_one_that_says(&[&refusal]).await.unwrap_err();
            assert!(error.is_node_down() && error.sqlstate() == code, "{error:?}");
        }
        for says in [&b""[..], b"R\0\0", OK] {
            let error = login_to_one_that_says(&[says]).await.unwrap_err();
            assert!(
                matches!(error, ServerLoginError::Unreachable(_)) && error.is_node_down(),
                "{error:?}"
            );
        }
    }

    async fn read_body(tcp: &mut TcpStream) -> Vec<u8> {
        assert_eq!(tcp.read_u8().await.unwrap(), b'p');
        let mut body = vec![0; tcp.read_u32().await.unwrap() as usize - 4];
        tcp.read_exact(&mut body).await.unwrap();
        body
    }

    #[tokio::test]
    async fn a_server_that_cannot_prove_itself_is_not_believed() {
        let last_words: [&[(i32, &[u8])]; 3] = [
            &[(request::OK, b"")],
            &[
                (request::SASL_FINAL, b"v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
                (request::OK, b""),
            ],
            &[(request::SASL_FINAL, b""), (request::OK, b"")],
        ];
        for words in last_words {
            let error = login_to(async move |mut tcp| {
                let mut out = Vec::new();
                message::put_request(request::SASL, b"SCRAM-SHA-256\0\0", &mut out);
                tcp.write_all(&out).await.unwrap();
                let body = read_body(&mut tcp).await;
                let (_, client_first) = message::sasl_initial(&body).unwrap();
                let challenge = Challenge::new(client_first, Verifier::mock(vec![1], 1), "abc").unwrap();
                out.clear();
                message::put_request(request::SASL_CONTINUE, challenge.message().as_bytes(), &mut out);
                tcp.write_all(&out).await.unwrap();
                read_body(&mut tcp).await;
                out.clear();
                for (kind, data) in words {
                    message::put_request(*kind, data, &mut out);
                }
                out.extend(READY);
                tcp.write_all(&out).await.unwrap();
            })
            .await
            .unwrap_err();
            assert!(matches!(error, ServerLoginError::Scram(_)), "{error:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = take_message(&mut buffer) {}
        }
    }
}
