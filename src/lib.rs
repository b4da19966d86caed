//! pgsluice: a PostgreSQL proxy that sends writes to the primary, spreads reads over hot standbys, and survives promotions.
//!
//! The map, from the top down; an import only ever points down this list (`tests/layers.rs` keeps it so):
//!
//! | module | what it is for |
//! | --- | --- |
//! | [`proxy`] | wires everything: workers, acceptor, start, reload, drain |
//! | [`admin`] · [`lab`] | people around it: HTTP, status, console · the five-step cluster |
//! | [`session`] | one client's life: the loop, requests, relaying, retrying |
//! | [`route`] · [`pool`] | where a statement goes (pure) · server connections |
//! | [`catalog`] | what each database's functions, views and types do, kept up to date |
//! | [`cluster`] | what the nodes are: monitor, election (pure), freshness (pure), the routing table |
//! | [`auth`] · [`sql`] | logins on both sides · what a statement is (pure) |
//! | [`wire`] | the protocol's bytes |
//! | [`config`] · [`metrics`] | settings, checked · names of metrics |

pub mod admin;
pub mod auth;
pub mod catalog;
pub mod cluster;
pub mod config;
pub mod lab;
pub mod metrics;
pub mod pool;
pub mod proxy;
pub mod route;
pub mod session;
pub mod sql;
pub mod wire;
