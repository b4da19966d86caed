//! Where messages begin and end in a run of bytes. Nothing is decoded, nothing is copied.
//!
//! Every message after start-up is a tag, a length of four bytes that counts itself but not the tag, and a body
//! (manual, 55.2 "Message Flow", 55.7 "Message Formats").

/// Bytes of a tag and a length.
pub const HEADER: usize = 5;

/// The longest frontend message that may carry data; the server's own limit (`PQ_LARGE_MESSAGE_LIMIT`, 1 GB less one).
pub const LARGE_LIMIT: usize = 0x3fff_ffff;

/// The longest of the other frontend messages; the server's own limit (`PQ_SMALL_MESSAGE_LIMIT`).
pub const SMALL_LIMIT: usize = 10_000;

/// One message's extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The message's type byte.
    pub tag: u8,
    /// The whole message's bytes, tag included.
    pub total: usize,
}

/// Why bytes are not a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    /// The type byte is none that the protocol has in this direction.
    #[error("invalid frontend message type {0}")]
    UnknownTag(u8),
    /// The length is below four or above the limit for its type.
    #[error("invalid message length {length} for message type \"{}\"", char::from(*.tag))]
    Length {
        /// The message's type byte.
        tag: u8,
        /// The length as sent.
        length: u32,
    },
}

/// Reads the header at the start of `bytes`; `None` while fewer than five are there. Lengths are not judged.
pub fn header(bytes: &[u8]) -> Option<(u8, u32)> {
    let (head, _) = bytes.split_first_chunk::<HEADER>()?;
    Some((head[0], u32::from_be_bytes([head[1], head[2], head[3], head[4]])))
}

/// The next message that a client sends; `None` while its header is incomplete.
///
/// # Errors
/// A tag that no frontend message has, or a length that the server would refuse: the stream can't be followed any further.
pub fn frontend_header(bytes: &[u8]) -> Result<Option<Header>, BadFrame> {
    let Some(&tag) = bytes.first() else { return Ok(None) };
    let limit = match tag {
        b'Q' | b'P' | b'B' | b'd' | b'F' => LARGE_LIMIT,
        b'D' | b'E' | b'C' | b'H' | b'S' | b'X' | b'c' | b'f' | b'p' => SMALL_LIMIT,
        _ => return Err(BadFrame::UnknownTag(tag)),
    };
    let Some((tag, length)) = header(bytes) else {
        return Ok(None);
    };
    if (length as usize) < 4 || length as usize > limit {
        return Err(BadFrame::Length { tag, length });
    }
    Ok(Some(Header {
        tag,
        total: length as usize + 1,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_waits_for_its_five_bytes() {
        assert_eq!(frontend_header(b""), Ok(None));
        assert_eq!(frontend_header(b"Q\0\0\0"), Ok(None));
        assert_eq!(
            frontend_header(b"Q\0\0\0\x05"),
            Ok(Some(Header { tag: b'Q', total: 6 }))
        );
    }

    #[test]
    fn unknown_tags_are_refused_before_their_length_is_there() {
        assert_eq!(frontend_header(b"G"), Err(BadFrame::UnknownTag(b'G')));
        assert_eq!(frontend_header(&[0x16]), Err(BadFrame::UnknownTag(0x16)));
    }

    #[test]
    fn lengths_have_the_servers_limits() {
        assert!(frontend_header(b"Q\0\0\0\x03").is_err());
        assert!(frontend_header(b"Q\x40\0\0\0").is_err());
        assert!(frontend_header(b"Q\x3f\xff\xff\xff").is_ok());
        assert!(frontend_header(b"S\0\x01\0\0").is_err());
    }
}
