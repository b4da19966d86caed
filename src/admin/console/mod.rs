//! The admin console: what a client gets that logs in to `[admin] database`, as PgBouncer's users know it.
//!
//! ```text
//! session::login ─▶ Visitor ─▶ Console::receive ─▶ Conversation (messages) ─▶ command (pure) ─▶ show (pure)
//!                                                                        └──▶ Operator: status, reload, switchover
//! ```
//!
//! It speaks the simple and the extended protocol, so that any driver can use it. It asks an [`Operator`] and knows nothing of pools or
//! sessions. A visitor is served on its worker's thread, where nothing here may block.

mod command;
mod conversation;
#[cfg(test)]
mod conversation_tests;
mod error;
mod operator;
mod show;

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::Poll;

pub use command::{VERBS, Verb};
pub use operator::Operator;

use self::conversation::{After, Conversation, Interrupt, Interruption};
use self::error::ConsoleError;
use crate::session::cancel::Registered;
use crate::session::client_link::ClientLink;
use crate::session::control::Order;
use crate::session::login::farewell;
use crate::session::request::{Gathered, Unit};
use crate::session::visitor::Visitor;
use crate::session::worker::Present;
use crate::wire::backend::{TransactionStatus, put_parameter_status, put_ready};
use crate::wire::error_response::ErrorFields;
use crate::wire::sqlstate::SqlState;

/// What drivers want to be told at login. The server's version is the console's own, as PgBouncer has it; the last two are for
/// libpq's `target_session_attrs`.
const PARAMETERS: [(&str, &str); 11] = [
    ("server_version", concat!(env!("CARGO_PKG_VERSION"), "/pgsluice")),
    ("server_encoding", "UTF8"),
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, MDY"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "GMT"),
    ("integer_datetimes", "on"),
    ("standard_conforming_strings", "on"),
    ("is_superuser", "on"),
    ("in_hot_standby", "off"),
    ("default_transaction_read_only", "off"),
];

/// Where visitors are received.
pub struct Console<O> {
    operator: Arc<O>,
}

impl<O: Operator> Console<O> {
    /// A console whose commands this operator carries out.
    pub fn new(operator: Arc<O>) -> Console<O> {
        Console { operator }
    }

    /// Serves a visitor until it leaves.
    pub async fn receive(&self, visitor: Visitor) {
        let Visitor {
            present,
            client,
            registered,
            user,
        } = visitor;
        let guest = Guest {
            conversation: Conversation::new(&self.operator, user),
            seat: Seat {
                present,
                client,
                registered,
            },
        };
        // Only its socket can fail, and then there is nobody to tell.
        let _ = guest.run().await;
    }
}

/// A visitor who is served.
struct Guest<O> {
    conversation: Conversation<O>,
    seat: Seat,
}

/// Where it is to be found.
struct Seat {
    present: Present,
    client: ClientLink,
    registered: Registered,
}

impl<O: Operator> Guest<O> {
    async fn run(mut self) -> io::Result<()> {
        self.seat.client.say(&greeting(&self.seat.registered)).await?;
        loop {
            let gathered = match self.seat.client.gather() {
                Ok(gathered) => gathered,
                Err(bad) => {
                    let fields = ErrorFields::fatal(SqlState::PROTOCOL_VIOLATION, bad.to_string());
                    return self.seat.part(&fields).await;
                }
            };
            match gathered {
                Gathered::More => match self.seat.listen().await? {
                    Heard::More => {}
                    Heard::Nothing => return Ok(()),
                    Heard::Order => return self.seat.part(&ConsoleError::Leaving.fields()).await,
                },
                Gathered::Terminate => return Ok(()),
                Gathered::Skip(count) => self.seat.client.discard(count),
                Gathered::Unit(unit) if self.seat.client.skips() => {
                    self.seat.client.skip(&unit, TransactionStatus::Idle).await?;
                }
                Gathered::Unit(unit) => {
                    if self.serve(&unit).await? == After::Leave {
                        return Ok(());
                    }
                }
            }
            self.seat.registered.slot.answered();
        }
    }

    async fn serve(&mut self, unit: &Unit) -> io::Result<After> {
        // Its own copy: the inbox is listened to while a command is carried out.
        let bytes = self.seat.client.inbox.bytes()[..unit.len].to_vec();
        self.seat.client.inbox.consume(unit.len);
        let mut out = Vec::new();
        let after = self.conversation.answer(unit, &bytes, &mut out, &mut self.seat).await;
        match after {
            After::Leave => farewell(&mut self.seat.client.stream, &out).await,
            After::SkipToSync => {
                self.seat.client.skip_to_sync();
                self.seat.client.say(&out).await?;
            }
            After::Listen => self.seat.client.say(&out).await?,
        }
        Ok(after)
    }
}

/// What came while nothing was to do.
enum Heard {
    /// Something of the client's.
    More,
    /// The client's end.
    Nothing,
    /// The proxy is going.
    Order,
}

impl Seat {
    /// Waits for the client. Dropping it loses nothing.
    async fn listen(&mut self) -> io::Result<Heard> {
        let (control, slot) = (&self.present.control, &self.registered.slot);
        let ClientLink { stream, inbox, .. } = &mut self.client;
        poll_fn(|cx| {
            // Nothing is under way here that could be waited for.
            if control.listen(cx) != Order::Serve {
                return Poll::Ready(Ok(Heard::Order));
            }
            if slot.is_called(cx) {
                // There is no server connection to show to those who aim at one.
                let _ = slot.standing();
                // A cancel request: what its client has sent before stands in the socket by now, or there is nothing that could be meant.
                if slot.is_unseen() {
                    slot.looked(!inbox.bytes().is_empty() || stream.has_unread());
                }
            }
            inbox.poll_fill(stream, cx).map_ok(|count| match count {
                0 => Heard::Nothing,
                _ => Heard::More,
            })
        })
        .await
    }

    async fn part(mut self, last_words: &ErrorFields) -> io::Result<()> {
        let mut out = Vec::new();
        last_words.encode_error(&mut out);
        farewell(&mut self.client.stream, &out).await;
        Ok(())
    }
}

impl Interruption for Seat {
    async fn interrupted(&mut self) -> Interrupt {
        let control = &self.present.control;
        let ordered = poll_fn(|cx| match control.listen(cx) {
            Order::Serve | Order::Drain => Poll::Pending,
            Order::Leave => Poll::Ready(()),
        });
        tokio::select! {
            () = ordered => Interrupt::Leaving,
            () = self.registered.slot.cancelled_while_waiting() => Interrupt::Cancelled,
            () = self.client.gone() => Interrupt::Gone,
        }
    }
}

fn greeting(registered: &Registered) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    for (name, value) in PARAMETERS {
        put_parameter_status(&mut out, name, value);
    }
    registered.key.encode_backend_key_data(&mut out);
    put_ready(&mut out, TransactionStatus::Idle);
    out
}
