//! Where a lab tells what it does while it does it.

use std::io::Write;

/// Something worth telling.
#[derive(Debug, Clone, Copy)]
pub enum Told<'a> {
    /// One of the five steps begins.
    Step {
        /// 1 to 5.
        number: u8,
        /// What the step does.
        title: &'a str,
    },
    /// What is done, or has just been done.
    Doing(&'a str),
    /// A line that proves it: from a server's log, or what a program printed.
    Proof {
        /// Who says so: a node's name or a program's.
        source: &'a str,
        /// The line.
        line: &'a str,
    },
    /// Something that the reader may have to act on.
    Warning(&'a str),
}

/// Hears what a lab does.
pub trait Progress {
    /// One thing, in the order of events.
    fn told(&mut self, what: Told<'_>);

    /// What is done, or has just been done.
    fn doing(&mut self, text: &str) {
        self.told(Told::Doing(text));
    }

    /// Something that the reader may have to act on.
    fn warn(&mut self, text: &str) {
        self.told(Told::Warning(text));
    }
}

/// Tells nobody.
#[derive(Debug, Default, Clone, Copy)]
pub struct Quiet;

impl Progress for Quiet {
    fn told(&mut self, _: Told<'_>) {}
}

/// Tells a person, line by line. A reader that has gone away stops nothing.
#[derive(Debug)]
pub struct Written<W>(pub W);

impl<W: Write> Progress for Written<W> {
    fn told(&mut self, what: Told<'_>) {
        let _ = match what {
            Told::Step { number, title } => writeln!(self.0, "[{number}/5] {title}"),
            Told::Doing(text) => writeln!(self.0, "      {text}"),
            Told::Proof { source, line } => writeln!(self.0, "      {source} | {line}"),
            Told::Warning(text) => writeln!(self.0, "      note: {text}"),
        };
        let _ = self.0.flush();
    }
}
