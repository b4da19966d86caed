//! Who makes a standby the primary when this proxy is asked for it. Decided at start.

use std::sync::Arc;

use crate::cluster::patroni::Patroni;
use crate::config::Promote;

/// Who does it.
pub(in crate::cluster) enum Agent {
    /// This proxy, with `pg_promote()`.
    Ourselves,
    /// Patroni, which is asked to: what anybody else does with its servers it undoes.
    Patroni(Arc<Patroni>),
    /// Somebody who can't be asked. Writes are held for them, and what they do is followed.
    Others,
}

impl Agent {
    /// Where there is a Patroni it is the one, whatever `promote` says.
    pub(in crate::cluster) fn of(promote: Promote, patroni: Option<Arc<Patroni>>) -> Agent {
        match (patroni, promote) {
            (Some(patroni), _) => Agent::Patroni(patroni),
            (None, Promote::Auto) => Agent::Ourselves,
            (None, Promote::Never) => Agent::Others,
        }
    }
}
