//! pool: being built.
