//! auth: being built.
