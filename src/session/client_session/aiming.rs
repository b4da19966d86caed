//! Signals between clients ([`super::super::aim`]): what the sender does before its statement and after it, and what its target does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;

use super::super::aim::{Shot, Standing, signalled};
use super::super::cancel::{CancelSlot, Hold, ServerProcess};
use super::super::client_link::ClientLink;
use super::super::danger::Signals;
use super::super::outcome::Outcome;
use super::super::overhear::{Alive, Until};
use super::super::phase::{Attached, Phase};
use super::super::placing::{Placing, Wish};
use super::super::plan::Plan;
use super::super::request::Unit;
use super::{ClientSession, End, rules};
use crate::cluster::NodeId;
use crate::config::PoolMode;
use crate::route::Want;
use crate::wire::frontend;

/// Sender and target wait for each other no longer than this.
const PATIENCE: Duration = Duration::from_secs(1);

/// A statement's aim at a session.
pub(super) struct Aim {
    /// The process id by which the client means it.
    told: i32,
    target: Target,
}

enum Target {
    /// The very session that runs the statement.
    Itself,
    /// Another one, and the hold on it once there is one.
    Other(Arc<CancelSlot>, Option<Hold>),
}

impl Aim {
    /// Where the target has a connection now.
    pub(super) fn node(&self) -> Option<NodeId> {
        match &self.target {
            Target::Itself => None,
            Target::Other(slot, _) => slot.node(),
        }
    }
}

/// What the statement is to signal, if it is sent by this connection: nothing else than it says if the target isn't to be had.
///
/// # Errors
/// The target has a connection to another node, and keeps it.
pub(super) async fn take_aim(aim: &mut Option<Box<Aim>>, attached: &mut Attached) -> Result<Option<Shot>, NodeId> {
    let Some(aim) = aim else { return Ok(None) };
    let (told, node) = (aim.told, attached.route.node);
    let (slot, hold) = match &mut aim.target {
        Target::Itself => {
            let pid = attached.lease.conn().pid;
            return Ok(Some(Shot { told, pid }));
        }
        Target::Other(slot, hold) => (slot, hold),
    };
    let first = hold.is_none();
    let held = hold.get_or_insert_with(|| slot.hold(node));
    match tokio::time::timeout(PATIENCE, held.process()).await {
        Ok(process) if process.node == node => {
            held.sent();
            Ok(Some(Shot { told, pid: process.pid }))
        }
        Ok(process) if first => Err(process.node),
        Ok(_) | Err(_) => {
            *hold = None;
            Ok(None)
        }
    }
}

/// The statement is carried out, as far as it will be.
pub(super) fn settle_aim(aim: &mut Option<Box<Aim>>, outcome: &Outcome) {
    if let Some(aim) = aim
        && let Target::Other(_, Some(hold)) = &mut aim.target
        && (outcome.leaves_ready() || matches!(outcome, Outcome::Ended(_)))
    {
        hold.answered();
    }
    if matches!(outcome, Outcome::Done { .. }) {
        *aim = None;
    }
}

impl ClientSession {
    /// At whom the unit aims.
    pub(super) fn aim(&self, plan: &Plan, unit: &Unit) -> Option<Box<Aim>> {
        if plan.signals == Signals::None {
            return None;
        }
        let text_of = |name: &[u8]| self.text_of(name, &[]);
        let frames = &unit.frames[..plan.frames];
        let told = signalled(frames, self.client.inbox.bytes(), &self.sql_context(), text_of)?;
        let slot = self.worker.shared.cancels.client(told)?;
        let target = if Arc::ptr_eq(&slot, &self.registered.slot) {
            Target::Itself
        } else {
            Target::Other(slot, None)
        };
        Some(Box::new(Aim { told, target }))
    }

    /// Somebody aims at the session, or is done with it; or a cancel request means what it was sent last.
    pub(super) async fn answer_call(&mut self) -> Result<(), End> {
        let slot = Arc::clone(&self.registered.slot);
        let standing = slot.standing();
        if slot.is_unseen() {
            self.look_for_unit();
        }
        match standing {
            Standing::Nobody => Ok(()),
            Standing::Awaited(near) => self.show_connection(near).await,
            Standing::Held(until) if until <= Instant::now() => {
                self.leave_kept();
                Ok(())
            }
            Standing::Held(until) => {
                let later = async move {
                    if tokio::time::timeout_at(until.into(), slot.released()).await.is_err() {
                        slot.call();
                    }
                };
                drop(tokio::task::spawn_local(later));
                Ok(())
            }
            Standing::Released => self.make_sure().await,
        }
    }

    /// A cancel request has come while nothing was to do. What its client has sent before stands in the socket by now, or there is nothing that
    /// could be meant.
    fn look_for_unit(&self) {
        let ClientLink { stream, inbox, .. } = &self.client;
        self.registered
            .slot
            .looked(!inbox.bytes().is_empty() || stream.has_unread());
    }

    /// Shows those who aim at the session its connection, and takes one if it has none. In vain if there is none to be had soon, or what it had
    /// is lost with a block.
    async fn show_connection(&mut self, near: NodeId) -> Result<(), End> {
        if matches!(self.phase, Phase::Idle) {
            let worker = self.worker.clone();
            let (principal, rules) = (Arc::clone(&self.principal), rules(&worker.shared.config.load()));
            let mut placing = Placing::new(&worker);
            let wish = Wish {
                want: Want::Node(near),
                rules: &rules,
                history: &self.state.history,
                settings: &self.state.settings,
                defer: false,
                session: self.present.id,
                reclaim: None,
            };
            if let Ok(Ok(placed)) = tokio::time::timeout(PATIENCE, placing.connect(&principal, wish)).await {
                self.phase = Phase::Attached(Box::new(self.attach(placed.lease, placed.route, None)));
                self.tell(placed.reported).await?;
            }
        }
        if let Phase::Attached(attached) = &mut self.phase {
            attached.aimed = true;
            let conn = attached.lease.conn();
            self.registered.slot.keep(ServerProcess {
                node: conn.node,
                pid: conn.pid,
                secret: Arc::clone(&conn.secret),
            });
            // How long is to be looked at.
            self.registered.slot.call();
        }
        Ok(())
    }

    /// Nobody aims at the session any more. What a server process is signalled it finds before whatever it is sent next: if it answers, it lives
    /// on, and the connection may go back.
    async fn make_sure(&mut self) -> Result<(), End> {
        let Phase::Attached(attached) = &mut self.phase else {
            self.registered.slot.part();
            return Ok(());
        };
        let conn = attached.lease.conn();
        let asked = async {
            conn.stream.write_all(&frontend::SYNC).await?;
            conn.stream.flush().await
        };
        // What it said before it closed is still to be read.
        let _ = asked.await;
        let mut bytes = self.worker.buffers.take();
        let alive = self.overhear(&mut bytes, Until::Ready).await?;
        self.worker.buffers.give(bytes);
        match alive {
            Alive::Yes => {
                let settled = self.registered.slot.lives();
                if let Phase::Attached(attached) = &mut self.phase {
                    attached.aimed = !settled;
                }
                self.leave_kept();
                Ok(())
            }
            Alive::No => self.held_connection_lost(),
            Alive::Ended(words) => Err(End::ByServer(words)),
        }
    }

    /// Nothing but others' aim keeps the connection.
    pub(super) fn is_kept_for_others(&self) -> bool {
        matches!(&self.phase, Phase::Attached(attached) if attached.aimed) && self.is_free()
    }

    /// Nothing of the session's own keeps the connection.
    fn is_free(&self) -> bool {
        matches!(&self.phase, Phase::Attached(attached) if attached.block.is_none())
            && !self.state.pins.any()
            && self.worker.shared.config.load().pool.mode != PoolMode::Session
    }

    /// The client goes on: its next statement may want another node. Those who aim at the session are waited for, but not for long.
    pub(super) async fn let_go(&mut self) -> Result<(), End> {
        let slot = Arc::clone(&self.registered.slot);
        let released = Box::pin(tokio::time::timeout(PATIENCE, slot.released())).await;
        if released.is_ok() && slot.standing() == Standing::Released {
            Box::pin(self.make_sure()).await?;
        }
        if self.is_kept_for_others() {
            self.leave_kept();
        }
        Ok(())
    }

    /// Parts with a connection that is not needed any more.
    fn leave_kept(&mut self) {
        if self.is_free()
            && let Phase::Attached(attached) = std::mem::replace(&mut self.phase, Phase::Idle)
        {
            self.give_back(attached);
        }
    }

    /// Gives back a connection that a block may still be open on, which ends with that.
    pub(super) async fn give_back_after(&self, mut attached: Box<Attached>, in_block: bool) {
        if !in_block || attached.lease.conn().run(b"ROLLBACK").await.is_ok() {
            self.give_back(attached);
        }
    }

    /// Gives a connection back, or closes it if a signal may still come for whoever has it.
    pub(super) fn give_back(&self, attached: Box<Attached>) {
        if attached.aimed {
            drop(attached);
            self.registered.slot.part();
        } else {
            attached.lease.check_in(Instant::now());
        }
    }
}
