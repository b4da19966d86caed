//! A client of the simple protocol that shows what drivers keep to themselves: a command's tag, the transaction status, the last words
//! before the connection is closed.

use super::wire::{Message, Wire, codes, query};

/// One logged-in client.
pub struct Simple {
    wire: Wire,
}

/// An answer, up to ReadyForQuery or the connection's end.
#[derive(Debug, PartialEq, Eq)]
pub struct Said {
    /// Tags of the commands that were completed.
    pub commands: Vec<String>,
    /// SQLSTATEs of the errors.
    pub codes: Vec<String>,
    /// `I`, `T` or `E` as ReadyForQuery has it; `None` if the connection was closed instead.
    pub status: Option<char>,
}

impl Simple {
    /// A session of user `postgres` with database `postgres`.
    pub async fn login(port: u16) -> Simple {
        Simple {
            wire: Wire::login(port, "postgres").await,
        }
    }

    /// Sends a query and takes its answer.
    pub async fn say(&mut self, sql: &str) -> Said {
        self.send(sql).await;
        self.hear().await
    }

    /// Sends a query.
    pub async fn send(&mut self, sql: &str) {
        self.wire.send(&query(sql)).await;
    }

    /// Takes an answer.
    pub async fn hear(&mut self) -> Said {
        let messages = self.wire.answer().await;
        let commands = messages.iter().filter(|message| message.tag == b'C');
        let ready = messages.last().filter(|message| message.tag == b'Z');
        Said {
            commands: commands.map(Message::command).map(str::to_owned).collect(),
            codes: codes(&messages),
            status: ready.map(|message| char::from(message.body[0])),
        }
    }
}
