//! Answers of a block that is lost with its node, in the server's stead.

use super::request::FrameAt;
use crate::wire::backend::{
    BIND_COMPLETE, CLOSE_COMPLETE, NO_DATA, NO_PARAMETERS, PARSE_COMPLETE, TransactionStatus, put_command_complete,
    put_ready,
};
use crate::wire::frame::HEADER;
use crate::wire::frontend::{Named, named};

/// The answer to a unit that ends the block, whose messages are `frames` of `bytes`: a lost block is rolled back, COMMIT or not, as the
/// server does with one that has failed.
pub(super) fn rolled_back(frames: &[FrameAt], bytes: &[u8]) -> Vec<u8> {
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
            b'E' => put_command_complete(&mut out, "ROLLBACK"),
            b'Q' => {
                put_command_complete(&mut out, "ROLLBACK");
                put_ready(&mut out, TransactionStatus::Idle);
            }
            b'S' => put_ready(&mut out, TransactionStatus::Idle),
            _ => {}
        }
    }
    out
}
