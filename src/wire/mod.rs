//! The protocol's bytes: framing, message tags, start-up packets, errors, TLS and the sockets themselves;
//! and the little HTTP that is asked of others.
//!
//! Nothing here knows about nodes, pools or sessions. What is forwarded is never decoded: [`frame`] finds message boundaries in raw
//! bytes. pgwire's message types serve start-up, authentication and the proxy's own replies.
//! Manual: "Frontend/Backend Protocol", chapter 55.

pub mod backend;
pub mod error_response;
pub mod frame;
pub mod frontend;
pub mod http_client;
pub mod replies;
pub mod rows;
pub mod sqlstate;
pub mod startup;
pub mod stream;
pub mod tls;
