//! What is wrong with a configuration: each problem with its place, its key and what to write instead.

use std::fmt;
use std::sync::Arc;

/// Where a setting was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// At a line and column (of characters) of a file, both from 1.
    Line {
        /// The file's name as it was given.
        file: Arc<str>,
        /// Its line.
        line: usize,
        /// Its column.
        column: usize,
    },
    /// Nowhere in particular: what is missing is missing in all of this file.
    Whole(Arc<str>),
    /// On the command line, by this flag.
    Flag(&'static str),
    /// In the environment, by this variable.
    Variable(String),
}

impl Place {
    /// The line in the file, if it is at one.
    pub fn line(&self) -> Option<usize> {
        match self {
            Place::Line { line, .. } => Some(*line),
            Place::Whole(_) | Place::Flag(_) | Place::Variable(_) => None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line { file, line, column } => write!(f, "{file}:{line}:{column}"),
            Place::Whole(name) => f.write_str(name),
            Place::Flag(flag) => f.write_str(flag),
            Place::Variable(name) => f.write_str(name),
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// The key's whole path; empty if the file can't be read as TOML.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub suggestion: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)?;
        match &self.suggestion {
            Some(suggestion) => write!(f, "; {suggestion}"),
            None => Ok(()),
        }
    }
}

/// All that is wrong with a configuration, in the order of its lines. Never empty. Shown one problem a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    problems: Vec<Problem>,
}

impl ConfigErrors {
    /// Sorts them: those of the file by line, then those of flags and variables, then what is missing.
    pub(super) fn new(mut problems: Vec<Problem>) -> ConfigErrors {
        problems.sort_by_key(|problem| match problem.place {
            Place::Line { line, column, .. } => (0, line, column),
            Place::Flag(_) | Place::Variable(_) => (1, 0, 0),
            Place::Whole(_) => (2, 0, 0),
        });
        ConfigErrors { problems }
    }

    /// Each of them.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, problem) in self.problems.iter().enumerate() {
            if number > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// Why a value can't be what its key asks for; the reader adds the place and the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unfit {
    pub(super) message: String,
    pub(super) suggestion: Option<String>,
}

impl Unfit {
    pub(super) fn new(message: impl Into<String>) -> Unfit {
        Unfit {
            message: message.into(),
            suggestion: None,
        }
    }

    pub(super) fn suggest(mut self, suggestion: impl Into<String>) -> Unfit {
        self.suggestion = Some(suggestion.into());
        self
    }
}
