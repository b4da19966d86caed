//! x
use super::status::Status;
use std::future::Future;
use std::sync::Arc;
use tokio::net::TcpListener;
/// What is asked of the proxy. Called for each request, so it must not block.
pub trait AdminSource: Send + Sync + 'static {
    /// For `/status`.
    fn status(&self) -> Status;
    /// For `/metrics`, in Prometheus' text format.
    fn metrics_text(&self) -> String;
    /// For `/readyz`: why clients should not be sent here, if so.
    fn readiness(&self) -> Result<(), String>;
}
/// Serves.
pub async fn serve(_listener: TcpListener, _source: Arc<dyn AdminSource>, _shutdown: impl Future<Output = ()>) {
    todo!()
}
