//! The `options` start-up parameter: command-line switches for one session, such as `-c statement_timeout=5s`.
//!
//! Split and read as the server does it (`pg_split_opts` and `process_postgres_switches`): blanks separate, a backslash takes the
//! next character as it is. Manual: libpq, `options`. Of the switches only those that set a parameter by name are known.

use std::iter::Peekable;
use std::str::Chars;

use crate::wire::sqlstate::SqlState;

/// Why an `options` parameter can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// `-c name` or `--name`, or `-c` as the last word.
    #[error("option \"{0}\" requires a value")]
    NoValue(String),
    /// Another switch of the server's, or no switch at all.
    #[error("invalid command-line argument for server process: {0}")]
    UnknownSwitch(String),
}

impl OptionsError {
    /// What the server uses for both.
    pub fn sqlstate(&self) -> SqlState {
        match self {
            OptionsError::NoValue(_) | OptionsError::UnknownSwitch(_) => SqlState::SYNTAX_ERROR,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        "Parameters are set with -c name=value or --name=value; \"\\ \" is a blank inside a value."
    }
}

/// Reads `-c name=value`, `-cname=value` and `--name=value`, in order. A dash in a name means an underscore.
///
/// # Errors
/// For anything else: see [`OptionsError`].
pub fn parse_options(options: &str) -> Result<Vec<(String, String)>, OptionsError> {
    let mut settings = Vec::new();
    let mut words = Words(options.chars().peekable());
    while let Some(word) = words.next() {
        let assignment = if word == "-c" {
            words.next().ok_or(OptionsError::NoValue(word))?
        } else if let Some(rest) = word.strip_prefix("--").or_else(|| word.strip_prefix("-c")) {
            rest.to_owned()
        } else {
            return Err(OptionsError::UnknownSwitch(word));
        };
        match assignment.split_once('=') {
            Some((name, value)) if !name.is_empty() => settings.push((name.replace('-', "_"), value.to_owned())),
            Some(_) => return Err(OptionsError::UnknownSwitch(assignment)),
            None => return Err(OptionsError::NoValue(assignment)),
        }
    }
    Ok(settings)
}

/// Words between blanks, with their backslashes taken out.
struct Words<'a>(Peekable<Chars<'a>>);

impl Iterator for Words<'_> {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        while self.0.next_if(is_blank).is_some() {}
        self.0.peek()?;
        let mut word = String::new();
        while let Some(character) = self.0.next_if(|character| !is_blank(character)) {
            match character {
                '\\' => word.extend(self.0.next()),
                other => word.push(other),
            }
        }
        Some(word)
    }
}

/// C's `isspace`.
fn is_blank(character: &char) -> bool {
    matches!(character, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_three_spellings_set_parameters_in_order() {
        let cases: [(&str, &[(&str, &str)]); 9] = [
            ("", &[]),
            ("  \t ", &[]),
            ("-c geqo=off", &[("geqo", "off")]),
            ("-cgeqo=off", &[("geqo", "off")]),
            ("--geqo=off", &[("geqo", "off")]),
            (" -c  a=1   --b-c=2 -cd=", &[("a", "1"), ("b_c", "2"), ("d", "")]),
            (r"-c search_path=a,\ b", &[("search_path", "a, b")]),
            (r"-c x=\\\-y=z\", &[("x", r"\-y=z")]),
            ("-c a=1 -c a=2", &[("a", "1"), ("a", "2")]),
        ];
        for (text, expected) in cases {
            let parsed = parse_options(text).unwrap();
            let parsed: Vec<(&str, &str)> = parsed.iter().map(|(name, value)| (&**name, &**value)).collect();
            assert_eq!(parsed, expected, "{text}");
        }
    }

    #[test]
    fn what_sets_no_parameter_is_refused() {
        for text in ["-c", "-c geqo", "--geqo", "-W 5", "geqo=off", "--", "-c =5", "-"] {
            let error = parse_options(text).unwrap_err();
            assert_eq!(error.sqlstate(), SqlState::SYNTAX_ERROR, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC{0,80}|[-c=\\\\ a]{0,30}") {
            let _ = parse_options(&text);
        }
    }
}
