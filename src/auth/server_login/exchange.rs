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
