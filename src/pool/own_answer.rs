//! A server's answer to what is asked of it on the proxy's own account. Pure.

use std::io;

use bytes::{Buf, BytesMut};

use crate::wire::backend::{ReplyScanner, Step, TransactionStatus, parameter_status};
use crate::wire::error_response::{ErrorView, Severity};
use crate::wire::frame::{HEADER, header};
use crate::wire::sqlstate::SqlState;

/// What has come of an answer so far.
#[derive(Debug)]
pub(super) struct OwnAnswer {
    scanner: ReplyScanner,
    /// ReadyForQuery that are still to come.
    left: u32,
    /// Answers of somebody else behind it, which an error takes with it.
    behind: u32,
    /// The parameters that were reported.
    pub(super) reported: Vec<(String, String)>,
    /// The first column of a row, if one came that isn't too large to wait for; `None` in it for NULL.
    pub(super) row: Option<Option<Box<[u8]>>>,
    /// The first error's code and message.
    pub(super) refused: Option<(SqlState, String)>,
    /// What the server said of its transaction.
    pub(super) status: Option<TransactionStatus>,
    /// Notifications, as whole messages.
    pub(super) overheard: Vec<u8>,
    /// Notices, as whole messages.
    pub(super) remarks: Vec<u8>,
}

impl OwnAnswer {
    /// One to a single Query, behind which stand `behind` answers to what was sent with it.
    pub(super) fn before(behind: u32) -> OwnAnswer {
        OwnAnswer {
            scanner: ReplyScanner::default(),
            left: 1,
            behind,
            reported: Vec::new(),
            row: None,
            refused: None,
            status: None,
            overheard: Vec::new(),
            remarks: Vec::new(),
        }
    }

    /// All of it has come.
    pub(super) fn is_over(&self) -> bool {
        self.left == 0
    }

    /// Takes what is its own from the front of `buffer`.
    ///
    /// # Errors
    /// The server ends the session, also where it has said before that it is ready for more; or what comes isn't the protocol.
    pub(super) fn take(&mut self, buffer: &mut BytesMut) -> io::Result<()> {
        self.go_through(buffer, false)
    }

    /// As [`OwnAnswer::take`], and what stands behind it: nobody else has asked for anything.
    ///
    /// # Errors
    /// As [`OwnAnswer::take`].
    pub(super) fn take_all(&mut self, buffer: &mut BytesMut) -> io::Result<()> {
        self.go_through(buffer, true)
    }

    fn go_through(&mut self, buffer: &mut BytesMut, all: bool) -> io::Result<()> {
        let mut at = 0;
        while at < buffer.len() && (all || !self.is_over()) {
            match self.scanner.step(buffer, at) {
                Step::Opaque { end } => {
                    if let Some(body) = whole_row(&buffer[at..end]) {
                        self.row = Some(first_column(body).map(Box::from));
                    }
                    at = end;
                }
                Step::Incomplete => break,
                Step::Malformed => return Err(io::ErrorKind::InvalidData.into()),
                Step::Message { tag, body, end } => {
                    match tag {
                        b'A' => self.overheard.extend_from_slice(&buffer[at..end]),
                        b'N' if self.scanner.at_boundary() => self.remarks.extend_from_slice(&buffer[at..end]),
                        b'S' => self
                            .reported
                            .extend(parameter_status(body).map(|(name, value)| (name.to_owned(), value.to_owned()))),
                        b'E' => self.error(body)?,
                        b'Z' => {
                            self.left = self.left.saturating_sub(1);
                            self.status = TransactionStatus::parse(body);
                        }
                        _ => {}
                    }
                    at = end;
                }
            }
        }
        buffer.advance(at);
        Ok(())
    }

    fn error(&mut self, body: &[u8]) -> io::Result<()> {
        let view = ErrorView::parse(body);
        let severity = view.as_ref().and_then(|error| error.severity);
        if self.is_over() || matches!(severity, Some(Severity::Fatal | Severity::Panic)) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        if self.refused.is_none() {
            let words = view.map(|error| (error.code, error.message_text().into_owned()));
            self.refused = Some(words.unwrap_or((SqlState::INTERNAL_ERROR, String::new())));
            self.left += self.behind;
        }
        Ok(())
    }
}

/// The body of the DataRow at the front of what a scanner passes over, if all of it is there.
fn whole_row(bytes: &[u8]) -> Option<&[u8]> {
    let (_, length) = header(bytes).filter(|(tag, _)| *tag == b'D')?;
    bytes.get(HEADER..length as usize + 1)
}

/// The first column of a DataRow, as text. `None` for NULL.
fn first_column(body: &[u8]) -> Option<&[u8]> {
    let (length, rest) = body.get(2..)?.split_first_chunk()?;
    rest.get(..usize::try_from(i32::from_be_bytes(*length)).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::backend::{put_command_complete, put_parameter_status, put_ready};
    use crate::wire::error_response::ErrorFields;

    fn error(severity: Severity, code: SqlState) -> Vec<u8> {
        let mut out = Vec::new();
        ErrorFields::new(severity, code, "words").encode_error(&mut out);
        out
    }

    fn done() -> Vec<u8> {
        let mut out = Vec::new();
        put_command_complete(&mut out, "SET");
        put_parameter_status(&mut out, "TimeZone", "UTC");
        put_ready(&mut out, TransactionStatus::Idle);
        out
    }

    /// Takes it in pieces of every length.
    fn heard(bytes: &[u8], behind: u32, all: bool) -> io::Result<(OwnAnswer, usize)> {
        let mut last = None;
        for piece in 1..=bytes.len() {
            let (mut answer, mut buffer) = (OwnAnswer::before(behind), BytesMut::new());
            let mut ends = Ok(());
            for bytes in bytes.chunks(piece) {
                buffer.extend_from_slice(bytes);
                ends = ends.and_then(|()| answer.go_through(&mut buffer, all));
            }
            let told = ends.map(|()| (answer, buffer.len()));
            if let (Some(Ok((before, rest))), Ok((now, left))) = (&last, &told) {
                let (before, now): (&OwnAnswer, &OwnAnswer) = (before, now);
                assert_eq!(
                    (&before.refused, &before.reported, rest),
                    (&now.refused, &now.reported, left)
                );
            } else if let Some(before) = &last {
                assert_eq!(before.is_ok(), told.is_ok(), "pieces of {piece}");
            }
            last = Some(told);
        }
        last.expect("an answer that isn't empty")
    }

    #[test]
    fn an_answer_is_over_when_the_server_is_ready() {
        let (answer, rest) = heard(&done(), 0, true).expect("an answer");
        assert!(answer.is_over() && rest == 0);
        assert_eq!(answer.status, Some(TransactionStatus::Idle));
        assert_eq!(answer.reported, [("TimeZone".to_owned(), "UTC".to_owned())]);
        // What stands behind it is somebody else's.
        let (answer, rest) = heard(&[done(), done()].concat(), 1, false).expect("an answer");
        assert!(answer.is_over() && answer.reported.len() == 1);
        assert_eq!(rest, done().len());
    }

    #[test]
    fn an_error_takes_with_it_what_stands_behind_it() {
        let mut ready = Vec::new();
        put_ready(&mut ready, TransactionStatus::Failed);
        let refusal = [error(Severity::Error, SqlState::UNDEFINED_OBJECT), ready].concat();
        let (answer, _) = heard(&refusal, 1, false).expect("a refusal");
        assert!(!answer.is_over());
        let (answer, rest) = heard(&[&refusal[..], &refusal[..]].concat(), 1, false).expect("a refusal");
        assert!(answer.is_over() && rest == 0);
        assert_eq!(answer.refused, Some((SqlState::UNDEFINED_OBJECT, "words".to_owned())));
        assert_eq!(answer.status, Some(TransactionStatus::Failed));
    }

    #[test]
    fn a_farewell_is_a_loss_and_no_refusal_wherever_it_comes() {
        let farewell = error(Severity::Fatal, SqlState::ADMIN_SHUTDOWN);
        assert!(heard(&farewell, 0, true).is_err());
        assert!(heard(&farewell, 1, false).is_err());
        assert!(heard(&[done(), farewell].concat(), 0, true).is_err());
    }
}
