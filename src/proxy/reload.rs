//! SIGHUP: the configuration is read again, and what can change while clients are served is taken over. All of it or nothing.

use std::sync::Arc;

use super::{client_tls, users};
use crate::config::Config;
use crate::metrics;
use crate::session::worker::Shared;

/// How a reload went: the keys that differ and can't change without a restart, or why all is as before.
pub(super) type Reloaded = Result<Vec<&'static str>, String>;

/// Reads and takes over.
pub(super) struct Reload {
    shared: Arc<Shared>,
    reread: super::Reread,
}

impl Reload {
    pub(super) fn new(shared: Arc<Shared>, reread: super::Reread) -> Reload {
        Reload { shared, reread }
    }

    /// Reloads once, and says how it went.
    pub(super) fn run(&mut self) -> Reloaded {
        let reloaded = self.take_over();
        let outcome = match &reloaded {
            Ok(left) if left.is_empty() => {
                tracing::info!("configuration reloaded");
                "ok"
            }
            Ok(left) => {
                tracing::warn!(
                    unchanged = left.join(", "),
                    "configuration reloaded, but these need a restart"
                );
                "ok"
            }
            Err(error) => {
                tracing::error!(%error, "configuration not reloaded: the one from before stays");
                "refused"
            }
        };
        self.shared
            .metrics
            .counter(metrics::CONFIG_RELOADS, &[("outcome", outcome.to_owned())])
            .increment(1);
        reloaded
    }

    /// Answers the sections that differ and can't change without a restart.
    fn take_over(&self) -> Reloaded {
        let new = (self.reread)()?;
        let users = users(&new).map_err(|error| error.to_string())?;
        let tls = client_tls(&new).map_err(|error| error.to_string())?;
        let old = self.shared.config.load_full();
        let (merged, left) = merge(&old, new);
        self.shared.users.store(Arc::new(users));
        self.shared.tls.store(tls);
        self.shared.pools.set_limits(merged.pool.clone());
        if merged.cluster.nodes != old.cluster.nodes {
            self.shared.cluster.set_nodes(&merged.cluster.nodes);
        }
        self.shared.config.store(Arc::new(merged));
        Ok(left)
    }
}

/// The new configuration, with what needs a restart as it was before; and the names of that. Pure.
fn merge(old: &Config, mut new: Config) -> (Config, Vec<&'static str>) {
    let mut left = Vec::new();
    let mut keep = |differs: bool, name| {
        if differs {
            left.push(name);
        }
    };
    keep(new.listen.addresses != old.listen.addresses, "listen.addresses");
    keep(new.listen.threads != old.listen.threads, "listen.threads");
    keep(new.cluster.state_file != old.cluster.state_file, "cluster.state_file");
    keep(new.cluster.discovery != old.cluster.discovery, "cluster.discovery");
    keep(new.cluster.tls != old.cluster.tls, "cluster.tls");
    keep(new.monitor != old.monitor, "monitor");
    keep(new.routing.max_lag != old.routing.max_lag, "routing.max_lag");
    keep(
        new.failover.trigger_file != old.failover.trigger_file,
        "failover.trigger_file",
    );
    keep(new.failover.promote != old.failover.promote, "failover.promote");
    keep(new.failover.candidate != old.failover.candidate, "failover.candidate");
    keep(
        new.failover.switchover_timeout != old.failover.switchover_timeout,
        "failover.switchover_timeout",
    );
    keep(new.admin.http != old.admin.http, "admin.http");
    new.listen.addresses.clone_from(&old.listen.addresses);
    new.listen.threads = old.listen.threads;
    new.cluster.state_file.clone_from(&old.cluster.state_file);
    new.cluster.discovery.clone_from(&old.cluster.discovery);
    new.cluster.tls.clone_from(&old.cluster.tls);
    new.monitor.clone_from(&old.monitor);
    new.routing.max_lag = old.routing.max_lag;
    new.failover.trigger_file.clone_from(&old.failover.trigger_file);
    new.failover.promote = old.failover.promote;
    new.failover.candidate.clone_from(&old.failover.candidate);
    new.failover.switchover_timeout = old.failover.switchover_timeout;
    new.admin.http = old.admin.http;
    (new, left)
}
