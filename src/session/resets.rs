//! What a reset takes a session back to. RESET and DISCARD ALL go back to what the session started with; a server connection, which started
//! for anybody, goes back to the server's own default. The session's value is set again before anything else runs, and that is what its
//! client is told at once: a driver that has asked for a DateStyle or an encoding may give up on one that it hears differs.

use crate::sql::Effect;

/// Whether any of these is a reset.
pub(super) fn any_reset<'a>(mut effects: impl Iterator<Item = &'a Effect>) -> bool {
    effects.any(|effect| matches!(effect, Effect::ResetGuc { .. } | Effect::ResetAll | Effect::DiscardAll))
}

/// Whether these leave the setting `name`, in lower case, reset: it isn't set again behind that, and no end of a block makes it something else.
pub(super) fn leaves_reset<'a>(effects: impl Iterator<Item = &'a Effect>, name: &str) -> bool {
    let mut reset = false;
    for effect in effects {
        match effect {
            Effect::ResetAll | Effect::DiscardAll => reset = true,
            Effect::ResetGuc { name: one } if one == name => reset = true,
            Effect::SetGuc { name: one, .. } | Effect::SetConfig { name: one } | Effect::SetLocal { name: one }
                if one == name =>
            {
                reset = false;
            }
            Effect::Commit { .. }
            | Effect::Rollback { .. }
            | Effect::RollbackTo { .. }
            | Effect::PrepareTransaction => {
                return false;
            }
            _ => {}
        }
    }
    reset
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_on_a_setting_counts() {
        let set = |name: &str| Effect::SetGuc {
            name: name.into(),
            value: "1".into(),
        };
        let reset = |name: &str| Effect::ResetGuc { name: name.into() };
        let local = Effect::SetLocal { name: "a".into() };
        for (effects, expected) in [
            (&[][..], false),
            (&[reset("a")], true),
            (&[reset("b")], false),
            (&[Effect::ResetAll], true),
            (&[Effect::DiscardAll], true),
            (&[set("a"), Effect::ResetAll], true),
            (&[Effect::ResetAll, set("a")], false),
            (&[Effect::ResetAll, set("b")], true),
            (&[reset("a"), local], false),
            (&[reset("a"), Effect::PrepareTransaction], false),
        ] {
            assert_eq!(leaves_reset(effects.iter(), "a"), expected, "{effects:?}");
        }
        assert!(any_reset([set("a"), Effect::ResetAll].iter()));
        assert!(!any_reset([set("a")].iter()));
    }
}
