//! What the console can have done: the door to the proxy, behind which a test can put something else.

use std::sync::Arc;

use crate::admin::status::Status;
use crate::cluster::Switched;
use crate::config::Config;
use crate::wire::error_response::ErrorFields;

/// Whoever carries the console's commands out.
pub trait Operator: Send + Sync + 'static {
    /// The proxy as it is. Must not block.
    fn status(&self) -> Status;

    /// The configuration as it is.
    fn config(&self) -> Arc<Config>;

    /// Reads the configuration again. Answers the keys that have changed and need a restart.
    fn reload(&self) -> impl Future<Output = Result<Vec<&'static str>, ErrorFields>> + Send;

    /// Makes another node the primary: `to`, which is one of the nodes' names, or whichever fits best. The console doesn't drop it before
    /// it is done, whatever becomes of the client; so it must end by itself.
    fn switchover(&self, to: Option<&str>) -> impl Future<Output = Result<Switched, ErrorFields>> + Send;
}
