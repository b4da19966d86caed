//! route: being built.
