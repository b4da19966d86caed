//! For people and scrapers: the HTTP server with metrics, health and the status page, the console, and the command line beside them.
//!
//! They ask an [`AdminSource`] or an [`console::Operator`] and know nothing of pools, so that what they show can be faked in a test
//! and what they are asked can't stop the proxy.

pub mod console;
mod console_client;
pub mod console_command;
pub mod explain_command;
pub mod http;
pub mod status;
pub mod status_client;
pub mod status_command;
pub mod status_table;
mod text_table;

pub use http::{AdminSource, serve};
pub use status::Status;
