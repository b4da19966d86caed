//! Hints in comments: `/* pgsluice: primary */`, `-- pgsluice: standby`.
//!
//! A hint counts wherever a comment does, so never inside a literal. `primary` is always followed; `standby` only lifts a text
//! that reads ([`StatementClass::standby_by_hint`](super::StatementClass::standby_by_hint)), never a write. `consistency=level` may stand
//! beside either; of several of a kind the first counts.

use crate::config::Consistency;

/// Where a comment asks the text to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hint {
    /// On the primary.
    Primary,
    /// On a standby, also where the answer depends on which.
    Standby,
    /// Where it sees what this level promises.
    Consistency(Consistency),
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
