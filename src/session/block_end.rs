//! Answers to COMMIT and ROLLBACK where no server is needed for them: the block is lost, or there is none.

use super::request::FrameAt;
use crate::wire::backend::{
    BIND_COMPLETE, CLOSE_COMPLETE, NO_DATA, NO_PARAMETERS, PARSE_COMPLETE, TransactionStatus, put_command_complete,
    put_ready,
};
use crate::wire::error_response::{ErrorFields, Severity};
use crate::wire::frame::HEADER;
use crate::wire::frontend::{Named, named};
use crate::wire::sqlstate::SqlState;

/// The answer to a unit that ends a lost block: it is rolled back, COMMIT or not, as the server does with one that has failed.
pub(super) fn rolled_back(frames: &[FrameAt], bytes: &[u8]) -> Vec<u8> {
    answer(frames, bytes, |out| put_command_complete(out, "ROLLBACK"))
}

/// The answer to a unit that would end a block where there is none.
pub(super) fn nothing_ended(frames: &[FrameAt], bytes: &[u8], tag: &str) -> Vec<u8> {
    let warning = ErrorFields::new(
        Severity::Warning,
        SqlState::NO_ACTIVE_SQL_TRANSACTION,
        "there is no transaction in progress",
    );
    answer(frames, bytes, |out| {
        warning.encode_notice(out);
        put_command_complete(out, tag);
    })
}

fn answer(frames: &[FrameAt], bytes: &[u8], execute: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    for frame in frames {
        match frame.tag {
            b'P' => out.extend_from_slice(&PARSE_COMPLETE),
            b'B' => out.extend_from_slice(&BIND_COMPLETE),
            b'C' => out.extend_from_slice(&CLOSE_COMPLETE),
            b'D' => {
                if let Some(Named::Statement(_)) = named(&bytes[frame.start + HEADER..frame.end]) {
                    out.extend_from_slice(&NO_PARAMETERS);
                }
                out.extend_from_slice(&NO_DATA);
            }
            b'E' => execute(&mut out),
            b'Q' => {
                execute(&mut out);
                put_ready(&mut out, TransactionStatus::Idle);
            }
            b'S' => put_ready(&mut out, TransactionStatus::Idle),
            _ => {}
        }
    }
    out
}
