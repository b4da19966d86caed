//! What the admin console's commands do to the running proxy.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::observe::Observer;
use super::reload::Reloaded;
use crate::admin::console::Operator;
use crate::admin::http::AdminSource;
use crate::admin::status::Status;
use crate::cluster::Switched;
use crate::config::Config;
use crate::session::worker::Shared;
use crate::wire::error_response::ErrorFields;
use crate::wire::sqlstate::SqlState;

/// Somebody who wants the configuration to be read again, and to hear how that went.
pub(super) type ReloadRequest = oneshot::Sender<Reloaded>;

/// Carries commands out.
pub(super) struct ProxyOperator {
    shared: Arc<Shared>,
    observer: Arc<Observer>,
    /// To the control thread, which does what a SIGHUP asks for.
    reloads: mpsc::Sender<ReloadRequest>,
}

impl ProxyOperator {
    /// An operator, and where its reloads are asked for.
    pub(super) fn new(
        shared: &Arc<Shared>,
        observer: &Arc<Observer>,
    ) -> (ProxyOperator, mpsc::Receiver<ReloadRequest>) {
        let (reloads, asked) = mpsc::channel(1);
        let operator = ProxyOperator {
            shared: Arc::clone(shared),
            observer: Arc::clone(observer),
            reloads,
        };
        (operator, asked)
    }
}

impl Operator for ProxyOperator {
    fn status(&self) -> Status {
        self.observer.status()
    }

    fn config(&self) -> Arc<Config> {
        self.shared.config.load_full()
    }

    async fn reload(&self) -> Result<Vec<&'static str>, ErrorFields> {
        let (done, outcome) = oneshot::channel();
        let outcome = match self.reloads.send(done).await {
            Ok(()) => outcome.await.ok(),
            Err(_) => None,
        };
        let outcome =
            outcome.ok_or_else(|| ErrorFields::error(SqlState::ADMIN_SHUTDOWN, "the proxy is shutting down"))?;
        outcome.map_err(|why| {
            ErrorFields::error(SqlState::CONFIG_FILE_ERROR, "the configuration was not reloaded")
                .with_detail(why)
                .with_hint("The one from before stays.")
        })
    }

    async fn switchover(&self, to: Option<&str>) -> Result<Switched, ErrorFields> {
        let switched = self.shared.cluster.switch_over(to).await;
        switched.map_err(|error| ErrorFields::error(error.sqlstate(), error.to_string()))
    }
}
