//! What the server's messages mean for an exchange, and what the client is given of each.

use std::sync::Arc;

use super::super::expect::Fate;
use super::super::meant::Progress;
use super::super::request::Tail;
use super::super::resets;
use super::super::retry::{Failure, NextStep, Parting, after};
use super::{Completes, Exchange, effects};
use crate::cluster::Hint;
use crate::route::Target;
use crate::sql::StatementClass;
use crate::wire::backend::{TransactionStatus, parameter_status, put_error_body, put_parameter_status};
use crate::wire::error_response::{ErrorFields, ErrorView, Severity};
use crate::wire::frame::HEADER;
use crate::wire::sqlstate::SqlState;

impl<C: FnMut(&[u8]) -> Arc<StatementClass>> Exchange<'_, C> {
    /// One message of the server's.
    pub(super) fn judge(&mut self, tag: u8, body: &[u8]) -> Fate {
        let outdated = tag == b'E' && self.expect.is_outdated();
        let fate = if self.expect.is_empty() {
            Fate::Forward
        } else {
            let whole = self.scanner.at_boundary().then_some(body);
            let (statements, prepared) = (&mut *self.parties.statements, &mut self.parties.conn.prepared);
            self.expect.meet(tag, whole, statements, prepared)
        };
        if let Some(checked) = self.expect.checked() {
            self.go_on(checked);
        }
        if outdated {
            let (whole, body) = plan_changed();
            return self.error(&body, Fate::Replace(whole));
        }
        match tag {
            b'Z' => {
                self.owed = self.owed.saturating_sub(1);
                self.copy_in = false;
                if self.owed > 0 {
                    self.parties.slot.progress(Progress::Parted);
                }
                self.answer.status = TransactionStatus::parse(body).unwrap_or(TransactionStatus::Failed);
                self.parties.conn.status = self.answer.status;
            }
            b'C' => {
                self.completed = true;
                self.answer.rolled_back = body == b"ROLLBACK\0";
            }
            b'E' => return self.error(body, fate),
            b'N' if self.announces_loss(body) => return Fate::Swallow,
            b'S' => return self.parameter(body),
            b'A' => {
                if let Some(named) = self.parties.notifiers.in_clients_terms(body) {
                    return Fate::Replace(named);
                }
            }
            b'G' => self.copy_began(),
            _ => {}
        }
        fate
    }

    /// Sync during COPY is passed over by the server; the one after CopyDone counts.
    fn copy_began(&mut self) {
        self.leave_unit();
        let followed = !self.expect.is_empty();
        let (ended, voided) = self.expect.copy_began();
        self.copy_in = !ended;
        if followed {
            self.owed = self.owed.saturating_sub(voided);
            self.open |= voided > 0 && self.owed == 0;
        } else if self.extended && self.owed > 0 {
            self.owed = 0;
            self.open = true;
        }
    }

    fn error(&mut self, body: &[u8], fate: Fate) -> Fate {
        self.answer.failed = true;
        self.copy_in = false;
        // What is passed over need not wait.
        self.stops.clear();
        let (passed_over, lacks_sync) = self.expect.passed_over();
        self.owed = self.owed.saturating_sub(passed_over);
        self.open |= lacks_sync && self.tail != Tail::Prepared;
        self.failed_batch = self.open;
        let Some(error) = ErrorView::parse(body) else {
            return fate;
        };
        if error.code == SqlState::QUERY_CANCELED {
            self.parties.slot.progress(Progress::Parted);
        }
        let fatal = matches!(error.severity, Some(Severity::Fatal | Severity::Panic));
        if fatal && error.code == SqlState::ADMIN_SHUTDOWN && (self.signals || self.parties.slot.is_marked()) {
            let mut words = Vec::with_capacity(HEADER + body.len());
            put_error_body(&mut words, body);
            self.last_words = Some(words.into());
            return Fate::Swallow;
        }
        if matches!(
            error.code,
            SqlState::ADMIN_SHUTDOWN | SqlState::CRASH_SHUTDOWN | SqlState::CANNOT_CONNECT_NOW
        ) {
            self.parties.cluster.hint(self.parties.conn.node, Hint::ShuttingDown);
        }
        if error.code == SqlState::READ_ONLY_SQL_TRANSACTION && self.attempt.target == Target::Primary {
            self.parties.cluster.hint(self.parties.conn.node, Hint::ReadOnlyRefusal);
        }
        if fatal {
            // The connection ends with it. What the client is told depends on what was under way.
            self.parting = match self.completes {
                Completes::Perhaps if self.completed => Parting::Announced,
                Completes::All | Completes::Perhaps | Completes::Nothing => Parting::Farewell,
            };
            return Fate::Swallow;
        }
        let retry = after(self.attempt_now(), Failure::Refused(error.code));
        if matches!(
            retry,
            NextStep::Retry | NextStep::RetryOnCurrent | NextStep::RetryOnPrimary
        ) {
            self.refused = Some(error.code);
        }
        if error.code == SqlState::FEATURE_NOT_SUPPORTED && names_routine(body, REVALIDATES.as_bytes()) {
            // "cached plan must not change result type": preparing again, as drivers do, must make a new statement of it. Where the client
            // relies on nothing it was told, the proxy does so itself.
            self.parties.statements.outdate(self.parties.registry);
            if self.heals && !self.forwarded && fate == Fate::Forward {
                self.refused = Some(error.code);
            }
        }
        let name = self.expect.refused_name();
        match (fate, self.parties.statements.in_clients_words(body, name.as_deref())) {
            (Fate::Forward, Some(reworded)) => Fate::Replace(reworded),
            (fate, _) => fate,
        }
    }

    /// An immediate stop announces itself by a warning, and then only by the end of the connection. The client's own connection doesn't end.
    fn announces_loss(&mut self, body: &[u8]) -> bool {
        let code = ErrorView::parse(body).map(|notice| notice.code);
        let announces = matches!(code, Some(SqlState::ADMIN_SHUTDOWN | SqlState::CRASH_SHUTDOWN));
        if announces {
            self.parting = Parting::Announced;
            self.parties.cluster.hint(self.parties.conn.node, Hint::ShuttingDown);
        }
        announces
    }

    fn parameter(&mut self, body: &[u8]) -> Fate {
        let Some((name, value)) = parameter_status(body) else {
            return Fate::Forward;
        };
        self.parties.conn.note_parameter(name, value);
        if name == "in_hot_standby" {
            self.parties
                .cluster
                .hint(self.parties.conn.node, Hint::InHotStandby(value == "on"));
            return Fate::Swallow;
        }
        if name == "default_transaction_read_only" && value == "on" && self.attempt.target == Target::Primary {
            self.parties.cluster.hint(self.parties.conn.node, Hint::ReadOnlyRefusal);
        }
        let Some(start) = self.resets_to(name) else {
            self.parties.told.note(name, value);
            return Fate::Forward;
        };
        if !self.parties.told.note(name, &start) {
            return Fate::Swallow;
        }
        let mut whole = Vec::new();
        put_parameter_status(&mut whole, name, &start);
        Fate::Replace(whole)
    }

    /// What a parameter that the server has just reported is for the session, where that has gone back to what it started with.
    fn resets_to(&self, name: &str) -> Option<String> {
        let setting = name.to_ascii_lowercase();
        let reset = !self.resets.is_empty()
            && !self.answer.failed
            && resets::leaves_reset(effects(&self.resets).chain(effects(&self.later)), &setting);
        self.parties.startup.value(&setting).filter(|_| reset)?;
        let at_login = self.parties.told.at_login(self.parties.startup, name)?;
        Some(at_login.to_owned())
    }
}

/// Where a server finds that a statement's plan is out of date.
const REVALIDATES: &str = "RevalidateCachedQuery";

/// What a server says of a statement that is no longer what the client was told: the message, and its body.
fn plan_changed() -> (Vec<u8>, Vec<u8>) {
    let mut whole = Vec::new();
    let words = "cached plan must not change result type";
    ErrorFields::error(SqlState::FEATURE_NOT_SUPPORTED, words)
        .with_routine(REVALIDATES)
        .encode_error(&mut whole);
    let body = whole[HEADER..].to_vec();
    (whole, body)
}

/// Whether an error's body says that it was raised in this routine of the server's source.
fn names_routine(body: &[u8], routine: &[u8]) -> bool {
    let field = [b"\0R", routine, b"\0"].concat();
    body.windows(field.len()).any(|window| window == field)
}
