//! The packets without a tag that open a connection: StartupMessage, CancelRequest, SSLRequest and GSSENCRequest, as bytes.
//!
//! Pure. Follows the server's `ProcessStartupPacket`: what it refuses is refused here with its SQLSTATE and nearly its words.

use bytes::BufMut;

use super::StartupError;

/// The longest packet a server reads before it knows who is there.
pub(super) const MAX_PACKET: usize = 10_000;

const CANCEL_CODE: u32 = 0x04D2_162E;
const SSL_CODE: u32 = 0x04D2_162F;
const GSSENC_CODE: u32 = 0x04D2_1630;

/// SSLRequest, as a client sends it.
pub const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xD2, 0x16, 0x2F];

/// What a client asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opening {
    /// A session.
    Startup(StartupParams),
    /// That another connection's statement be cancelled; this connection carries nothing else.
    Cancel(CancelKey),
}

/// A StartupMessage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartupParams {
    /// The minor version asked for: 0 for protocol 3.0, 2 for 3.2. Above what is spoken,
    /// [`negotiate_version_message`] must be the first answer.
    pub protocol_minor: u16,
    /// Never empty.
    pub user: String,
    /// The user's name unless given. Never empty.
    pub database: String,
    /// Everything else in the order sent, a repeated name included: `application_name`, `options`, `client_encoding`, ….
    /// The server lets the last one win.
    pub parameters: Vec<(String, String)>,
    /// `replication` as it was sent, when it asks for replication: `database`, `true`, `on`, …. `None` for `false`.
    pub replication: Option<String>,
    /// Names of protocol options (`_pq_.…`): none is known, so all belong into [`negotiate_version_message`].
    pub unsupported_options: Vec<String>,
}

impl StartupParams {
    /// The last value of a parameter; names are compared without regard to case, as the server does.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters
            .iter()
            .rev()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// Whether [`negotiate_version_message`] must be sent by someone who speaks 3.0 to 3.`newest_minor`.
    pub fn needs_negotiation(&self, newest_minor: u16) -> bool {
        self.protocol_minor > newest_minor || !self.unsupported_options.is_empty()
    }
}

/// What BackendKeyData tells a client and CancelRequest brings back. `Debug` shows only the process id.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct CancelKey {
    /// Process id; on the proxy's side only a number.
    pub pid: i32,
    /// 4 bytes in protocol 3.0, 4 to 256 in 3.2.
    pub secret: Vec<u8>,
}

impl std::fmt::Debug for CancelKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CancelKey({}, …)", self.pid)
    }
}

impl CancelKey {
    /// CancelRequest, as a client sends it.
    pub fn encode_cancel_request(&self, out: &mut impl BufMut) {
        out.put_u32(u32::try_from(12 + self.secret.len()).expect("a secret has at most 256 bytes"));
        out.put_u32(CANCEL_CODE);
        out.put_i32(self.pid);
        out.put_slice(&self.secret);
    }

    /// BackendKeyData (`K`), as a server sends it.
    pub fn encode_backend_key_data(&self, out: &mut impl BufMut) {
        out.put_u8(b'K');
        out.put_u32(u32::try_from(8 + self.secret.len()).expect("a secret has at most 256 bytes"));
        out.put_i32(self.pid);
        out.put_slice(&self.secret);
    }
}

/// NegotiateProtocolVersion (`v`): the newest version spoken, 3.`newest_minor` (in full, as every server has sent it and libpq reads
/// it), and the protocol options that are not known.
pub fn negotiate_version_message(newest_minor: u16, unsupported_options: &[String], out: &mut impl BufMut) {
    let names: usize = unsupported_options.iter().map(|name| name.len() + 1).sum();
    out.put_u8(b'v');
    out.put_u32(u32::try_from(12 + names).expect("the names came in a packet of 10,000 bytes"));
    out.put_u16(3);
    out.put_u16(newest_minor);
    out.put_u32(u32::try_from(unsupported_options.len()).expect("the names came in a packet of 10,000 bytes"));
    for name in unsupported_options {
        out.put_slice(name.as_bytes());
        out.put_u8(0);
    }
}

/// StartupMessage for protocol 3.2, as a client sends it; a server that knows no more than 3.0 says so and goes on (manual, "Message Formats",
/// NegotiateProtocolVersion). `None` if a zero byte in a name or value would make another packet of it.
pub fn encode_startup(parameters: &[(&str, &str)], out: &mut Vec<u8>) -> Option<()> {
    let start = out.len();
    out.put_u32(0);
    out.put_u32(0x0003_0002);
    for (name, value) in parameters {
        if name.is_empty() || name.contains('\0') || value.contains('\0') {
            return None;
        }
        for text in [name, value] {
            out.put_slice(text.as_bytes());
            out.put_u8(0);
        }
    }
    out.put_u8(0);
    let length = u32::try_from(out.len() - start).ok()?;
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
    Some(())
}

/// One packet, read and understood.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Packet {
    SslRequest,
    GssEncRequest,
    Opening(Opening),
}

/// The number of bytes that follow a packet's length field.
pub(super) fn body_length(length_field: [u8; 4]) -> Result<usize, StartupError> {
    let length = u32::from_be_bytes(length_field);
    match usize::try_from(length) {
        Ok(length) if (8..=MAX_PACKET + 4).contains(&length) => Ok(length - 4),
        _ => Err(StartupError::PacketLength(length)),
    }
}

impl Packet {
    /// Reads what follows the length field.
    pub(super) fn parse(body: &[u8]) -> Result<Packet, StartupError> {
        let Some((code, rest)) = body.split_first_chunk::<4>() else {
            return Err(StartupError::Layout("it holds no version"));
        };
        match u32::from_be_bytes(*code) {
            CANCEL_CODE => Ok(Packet::Opening(Opening::Cancel(parse_cancel(rest)?))),
            SSL_CODE if rest.is_empty() => Ok(Packet::SslRequest),
            GSSENC_CODE if rest.is_empty() => Ok(Packet::GssEncRequest),
            version => Ok(Packet::Opening(Opening::Startup(parse_startup(version, rest)?))),
        }
    }
}

fn parse_cancel(rest: &[u8]) -> Result<CancelKey, StartupError> {
    let Some((pid, secret)) = rest.split_first_chunk::<4>() else {
        return Err(StartupError::CancelLength(rest.len()));
    };
    if !(4..=256).contains(&secret.len()) {
        return Err(StartupError::CancelLength(rest.len()));
    }
    Ok(CancelKey {
        pid: i32::from_be_bytes(*pid),
        secret: secret.to_vec(),
    })
}

fn parse_startup(version: u32, mut rest: &[u8]) -> Result<StartupParams, StartupError> {
    let (major, protocol_minor) = ((version >> 16) as u16, (version & 0xFFFF) as u16);
    if major != 3 {
        return Err(StartupError::UnsupportedProtocol {
            major,
            minor: protocol_minor,
        });
    }
    let (mut user, mut database, mut replication) = (None, None, None);
    let (mut parameters, mut unsupported_options) = (Vec::new(), Vec::new());
    loop {
        let name = take_text(&mut rest)?;
        if name.is_empty() {
            break;
        }
        let name = text(name, "a parameter's name")?;
        let value = take_text(&mut rest)?;
        match name.as_str() {
            "user" => user = Some(text(value, "user")?),
            "database" => database = Some(text(value, "database")?),
            "replication" => replication = asked_replication(text(value, "replication")?)?,
            "application_name" => parameters.push((name, clean_ascii(value))),
            protocol_option if protocol_option.starts_with("_pq_.") => unsupported_options.push(name),
            _ => {
                let value = text(value, &name)?;
                parameters.push((name, value));
            }
        }
    }
    if !rest.is_empty() {
        return Err(StartupError::Layout("expected terminator as last byte"));
    }
    let user = user.filter(|name| !name.is_empty()).ok_or(StartupError::NoUser)?;
    let database = database.filter(|name| !name.is_empty()).unwrap_or_else(|| user.clone());
    Ok(StartupParams {
        protocol_minor,
        user,
        database,
        parameters,
        replication,
        unsupported_options,
    })
}

/// The bytes before the next zero byte, which is skipped.
fn take_text<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], StartupError> {
    let end = rest
        .iter()
        .position(|byte| *byte == 0)
        .ok_or(StartupError::Layout("a text has no end"))?;
    let (text, after) = (&rest[..end], &rest[end + 1..]);
    *rest = after;
    Ok(text)
}

/// Names and values are compared, logged and sent on as text; before anyone has logged in there is no encoding to convert from.
fn text(bytes: &[u8], what: &str) -> Result<String, StartupError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| StartupError::NotUtf8(what.to_owned()))
}

/// The server itself keeps `application_name` in ASCII, with `?` for the rest.
fn clean_ascii(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|byte| {
            if (32..127).contains(byte) {
                char::from(*byte)
            } else {
                '?'
            }
        })
        .collect()
}

/// `database`, or a boolean as the server's `parse_bool` reads one: any unambiguous beginning of a word.
fn asked_replication(value: String) -> Result<Option<String>, StartupError> {
    let lower = value.to_ascii_lowercase();
    let begins = |word: &str, least: usize| lower.len() >= least && word.starts_with(&lower);
    if value == "database" || lower == "1" || begins("true", 1) || begins("yes", 1) || begins("on", 2) {
        Ok(Some(value))
    } else if lower == "0" || begins("false", 1) || begins("no", 1) || begins("off", 2) {
        Ok(None)
    } else {
        Err(StartupError::Replication(value))
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use pgwire::messages::startup::{BackendKeyData, NegotiateProtocolVersion, SecretKey};
    use pgwire::messages::{DecodeContext, Message};
    use proptest::prelude::*;

    use super::*;

    fn startup(version: u32, pairs: &[(&str, &str)]) -> Vec<u8> {
        let mut packet = Vec::new();
        encode_startup(pairs, &mut packet).unwrap();
        packet[4..8].copy_from_slice(&version.to_be_bytes());
        packet[4..].to_vec()
    }

    fn parse(version: u32, pairs: &[(&str, &str)]) -> Result<StartupParams, StartupError> {
        match Packet::parse(&startup(version, pairs))? {
            Packet::Opening(Opening::Startup(params)) => Ok(params),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn parameters_keep_their_order_and_what_is_special_is_taken_out() {
        let pairs = [
            ("database", "d"),
            ("DateStyle", "ISO"),
            ("user", "u"),
            ("_pq_.future", "1"),
            ("application_name", "caf\u{e9}"),
            ("DateStyle", "German"),
        ];
        let params = parse(0x0003_0002, &pairs).unwrap();
        assert_eq!((&*params.user, &*params.database, params.protocol_minor), ("u", "d", 2));
        let names: Vec<&str> = params.parameters.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names, ["DateStyle", "application_name", "DateStyle"]);
        assert_eq!(params.parameter("datestyle"), Some("German"));
        assert_eq!(params.parameter("application_name"), Some("caf??"));
        assert_eq!(params.unsupported_options, ["_pq_.future"]);
        assert!(params.needs_negotiation(2));
    }

    #[test]
    fn the_database_is_the_users_unless_named() {
        assert_eq!(parse(0x0003_0000, &[("user", "u")]).unwrap().database, "u");
        assert_eq!(
            parse(0x0003_0000, &[("user", "u"), ("database", "")]).unwrap().database,
            "u"
        );
        assert_eq!(parse(0x0003_0000, &[("user", "")]), Err(StartupError::NoUser));
        assert_eq!(parse(0x0003_0000, &[("database", "d")]), Err(StartupError::NoUser));
    }

    #[test]
    fn replication_is_read_as_the_server_reads_it() {
        let asked =
            |value| parse(0x0003_0000, &[("user", "u"), ("replication", value)]).map(|params| params.replication);
        for yes in ["database", "true", "T", "on", "1", "yes"] {
            assert_eq!(asked(yes), Ok(Some(yes.to_owned())));
        }
        for no in ["false", "off", "0", "n"] {
            assert_eq!(asked(no), Ok(None));
        }
        for bad in ["o", "", "maybe", "Database"] {
            assert_eq!(asked(bad), Err(StartupError::Replication(bad.to_owned())));
        }
    }

    #[test]
    fn other_major_versions_are_refused() {
        for version in [0x0002_0000, 0x0004_0000, 0] {
            assert!(matches!(
                parse(version, &[("user", "u")]),
                Err(StartupError::UnsupportedProtocol { .. })
            ));
        }
    }

    #[test]
    fn malformed_packets_are_refused() {
        let bodies: [&[u8]; 6] = [
            b"",
            b"\0\x03\0\0",
            b"\0\x03\0\0user\0u\0",
            b"\0\x03\0\0user\0u",
            b"\0\x03\0\0user\0u\0\0x",
            b"\0\x03\0\0user\0\xff\0\0",
        ];
        for body in bodies {
            Packet::parse(body).unwrap_err();
        }
        for (length, valid) in [
            (0, false),
            (7, false),
            (8, true),
            (10_004, true),
            (10_005, false),
            (u32::MAX, false),
        ] {
            assert_eq!(body_length(u32::to_be_bytes(length)).is_ok(), valid, "{length}");
        }
    }

    #[test]
    fn cancel_keys_of_every_length_survive_and_others_are_refused() {
        for length in [4, 32, 256] {
            let key = CancelKey {
                pid: -5,
                secret: vec![7; length],
            };
            let mut bytes = Vec::new();
            key.encode_cancel_request(&mut bytes);
            assert_eq!(body_length(bytes[..4].try_into().unwrap()).unwrap(), bytes.len() - 4);
            assert_eq!(
                Packet::parse(&bytes[4..]).unwrap(),
                Packet::Opening(Opening::Cancel(key))
            );
        }
        for length in [0, 3, 257] {
            let mut bytes = Vec::new();
            CancelKey {
                pid: 1,
                secret: vec![7; length],
            }
            .encode_cancel_request(&mut bytes);
            Packet::parse(&bytes[4..]).unwrap_err();
        }
    }

    #[test]
    fn replies_are_what_another_implementation_reads() {
        let mut bytes = BytesMut::new();
        negotiate_version_message(2, &["_pq_.a".to_owned(), "_pq_.b".to_owned()], &mut bytes);
        CancelKey {
            pid: 77,
            secret: vec![1, 2, 3, 4],
        }
        .encode_backend_key_data(&mut bytes);
        let context = DecodeContext::default();
        let negotiated = NegotiateProtocolVersion::decode(&mut bytes, &context).unwrap().unwrap();
        assert_eq!(negotiated.newest_minor_protocol, 0x0003_0002);
        assert_eq!(negotiated.unsupported_options, ["_pq_.a", "_pq_.b"]);
        let key = BackendKeyData::decode(&mut bytes, &context).unwrap().unwrap();
        assert!(key.pid == 77 && key.secret_key.eq_value(&SecretKey::I32(0x0102_0304)));
        assert!(bytes.is_empty());
    }

    #[test]
    fn a_zero_byte_makes_no_startup_packet() {
        assert_eq!(encode_startup(&[("user", "u\0database\0x")], &mut Vec::new()), None);
    }

    proptest! {
        #[test]
        fn any_packet_is_read_without_panic(body in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Packet::parse(&body);
            let mut startup = vec![0, 3, 0, 0];
            startup.extend(&body);
            let _ = Packet::parse(&startup);
        }
    }
}
