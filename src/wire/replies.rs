//! A server's messages, one at a time, for those who ask it on their own account. What is relayed is followed by
//! [`super::backend::ReplyScanner`] instead.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncReadExt;

use super::frame::{HEADER, header};
use super::stream::Stream;

/// Why there is no next message.
#[derive(Debug, thiserror::Error)]
pub enum NoReply {
    /// The server has closed the connection.
    #[error("the server closed it")]
    Closed,
    /// The connection broke.
    #[error("{0}")]
    Lost(#[from] io::Error),
    /// No message is so short, or may be so long.
    #[error("a message of {0} bytes")]
    Length(usize),
}

/// The next whole message: its tag and its body. `received` is what has been read and not been taken; dropping the future loses nothing.
///
/// # Errors
/// [`NoReply`]; one whose length field says more than `longest` isn't read.
pub async fn next_reply(stream: &mut Stream, received: &mut BytesMut, longest: usize) -> Result<(u8, Bytes), NoReply> {
    loop {
        if let Some((tag, length)) = header(received) {
            let length = length as usize;
            if !(4..=longest).contains(&length) {
                return Err(NoReply::Length(length));
            }
            if received.len() > length {
                let mut message = received.split_to(length + 1).freeze();
                message.advance(HEADER);
                return Ok((tag, message));
            }
        }
        if stream.read_buf(received).await? == 0 {
            return Err(NoReply::Closed);
        }
    }
}
