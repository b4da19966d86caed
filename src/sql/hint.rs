//! Hints in comments: `/* pgsluice: primary */`, `-- pgsluice: standby`.
//!
//! A hint counts wherever a comment does, so never inside a literal. `primary` is always followed; `standby` only lifts a text
//! that reads ([`StatementClass::standby_by_hint`](super::StatementClass::standby_by_hint)), never a write. `consistency=level` and
//! `min_position=position` may stand beside either; of several of a kind the first counts.

use super::lexer::{Kind, Lexer, PlainStrings};
use crate::config::Consistency;

const MIN_POSITION: &[u8] = b"min_position";

/// Where a comment asks the text to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hint {
    /// On the primary.
    Primary,
    /// On a standby, also where the answer depends on which.
    Standby,
    /// Where it sees what this level promises.
    Consistency(Consistency),
    /// Where it sees a position, which the text itself has to be asked for ([`position`]).
    MinPosition,
}

/// The position that a comment of `sql` asks for, as it is written there.
pub(super) fn position(sql: &[u8], plain_strings: PlainStrings) -> Option<&str> {
    let mut hints = Lexer::new(sql, plain_strings).filter(|token| token.kind == Kind::Hint(Hint::MinPosition));
    let comment = hints.next()?.bytes(sql);
    let (_, value) = std::str::from_utf8(comment).ok()?.split_once('=')?;
    Some(value.strip_suffix("*/").unwrap_or(value).trim())
}

impl Hint {
    /// Reads a whole comment, with its delimiters. Blanks and letter case don't matter; anything else in the comment does.
    pub(crate) fn in_comment(comment: &[u8]) -> Option<Hint> {
        let inner = comment
            .strip_prefix(b"--")
            .or_else(|| comment.strip_prefix(b"/*").and_then(|rest| rest.strip_suffix(b"*/")))?
            .trim_ascii();
        let (head, rest) = inner.split_at_checked(b"pgsluice".len())?;
        if !head.eq_ignore_ascii_case(b"pgsluice") {
            return None;
        }
        let wish = rest.trim_ascii_start().strip_prefix(b":")?.trim_ascii();
        if wish.eq_ignore_ascii_case(b"primary") {
            Some(Hint::Primary)
        } else if wish.eq_ignore_ascii_case(b"standby") {
            Some(Hint::Standby)
        } else if wish.eq_ignore_ascii_case(MIN_POSITION) {
            Some(Hint::MinPosition)
        } else if let Some((name, rest)) = wish.split_at_checked(MIN_POSITION.len())
            && name.eq_ignore_ascii_case(MIN_POSITION)
        {
            rest.trim_ascii_start().starts_with(b"=").then_some(Hint::MinPosition)
        } else {
            let (name, level) = wish.split_at_checked(b"consistency".len())?;
            let level = level.trim_ascii_start().strip_prefix(b"=")?.trim_ascii();
            let level = std::str::from_utf8(level).ok()?.to_ascii_lowercase();
            let named = name.eq_ignore_ascii_case(b"consistency");
            Consistency::from_name(&level).filter(|_| named).map(Hint::Consistency)
        }
    }

    /// `primary` or `standby`.
    pub fn as_str(self) -> &'static str {
        match self {
            Hint::Primary => "primary",
            Hint::Standby => "standby",
            Hint::Consistency(level) => level.name(),
            Hint::MinPosition => "min_position",
        }
    }

    /// The comment that says the same, for the text's normal form.
    pub(crate) fn as_comment(self) -> &'static [u8] {
        match self {
            Hint::Primary => b"/*pgsluice:primary*/",
            Hint::Standby => b"/*pgsluice:standby*/",
            Hint::Consistency(Consistency::Eventual) => b"/*pgsluice:consistency=eventual*/",
            Hint::Consistency(Consistency::ReadYourWrites) => b"/*pgsluice:consistency=read_your_writes*/",
            Hint::Consistency(Consistency::Session) => b"/*pgsluice:consistency=session*/",
            Hint::Consistency(Consistency::Linearizable) => b"/*pgsluice:consistency=linearizable*/",
            Hint::MinPosition => b"/*pgsluice:min_position*/",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_from_the_text() {
        for (sql, found) in [
            ("/* pgsluice: min_position=3:0/5A@7 */ select 1", Some("3:0/5A@7")),
            ("select 1 -- pgsluice: min_position = 3:0/5A", Some("3:0/5A")),
            ("select '/* pgsluice: min_position=3:0/5A */'", None),
            ("/* pgsluice: min_position */ select 1", None),
            ("/* pgsluice: min_position= */ select 1", Some("")),
        ] {
            assert_eq!(position(sql.as_bytes(), PlainStrings::Conforming), found, "{sql}");
        }
    }

    #[test]
    fn hints_are_read_from_both_kinds_of_comment() {
        for (comment, hint) in [
            (&b"/* pgsluice: primary */"[..], Some(Hint::Primary)),
            (b"/*PGSLUICE:Standby*/", Some(Hint::Standby)),
            (b"-- pgsluice : standby", Some(Hint::Standby)),
            (b"-- pgsluice: standby please", None),
            (
                b"/* pgsluice: consistency = Linearizable */",
                Some(Hint::Consistency(Consistency::Linearizable)),
            ),
            (b"/* pgsluice: min_position = 1:0/5 */", Some(Hint::MinPosition)),
            (b"/*pgsluice:min_position*/", Some(Hint::MinPosition)),
            (b"/*pgsluice:min_positions=1:0/5*/", None),
            (b"/* pgsluice: consistency=some */", None),
            (b"/* pgsluice: consistently=session */", None),
            (b"-- pgsluice", None),
            (b"/* primary */", None),
            (b"/*", None),
        ] {
            assert_eq!(Hint::in_comment(comment), hint, "{}", String::from_utf8_lossy(comment));
        }
    }
}
