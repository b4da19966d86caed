//! Process ids of servers that clients have been told by `pg_backend_pid()`: whoever signals one of them later means the client, which may
//! hold no connection by then, or another.

use foldhash::HashMap;

/// Of one client no more than this are kept in mind: it was told the others longer ago.
const MOST: usize = 16;

/// Clients, by the process ids that the proxy has given them, and what each has been told.
#[derive(Debug, Default)]
pub struct ProcessIds {
    /// The last client to be told of a server process.
    by_server: HashMap<i32, i32>,
    /// What a client has been told, in order.
    by_client: HashMap<i32, Vec<i32>>,
}

impl ProcessIds {
    /// `client` is about to be told of the process `server`.
    pub fn note(&mut self, server: i32, client: i32) {
        if self.by_server.insert(server, client) == Some(client) {
            return;
        }
        let told = self.by_client.entry(client).or_default();
        told.push(server);
        if told.len() > MOST {
            let oldest = told.remove(0);
            self.forget(oldest, client);
        }
    }

    /// The client that was the last to be told of the process `server`.
    pub fn client(&self, server: i32) -> Option<i32> {
        self.by_server.get(&server).copied()
    }

    /// The client has left.
    pub fn leave(&mut self, client: i32) {
        for server in self.by_client.remove(&client).unwrap_or_default() {
            self.forget(server, client);
        }
    }

    fn forget(&mut self, server: i32, client: i32) {
        if self.client(server) == Some(client) {
            self.by_server.remove(&server);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_to_be_told_is_meant_until_it_leaves() {
        let mut ids = ProcessIds::default();
        ids.note(7, 1);
        ids.note(7, 2);
        ids.note(8, 1);
        assert_eq!((ids.client(7), ids.client(8), ids.client(9)), (Some(2), Some(1), None));
        ids.leave(1);
        assert_eq!((ids.client(7), ids.client(8)), (Some(2), None));
    }

    #[test]
    fn what_a_client_was_told_long_ago_is_forgotten() {
        let mut ids = ProcessIds::default();
        for server in 0..100 {
            ids.note(server, 1);
        }
        assert_eq!((ids.client(99 - MOST as i32), ids.client(99)), (None, Some(1)));
        ids.leave(1);
        assert!(ids.by_server.is_empty() && ids.by_client.is_empty());
    }
}
