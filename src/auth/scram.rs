//! SCRAM-SHA-256 (RFC 5802 and 7677) for both roles: keys, verifiers, and what can go wrong. Pure: no I/O, nonces are arguments.
//!
//! [`server`] is the role towards clients, [`client`] the one towards nodes; each is a chain of states that consume themselves.
//! A proxy is in a lucky place: a client that proves that it knows its password thereby shows its *ClientKey*, and with that anyone
//! can log in wherever the password was hashed with the same salt and iterations. So a users file with the nodes' own verifiers is enough to log
//! in to them, and no password need be stored.
//!
//! Channel binding (SCRAM-SHA-256-PLUS) is neither offered nor asked for: towards clients it would tie the proof to a certificate
//! that the node doesn't have.

pub mod client;
pub mod server;

use std::borrow::Cow;
use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::wire::sqlstate::SqlState;

/// The name of the mechanism in SASL messages.
pub const MECHANISM: &str = "SCRAM-SHA-256";

/// PostgreSQL's default, and RFC 7677's minimum.
pub const DEFAULT_ITERATIONS: u32 = 4096;

/// A node that asks for more is refused: this many take about a second, and nobody configures nearly as many.
const MAX_ITERATIONS: u32 = 1_000_000;

/// SHA-256's output.
type Key = [u8; 32];

/// What went wrong in an exchange.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    /// The message isn't what RFC 5802 describes.
    #[error("malformed SCRAM message: {0}")]
    Malformed(&'static str),
    /// The client wants to act for someone else.
    #[error("client uses authorization identity, but it is not supported")]
    AuthorizationIdentity,
    /// `p=`: the client chose channel binding, which wasn't offered.
    #[error("client requires SCRAM channel binding, but it is not supported")]
    ChannelBinding,
    /// The second message repeats another channel-binding header than the first had.
    #[error("SCRAM channel binding check failed")]
    ChannelBindingMismatch,
    /// The other side doesn't repeat, or doesn't extend, our nonce: a replay.
    #[error("invalid SCRAM nonce")]
    Nonce,
    /// The client doesn't know the password.
    #[error("SCRAM proof does not match")]
    Proof,
    /// The server doesn't know the verifier: not the server it seems to be.
    #[error("the server could not prove that it knows the password's verifier")]
    ServerSignature,
    /// The server says why it gave up.
    #[error("the server reported a SCRAM error: {0}")]
    Server(String),
    /// More iterations than anyone configures.
    #[error("the server asks for {0} SCRAM iterations, more than is reasonable")]
    Iterations(u32),
    /// The keys at hand were made with another salt or another number of iterations than the node uses.
    #[error("the node's SCRAM verifier differs from the one in the users file")]
    KeysDontFit,
}

impl ScramError {
    /// For the client whose login failed by it.
    pub fn sqlstate(&self) -> SqlState {
        match self {
            ScramError::Malformed(_) | ScramError::ChannelBinding | ScramError::Nonce | ScramError::Iterations(_) => {
                SqlState::PROTOCOL_VIOLATION
            }
            ScramError::AuthorizationIdentity => SqlState::FEATURE_NOT_SUPPORTED,
            ScramError::Proof => SqlState::INVALID_PASSWORD,
            ScramError::ChannelBindingMismatch
            | ScramError::ServerSignature
            | ScramError::Server(_)
            | ScramError::KeysDontFit => SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
        }
    }
}

/// What a server stores (`pg_authid.rolpassword`): enough to check a proof, not enough to make one.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    iterations: u32,
    salt: Vec<u8>,
    stored_key: Key,
    server_key: Key,
}

impl Verifier {
    /// Reads `SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>`. `None` if it is anything else.
    pub fn parse(text: &str) -> Option<Verifier> {
        let rest = text.strip_prefix(MECHANISM)?.strip_prefix('$')?;
        let (parameters, keys) = rest.split_once('$')?;
        let (iterations, salt) = parameters.split_once(':')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        let verifier = Verifier {
            iterations: iterations.parse().ok().filter(|count| *count > 0)?,
            salt: BASE64_STANDARD.decode(salt).ok().filter(|salt| !salt.is_empty())?,
            stored_key: decode_key(stored_key)?,
            server_key: decode_key(server_key)?,
        };
        Some(verifier)
    }

    /// One that no proof matches, for users that don't exist: the exchange runs as for any other, and fails at its end.
    pub fn mock(salt: Vec<u8>, iterations: u32) -> Verifier {
        Verifier {
            iterations,
            salt,
            stored_key: random(),
            server_key: random(),
        }
    }

    /// Iterations, which are no secret.
    pub fn iterations(&self) -> u32 {
        self.iterations
    }
}

impl From<&ScramKeys> for Verifier {
    fn from(keys: &ScramKeys) -> Verifier {
        Verifier {
            iterations: keys.iterations,
            salt: keys.salt.clone(),
            stored_key: hash(&keys.client_key),
            server_key: keys.server_key,
        }
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier(…)")
    }
}

/// What a password comes to with one salt and number of iterations: as good as the password on every server that uses those.
#[derive(Clone)]
pub struct ScramKeys {
    iterations: u32,
    salt: Vec<u8>,
    client_key: Key,
    server_key: Key,
}

impl ScramKeys {
    /// Costs `iterations` rounds of hashing: milliseconds. Not for a thread that serves others.
    pub fn derive(password: &str, salt: &[u8], iterations: u32) -> ScramKeys {
        let salted = salted_password(prepared(password).as_bytes(), salt, iterations);
        ScramKeys {
            iterations,
            salt: salt.to_vec(),
            client_key: hmac(&salted, &[b"Client Key"]),
            server_key: hmac(&salted, &[b"Server Key"]),
        }
    }

    /// Whether they were made with this salt and number of iterations.
    pub fn fit(&self, salt: &[u8], iterations: u32) -> bool {
        self.iterations == iterations && self.salt == salt
    }
}

impl PartialEq for ScramKeys {
    fn eq(&self, other: &ScramKeys) -> bool {
        self.fit(&other.salt, other.iterations) && same(&self.client_key, &other.client_key)
    }
}

impl Eq for ScramKeys {}

impl fmt::Debug for ScramKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScramKeys(…)")
    }
}

/// 18 random bytes as text, as PostgreSQL makes them.
pub fn nonce() -> String {
    BASE64_STANDARD.encode(random::<18>())
}

/// From the system's source.
pub(super) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the system's random source works, or nothing here is safe");
    bytes
}

/// SASLprep, or the password as it is where that fails: PostgreSQL's rule, since passwords may be in any encoding.
fn prepared(password: &str) -> Cow<'_, str> {
    match stringprep::saslprep(password) {
        Ok(prepared) if !prepared.is_empty() => prepared,
        _ => Cow::Borrowed(password),
    }
}

/// RFC 5802's `Hi`: PBKDF2 with HMAC-SHA-256 and one block.
fn salted_password(password: &[u8], salt: &[u8], iterations: u32) -> Key {
    let keyed = keyed(password);
    let mut block: Key = keyed
        .clone()
        .chain_update(salt)
        .chain_update([0, 0, 0, 1])
        .finalize()
        .into_bytes()
        .into();
    let mut result = block;
    for _ in 1..iterations {
        block = keyed.clone().chain_update(block).finalize().into_bytes().into();
        result = xor(&result, &block);
    }
    result
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}

pub(super) fn hmac(key: &[u8], parts: &[&[u8]]) -> Key {
    parts
        .iter()
        .fold(keyed(key), |mac, part| mac.chain_update(part))
        .finalize()
        .into_bytes()
        .into()
}

fn hash(bytes: &[u8]) -> Key {
    Sha256::digest(bytes).into()
}

fn xor(left: &Key, right: &Key) -> Key {
    std::array::from_fn(|index| left[index] ^ right[index])
}

/// In a time that doesn't tell where they differ.
fn same(left: &Key, right: &Key) -> bool {
    left.ct_eq(right).into()
}

fn decode_key(text: &str) -> Option<Key> {
    BASE64_STANDARD.decode(text).ok()?.try_into().ok()
}

/// Takes `<letter>=<value>` off the front, up to the next comma or the end.
fn take_attribute<'a>(rest: &mut &'a str, letter: char) -> Option<&'a str> {
    let value = rest.strip_prefix(letter)?.strip_prefix('=')?;
    let (value, after) = value.split_once(',').unwrap_or((value, ""));
    *rest = after;
    Some(value)
}

/// RFC 5802's `printable`: visible ASCII without the comma.
fn is_nonce(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::client::Start;
    use super::server::Challenge;
    use super::*;

    /// RFC 7677, section 3.
    const SALT: &str = "W22ZaJ0SNY7soEsUEjb6gQ==";
    const CLIENT_NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
    const SERVER_NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    const CLIENT_FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const SERVER_FIRST: &str = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    const CLIENT_FINAL: &str =
        "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
    const SERVER_FINAL: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

    fn keys(password: &str) -> ScramKeys {
        ScramKeys::derive(password, &BASE64_STANDARD.decode(SALT).unwrap(), 4096)
    }

    fn challenged(verifier: &Verifier, client_first: &str) -> Result<Challenge, ScramError> {
        Challenge::new(client_first.as_bytes(), verifier.clone(), SERVER_NONCE)
    }

    #[test]
    fn the_server_follows_the_rfcs_example() {
        let verifier = Verifier::from(&keys("pencil"));
        let challenge = challenged(&verifier, CLIENT_FIRST).unwrap();
        assert_eq!(challenge.message(), SERVER_FIRST);
        let proven = challenge.check(CLIENT_FINAL.as_bytes()).unwrap();
        assert_eq!(proven.message, SERVER_FINAL);
        assert_eq!(proven.keys, keys("pencil"));
    }

    #[test]
    fn the_client_follows_the_rfcs_example() {
        let start = Start::new("user", CLIENT_NONCE);
        assert_eq!(start.message(), CLIENT_FIRST);
        let challenged = start.challenged(SERVER_FIRST.as_bytes()).unwrap();
        assert!(keys("pencil").fit(challenged.salt(), challenged.iterations()));
        let answered = challenged.answer(&keys("pencil")).unwrap();
        assert_eq!(answered.message(), CLIENT_FINAL);
        answered.verify(SERVER_FINAL.as_bytes()).unwrap();
    }

    #[test]
    fn keys_recovered_from_a_login_log_in_again() {
        let verifier = Verifier::from(&keys("pencil"));
        let login = |keys: &ScramKeys, nonce: &str| {
            let start = Start::new("", nonce);
            let challenge = Challenge::new(start.message().as_bytes(), verifier.clone(), "abc").unwrap();
            let answered = start
                .challenged(challenge.message().as_bytes())
                .unwrap()
                .answer(keys)
                .unwrap();
            let proven = challenge.check(answered.message().as_bytes())?;
            answered.verify(proven.message.as_bytes()).unwrap();
            Ok::<_, ScramError>(proven.keys)
        };
        let recovered = login(&keys("pencil"), "one").unwrap();
        login(&recovered, "two").unwrap();
        assert_eq!(login(&keys("pencils"), "three"), Err(ScramError::Proof));
    }

    #[test]
    fn a_mock_verifier_lets_nobody_in() {
        let mock = Verifier::mock(BASE64_STANDARD.decode(SALT).unwrap(), 4096);
        let challenge = challenged(&mock, CLIENT_FIRST).unwrap();
        assert_eq!(challenge.message(), SERVER_FIRST);
        assert_eq!(challenge.check(CLIENT_FINAL.as_bytes()).unwrap_err(), ScramError::Proof);
    }

    #[test]
    fn the_servers_verifier_is_read_and_nothing_else_is() {
        let text = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
        assert!(Verifier::parse(text).unwrap() == Verifier::from(&keys("pencil")));
        for bad in [
            "",
            "SCRAM-SHA-256",
            "SCRAM-SHA-256$0:aa==$a:b",
            "SCRAM-SHA-256$4096:!$a:b",
            &text[..text.len() - 4],
        ] {
            assert!(Verifier::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn flags_and_identities_that_are_not_supported_are_refused() {
        let verifier = Verifier::from(&keys("pencil"));
        let refused = |first: &str| challenged(&verifier, first).unwrap_err();
        assert_eq!(refused("p=tls-server-end-point,,n=,r=abc"), ScramError::ChannelBinding);
        assert_eq!(refused("n,a=admin,n=,r=abc"), ScramError::AuthorizationIdentity);
        for malformed in [
            "",
            "x,,n=,r=abc",
            "n",
            "n,",
            "n,,",
            "n,,r=abc",
            "n,,n=,r=",
            "n,,m=1,n=,r=a",
            "n,,n=,r=a\u{7f}",
        ] {
            assert!(matches!(refused(malformed), ScramError::Malformed(_)), "{malformed}");
        }
        challenged(&verifier, "y,,n=,r=abc,x=extension").unwrap();
    }

    #[test]
    fn a_final_message_that_changes_header_or_nonce_is_refused() {
        let verifier = Verifier::from(&keys("pencil"));
        let check = |first: &str, last: &str| {
            challenged(&verifier, first)
                .unwrap()
                .check(last.as_bytes())
                .unwrap_err()
        };
        assert_eq!(
            check(&CLIENT_FIRST.replacen('n', "y", 1), CLIENT_FINAL),
            ScramError::ChannelBindingMismatch
        );
        assert_eq!(
            check(CLIENT_FIRST, &CLIENT_FINAL.replace("r=rO", "r=xx")),
            ScramError::Nonce
        );
        assert_eq!(check(CLIENT_FIRST, &CLIENT_FINAL.replace("$k0", "")), ScramError::Nonce);
        assert_eq!(
            check(CLIENT_FIRST, &CLIENT_FINAL.replace("p=d", "p=e")),
            ScramError::Proof
        );
        for malformed in [
            "",
            "c=biws",
            &CLIENT_FINAL.replace("AndVQ=", ""),
            &CLIENT_FINAL.replace(",p=", ",q="),
        ] {
            assert!(
                matches!(check(CLIENT_FIRST, malformed), ScramError::Malformed(_)),
                "{malformed}"
            );
        }
    }

    #[test]
    fn the_client_believes_no_impostor() {
        let challenged = |first: &str| Start::new("user", CLIENT_NONCE).challenged(first.as_bytes());
        assert_eq!(
            challenged(&SERVER_FIRST.replace("r=rO", "r=xx")).unwrap_err(),
            ScramError::Nonce
        );
        assert_eq!(
            challenged("r=rOprNGfwEbeRWgbNEkqO,s=AAAA,i=1").unwrap_err(),
            ScramError::Nonce
        );
        let greedy = SERVER_FIRST.replace("i=4096", "i=4000000000");
        assert_eq!(challenged(&greedy).unwrap_err(), ScramError::Iterations(4_000_000_000));
        for malformed in [
            "",
            "r=",
            "i=4096",
            &SERVER_FIRST.replace("i=4096", "i=0"),
            &SERVER_FIRST.replace("s=W", "s=!"),
        ] {
            assert!(
                matches!(challenged(malformed), Err(ScramError::Malformed(_))),
                "{malformed}"
            );
        }
        let answered = challenged(SERVER_FIRST).unwrap().answer(&keys("pencil")).unwrap();
        let verify = |last: &str| answered.clone().verify(last.as_bytes()).unwrap_err();
        assert_eq!(verify(&SERVER_FINAL.replace("v=6", "v=7")), ScramError::ServerSignature);
        assert_eq!(verify("e=other-error"), ScramError::Server("other-error".to_owned()));
        assert!(matches!(verify(""), ScramError::Malformed(_)));
    }

    #[test]
    fn keys_for_another_salt_are_not_used() {
        let challenged = Start::new("user", CLIENT_NONCE)
            .challenged(SERVER_FIRST.as_bytes())
            .unwrap();
        let other = ScramKeys::derive("pencil", b"other salt", 4096);
        assert_eq!(challenged.answer(&other).unwrap_err(), ScramError::KeysDontFit);
    }

    #[test]
    fn passwords_are_prepared_where_that_works() {
        assert_eq!(prepared("I\u{ad}X"), "IX");
        assert_eq!(prepared("\u{2168}"), "IX");
        assert_eq!(prepared("tab\there"), "tab\there");
        assert_eq!(prepared("\u{ad}"), "\u{ad}");
    }

    #[test]
    fn secrets_stay_out_of_debug() {
        let shown = format!("{:?} {:?}", keys("pencil"), Verifier::from(&keys("pencil")));
        assert_eq!(shown, "ScramKeys(…) Verifier(…)");
    }

    proptest! {
        #[test]
        fn any_message_is_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80), text in "[nypracsive=,]{0,40}") {
            let verifier = Verifier::mock(vec![1], 1);
            for message in [&bytes[..], text.as_bytes()] {
                let _ = Challenge::new(message, verifier.clone(), "abc");
                let _ = challenged(&verifier, CLIENT_FIRST).unwrap().check(message);
                let _ = Start::new("u", "abc").challenged(message);
                let _ = Verifier::parse(&String::from_utf8_lossy(message));
            }
        }
    }
}
