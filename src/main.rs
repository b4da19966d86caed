//! The command line, to one call in the library.
fn main() {}
