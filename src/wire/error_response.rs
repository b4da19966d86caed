//! ErrorResponse and NoticeResponse: what the proxy says itself, and a look into what a node said.
//!
//! A node's error is forwarded as the bytes that arrived; [`ErrorView`] only borrows from them what a decision needs.
//! Manual: "Error and Notice Message Fields", section 55.8.

use std::borrow::Cow;

use bytes::BufMut;

use super::sqlstate::SqlState;

/// How bad it is (field `V`, which is never translated).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Severity {
    /// The server is going down with it. Only nodes say this.
    Panic,
    /// The connection ends.
    Fatal,
    /// The statement failed.
    Error,
    /// Something that deserves attention.
    Warning,
    /// Something that may be of interest.
    Notice,
    /// Only nodes say this.
    Info,
    /// Only nodes say this.
    Log,
    /// Only nodes say this; DEBUG1 to DEBUG5 are one on the wire.
    Debug,
}

impl Severity {
    /// As the protocol spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Panic => "PANIC",
            Severity::Fatal => "FATAL",
            Severity::Error => "ERROR",
            Severity::Warning => "WARNING",
            Severity::Notice => "NOTICE",
            Severity::Info => "INFO",
            Severity::Log => "LOG",
            Severity::Debug => "DEBUG",
        }
    }

    fn from_bytes(bytes: &[u8]) -> Option<Severity> {
        use Severity::*;
        [Panic, Fatal, Error, Warning, Notice, Info, Log, Debug]
            .into_iter()
            .find(|severity| severity.as_str().as_bytes() == bytes)
    }
}

/// An error or a notice of the proxy's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorFields {
    /// How bad it is.
    pub severity: Severity,
    /// What kind of trouble it is, for programs.
    pub code: SqlState,
    /// What happened, for people: one line, no full stop.
    pub message: Cow<'static, str>,
    /// More about it.
    pub detail: Option<Cow<'static, str>>,
    /// What to do about it.
    pub hint: Option<Cow<'static, str>>,
    /// The routine of the server's source by which drivers know the error.
    pub routine: Option<&'static str>,
}

impl ErrorFields {
    /// An error or a notice with a message alone.
    pub fn new(severity: Severity, code: SqlState, message: impl Into<Cow<'static, str>>) -> ErrorFields {
        ErrorFields {
            severity,
            code,
            message: message.into(),
            detail: None,
            hint: None,
            routine: None,
        }
    }

    /// The connection ends with it.
    pub fn fatal(code: SqlState, message: impl Into<Cow<'static, str>>) -> ErrorFields {
        ErrorFields::new(Severity::Fatal, code, message)
    }

    /// A statement failed; the connection goes on.
    pub fn error(code: SqlState, message: impl Into<Cow<'static, str>>) -> ErrorFields {
        ErrorFields::new(Severity::Error, code, message)
    }

    /// With more about it.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<Cow<'static, str>>) -> ErrorFields {
        self.detail = Some(detail.into());
        self
    }

    /// With what to do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<Cow<'static, str>>) -> ErrorFields {
        self.hint = Some(hint.into());
        self
    }

    /// As if raised in this routine of the server's.
    #[must_use]
    pub fn with_routine(mut self, routine: &'static str) -> ErrorFields {
        self.routine = Some(routine);
        self
    }

    /// Appends an ErrorResponse (`E`), tag and length included.
    pub fn encode_error(&self, out: &mut impl BufMut) {
        self.encode(b'E', out);
    }

    /// Appends a NoticeResponse (`N`), tag and length included.
    pub fn encode_notice(&self, out: &mut impl BufMut) {
        self.encode(b'N', out);
    }

    fn encode(&self, tag: u8, out: &mut impl BufMut) {
        let severity = self.severity.as_str();
        let fields: [(u8, Option<&str>); 7] = [
            (b'S', Some(severity)),
            (b'V', Some(severity)),
            (b'C', Some(self.code.as_str())),
            (b'M', Some(&self.message)),
            (b'D', self.detail.as_deref()),
            (b'H', self.hint.as_deref()),
            (b'R', self.routine),
        ];
        let present = || fields.iter().filter_map(|(kind, text)| Some((*kind, (*text)?)));
        let body: usize = present().map(|(_, text)| 2 + before_nul(text).len()).sum();
        out.put_u8(tag);
        out.put_u32(u32::try_from(4 + body + 1).expect("messages are far below 4 GiB"));
        for (kind, text) in present() {
            out.put_u8(kind);
            out.put_slice(before_nul(text));
            out.put_u8(0);
        }
        out.put_u8(0);
    }
}

/// A field ends at its first zero byte, so nothing behind one is sent: it would be read as another field.
fn before_nul(text: &str) -> &[u8] {
    text.as_bytes().split(|byte| *byte == 0).next().unwrap_or_default()
}

/// What a decision needs of a node's ErrorResponse or NoticeResponse, borrowed from its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorView<'a> {
    /// `V`, or `S` where the node is older than 9.6. `None` when neither is a word we know (`S` may be translated).
    pub severity: Option<Severity>,
    /// `C`.
    pub code: SqlState,
    /// `M`, in whatever encoding the node uses. Empty if there is none.
    pub message: &'a [u8],
    /// `D`
    pub detail: Option<&'a [u8]>,
    /// `H`
    pub hint: Option<&'a [u8]>,
}

impl<'a> ErrorView<'a> {
    /// Looks into a body: what follows the tag and the length. `None` if it isn't a list of fields or names no code.
    /// Allocates nothing.
    pub fn parse(body: &'a [u8]) -> Option<ErrorView<'a>> {
        let (mut plain, mut translated, mut code, mut message) = (None, None, None, None);
        let (mut detail, mut hint) = (None, None);
        let mut rest = body;
        while let [kind, tail @ ..] = rest
            && *kind != 0
        {
            let end = tail.iter().position(|byte| *byte == 0)?;
            let (text, after) = (&tail[..end], &tail[end + 1..]);
            match kind {
                b'V' => plain = Severity::from_bytes(text),
                b'S' => translated = Severity::from_bytes(text),
                b'C' => code = SqlState::from_bytes(text),
                b'M' => message = Some(text),
                b'D' => detail = Some(text),
                b'H' => hint = Some(text),
                _ => {}
            }
            rest = after;
        }
        Some(ErrorView {
            severity: plain.or(translated),
            code: code?,
            message: message.unwrap_or_default(),
            detail,
            hint,
        })
    }

    /// The message for a log or an error of ours, with what isn't UTF-8 replaced.
    pub fn message_text(&self) -> Cow<'a, str> {
        String::from_utf8_lossy(self.message)
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use pgwire::messages::response::ErrorResponse;
    use pgwire::messages::{DecodeContext, Message};
    use proptest::prelude::*;

    use super::*;

    fn sample() -> ErrorFields {
        ErrorFields::fatal(SqlState::CANNOT_CONNECT_NOW, "no primary")
            .with_detail("since 3 s")
            .with_hint("wait")
    }

    #[test]
    fn an_error_is_what_another_implementation_reads() {
        let mut bytes = BytesMut::new();
        sample().encode_error(&mut bytes);
        let decoded = ErrorResponse::decode(&mut bytes, &DecodeContext::default())
            .unwrap()
            .unwrap();
        let expected = [
            (b'S', "FATAL"),
            (b'V', "FATAL"),
            (b'C', "57P03"),
            (b'M', "no primary"),
            (b'D', "since 3 s"),
        ];
        for (kind, text) in expected {
            assert!(decoded.fields.contains(&(kind, text.to_owned())), "{text}");
        }
        assert!(decoded.fields.contains(&(b'H', "wait".to_owned())));
        assert!(bytes.is_empty());
    }

    #[test]
    fn a_view_reads_what_was_encoded() {
        let mut bytes = Vec::new();
        sample().encode_notice(&mut bytes);
        assert_eq!(bytes[0], b'N');
        let view = ErrorView::parse(&bytes[5..]).unwrap();
        assert_eq!(view.severity, Some(Severity::Fatal));
        assert_eq!(view.code, SqlState::CANNOT_CONNECT_NOW);
        assert_eq!(view.message, b"no primary");
        assert_eq!((view.detail, view.hint), (Some(&b"since 3 s"[..]), Some(&b"wait"[..])));
    }

    #[test]
    fn the_untranslated_severity_wins() {
        let view = ErrorView::parse(b"SFATALE\0VFATAL\0C57P01\0Maddio\0\0").unwrap();
        assert_eq!(view.severity, Some(Severity::Fatal));
        let old = ErrorView::parse(b"SERROR\0C57014\0\0").unwrap();
        assert_eq!((old.severity, old.message), (Some(Severity::Error), &b""[..]));
    }

    #[test]
    fn a_zero_byte_in_a_message_smuggles_no_field_in() {
        let mut bytes = Vec::new();
        ErrorFields::error(SqlState::INVALID_PASSWORD, "no\0C00000").encode_error(&mut bytes);
        let view = ErrorView::parse(&bytes[5..]).unwrap();
        assert_eq!((view.code, view.message), (SqlState::INVALID_PASSWORD, &b"no"[..]));
        assert_eq!(
            bytes.len(),
            1 + u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize
        );
    }

    proptest! {
        #[test]
        fn any_body_is_read_without_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = ErrorView::parse(&body);
        }
    }
}
