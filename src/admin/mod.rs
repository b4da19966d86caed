//! For people and scrapers: the HTTP server with metrics, health and the status page, and `pgsluice status`.
//!
//! It asks an [`AdminSource`] and knows nothing of pools or sessions, so that what it shows can be faked in a test and what
//! it is asked can't stop the proxy.

pub mod explain_command;
pub mod http;
pub mod status;
pub mod status_client;
pub mod status_command;
pub mod status_table;

pub use http::{AdminSource, serve};
pub use status::Status;
