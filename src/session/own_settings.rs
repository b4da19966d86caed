//! The proxy's own settings: `SET pgsluice.name = value`. They are kept with the session's others, and by servers as settings of an extension
//! that isn't there, so that they follow transactions, RESET and start-up options as all settings do.

use super::error::SessionError;
use crate::config::Consistency;
use crate::pool::{SettingValue, Settings};
use crate::route::{RouteReason, Want};

/// Where a session wants its reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preference {
    /// Wherever the rules say.
    #[default]
    Auto,
    /// On the primary.
    Primary,
    /// On a standby, whatever it has of the session's writes; on the primary only if there is none.
    Standby,
}

impl Preference {
    const ALL: [(Preference, &str); 3] = [
        (Preference::Auto, "auto"),
        (Preference::Primary, "primary"),
        (Preference::Standby, "standby"),
    ];

    fn from_name(name: &str) -> Option<Preference> {
        let mut all = Preference::ALL.into_iter();
        all.find_map(|(preference, known)| (known == name).then_some(preference))
    }

    fn name(self) -> &'static str {
        let mut all = Preference::ALL.into_iter();
        all.find_map(|(preference, name)| (preference == self).then_some(name))
            .unwrap_or_default()
    }
}

/// All of one session's. What isn't set, or is set to what it can't be by a function, is as configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OwnSettings {
    /// `pgsluice.consistency`
    pub consistency: Option<Consistency>,
    /// `pgsluice.route`
    pub route: Preference,
    /// `pgsluice.explain`: a NOTICE tells where each statement goes, and why.
    pub explain: bool,
}

impl OwnSettings {
    /// Those among a session's settings.
    pub fn of(settings: &Settings) -> OwnSettings {
        OwnSettings {
            consistency: value(settings, "pgsluice.consistency").and_then(Consistency::from_name),
            route: value(settings, "pgsluice.route")
                .and_then(Preference::from_name)
                .unwrap_or_default(),
            explain: value(settings, "pgsluice.explain").and_then(flag).unwrap_or_default(),
        }
    }

    /// What the session wants of a statement that wants this by itself. Hints in the statement stand above it.
    pub fn applied_to(self, want: Want) -> Want {
        match (want, self.route) {
            (Want::Read, Preference::Primary) => Want::Primary(RouteReason::HintPrimary),
            (Want::Read, Preference::Standby) => Want::Standby,
            (want, _) => want,
        }
    }

    /// What SHOW says. `consistency` is what holds where none is set.
    pub fn show(self, name: &str, consistency: Consistency) -> &'static str {
        match name {
            "consistency" => self.consistency.unwrap_or(consistency).name(),
            "route" => self.route.name(),
            _ if self.explain => "on",
            _ => "off",
        }
    }
}

fn value<'a>(settings: &'a Settings, name: &str) -> Option<&'a str> {
    match settings.value(name)? {
        SettingValue::Raw(text) | SettingValue::Sql(text) => Some(unquoted(text)),
    }
}

fn unquoted(text: &str) -> &str {
    text.trim().trim_matches('\'').trim_matches('"')
}

fn flag(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "on" | "true" | "yes" | "1" => Some(true),
        "off" | "false" | "no" | "0" => Some(false),
        _ => None,
    }
}

/// Why `SET pgsluice.…` can't be: refused before a server takes it for a setting of some extension.
pub(super) fn refused(name: &str, value: &str) -> Option<SessionError> {
    let value = unquoted(value);
    let allowed = match name.strip_prefix("pgsluice.")? {
        "consistency" if Consistency::from_name(value).is_some() => return None,
        "route" if Preference::from_name(value).is_some() => return None,
        "explain" if flag(value).is_some() => return None,
        "consistency" => "pgsluice.consistency is one of eventual, read_your_writes, session, linearizable.",
        "route" => "pgsluice.route is one of auto, primary, standby.",
        "explain" => "pgsluice.explain is on or off.",
        _ => "There are pgsluice.consistency, pgsluice.explain and pgsluice.route.",
    };
    Some(SessionError::BadSetting {
        name: name.to_owned(),
        value: value.to_owned(),
        allowed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_not_be_is_refused_with_what_can() {
        for (name, value, ok) in [
            ("pgsluice.route", "'primary'", true),
            ("pgsluice.route", "standby", true),
            ("pgsluice.route", "'elsewhere'", false),
            ("pgsluice.explain", "on", true),
            ("pgsluice.explain", "'maybe'", false),
            ("pgsluice.consistency", "'session'", true),
            ("pgsluice.consistency", "1", false),
            ("pgsluice.nothing", "1", false),
            ("work_mem", "'1MB'", true),
        ] {
            assert_eq!(refused(name, value).is_none(), ok, "{name} = {value}");
        }
    }

    #[test]
    fn a_preference_moves_reads_and_nothing_else() {
        let write = Want::Primary(RouteReason::NeedsPrimary);
        let prefers = |route| OwnSettings {
            route,
            ..OwnSettings::default()
        };
        for (route, read) in [
            (Preference::Auto, Want::Read),
            (Preference::Primary, Want::Primary(RouteReason::HintPrimary)),
            (Preference::Standby, Want::Standby),
        ] {
            assert_eq!(prefers(route).applied_to(Want::Read), read);
            assert_eq!(prefers(route).applied_to(write), write);
            assert_eq!(prefers(route).applied_to(Want::Standby), Want::Standby);
        }
    }
}
