//! What a client has sent and nobody has taken yet. A session that waits for its client owns no buffer.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use tokio::io::AsyncReadExt;

use crate::wire::stream::Stream;

/// One read takes up to this much. Only what is used is ever touched.
pub const READ_SIZE: usize = 64 * 1024;
/// Buffers that a worker keeps for the next one who needs one.
const SPARE: usize = 128;

/// A worker's spare buffers.
#[derive(Debug, Default)]
pub struct Buffers {
    spare: RefCell<Vec<BytesMut>>,
}

impl Buffers {
    /// An empty buffer with room for a read.
    pub fn take(&self) -> BytesMut {
        self.spare
            .borrow_mut()
            .pop()
            .unwrap_or_else(|| BytesMut::with_capacity(READ_SIZE))
    }

    /// Takes a buffer back. One that has grown is let go.
    pub fn give(&self, mut buffer: BytesMut) {
        buffer.clear();
        let mut spare = self.spare.borrow_mut();
        if spare.len() < SPARE && buffer.try_reclaim(READ_SIZE) && buffer.capacity() < 2 * READ_SIZE {
            spare.push(buffer);
        }
    }
}

/// Reads once into `buffer`, with room for at least a quarter of [`READ_SIZE`].
pub fn poll_read(stream: &mut Stream, buffer: &mut BytesMut, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
    if buffer.capacity() - buffer.len() < READ_SIZE / 4 {
        buffer.reserve(READ_SIZE);
    }
    pin!(stream.read_buf(buffer)).poll(cx)
}

/// Bytes from the client, in order.
#[derive(Debug)]
pub struct Inbox {
    buffers: Rc<Buffers>,
    bytes: Option<BytesMut>,
}

impl Inbox {
    /// Nothing yet.
    pub fn new(buffers: Rc<Buffers>) -> Inbox {
        Inbox { buffers, bytes: None }
    }

    /// What is there.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_deref().unwrap_or_default()
    }

    /// The first `count` bytes are done with.
    pub fn consume(&mut self, count: usize) {
        if let Some(bytes) = &mut self.bytes {
            bytes.advance(count);
            if bytes.is_empty() {
                self.release();
            }
        }
    }

    /// Reads once. Ready with 0 at the end of the stream.
    pub fn poll_fill(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let buffers = &self.buffers;
        let bytes = self.bytes.get_or_insert_with(|| buffers.take());
        let read = poll_read(stream, bytes, cx);
        if bytes.is_empty() {
            self.release();
        }
        read
    }

    fn release(&mut self) {
        if let Some(bytes) = self.bytes.take() {
            self.buffers.give(bytes);
        }
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.release();
    }
}
