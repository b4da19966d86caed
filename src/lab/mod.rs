//! lab: being built.
