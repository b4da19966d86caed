//! Who has sent a notification. A server names its own process; a client knows the others by the process ids that the proxy has told them.
//!
//! Noted before a unit that may notify is sent: whoever last wrote on a server connection is taken for the sender of what comes from it. It
//! may be named wrongly only for a moment, and never for one that listens: that one has its connection for itself.

use foldhash::HashMap;
use parking_lot::Mutex;

use crate::wire::backend::notification_from;

/// More server processes than this are not kept in mind: all are forgotten then, and named anew as they write.
const LIMIT: usize = 100_000;

/// Clients by the server process on which they last wrote, as process ids.
#[derive(Debug, Default)]
pub struct Notifiers(Mutex<HashMap<i32, i32>>);

impl Notifiers {
    /// `client` is about to write on the connection with the process `server`.
    pub fn note(&self, server: i32, client: i32) {
        let mut by_server = self.0.lock();
        if by_server.len() >= LIMIT {
            by_server.clear();
        }
        by_server.insert(server, client);
    }

    /// A whole NotificationResponse, from its body, that names the client; `None` if none is known.
    pub fn in_clients_terms(&self, body: &[u8]) -> Option<Vec<u8>> {
        let server = i32::from_be_bytes(*body.first_chunk()?);
        let client = self.0.lock().get(&server).copied()?;
        Some(notification_from(body, client))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_to_write_is_named() {
        let notifiers = Notifiers::default();
        let body = b"\0\0\0\x07channel\0payload\0";
        assert_eq!(notifiers.in_clients_terms(body), None);
        notifiers.note(7, 1);
        notifiers.note(7, 2);
        notifiers.note(8, 3);
        let named = notifiers.in_clients_terms(body).expect("a name");
        assert_eq!(named, b"A\0\0\0\x18\0\0\0\x02channel\0payload\0");
    }
}
