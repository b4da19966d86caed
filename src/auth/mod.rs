//! Logins on both sides: clients to the proxy, the proxy to nodes.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `client_login` | the exchange with a client, ending in a [`client_login::ClientIdentity`] |
//! | `server_login` | the one door to a node, for the monitor and for the pools |
//! | `scram`, `md5` | the methods, pure |
//! | `secret` | what a node accepts as proof; never shown by `Debug` |
//! | `userlist` | the users file |
//! | `message` | the few messages of an exchange |
//!
//! No secret leaves this folder but to a node that asks for it. Manual: "Client Authentication", chapter 21, and "SASL
//! Authentication", section 55.3.

pub mod client_login;
pub mod md5;
mod message;
pub mod scram;
pub mod secret;
pub mod server_login;
pub mod userlist;
