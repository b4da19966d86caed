//! The proxy's own settings: `SET pgsluice.name = value`. They are kept with the session's others, and by servers as settings of an extension
//! that isn't there, so that they follow transactions, RESET and start-up options as all settings do.

use super::error::SessionError;
use crate::cluster::{Position, SystemIdentifier};
use crate::config::{Consistency, RoutePreference};
use crate::pool::{SettingValue, Settings};
use crate::route::{RouteReason, Want};

/// All of one session's. What isn't set, or is set to what it can't be by a function, is as configured.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OwnSettings {
    /// `pgsluice.consistency`
    pub consistency: Option<Consistency>,
    /// `pgsluice.route`
    pub route: Option<RoutePreference>,
    /// `pgsluice.min_position`: what its reads must see, beside what it has done itself.
    // Boxed: few sessions have one, and all pay for its room.
    pub min_position: Option<Box<Position>>,
    /// `pgsluice.explain`: a NOTICE tells where each statement goes, and why.
    pub explain: bool,
}

impl OwnSettings {
    /// Those among a session's settings.
    pub fn of(settings: &Settings) -> OwnSettings {
        OwnSettings {
            consistency: value(settings, "pgsluice.consistency").and_then(Consistency::from_name),
            route: value(settings, "pgsluice.route").and_then(RoutePreference::from_name),
            min_position: value(settings, "pgsluice.min_position").and_then(|text| text.parse().ok().map(Box::new)),
            explain: value(settings, "pgsluice.explain").and_then(flag).unwrap_or_default(),
        }
    }

    /// What the session wants of a statement that wants this by itself, where `route` holds if it has set none. Hints in the statement stand
    /// above it.
    pub fn applied_to(&self, want: Want, route: RoutePreference) -> Want {
        match (want, self.route.unwrap_or(route)) {
            (Want::Read, RoutePreference::Primary) => Want::Primary(RouteReason::HintPrimary),
            (Want::Read, RoutePreference::Standby) => Want::Standby,
            (want, _) => want,
        }
    }

    /// What SHOW says. `consistency` and `route` are what holds where none is set.
    pub fn show(&self, name: &str, consistency: Consistency, route: RoutePreference) -> String {
        let flag = if self.explain { "on" } else { "off" };
        match name {
            "consistency" => self.consistency.unwrap_or(consistency).name().to_owned(),
            "route" => self.route.unwrap_or(route).name().to_owned(),
            "min_position" => self
                .min_position
                .as_ref()
                .map(|position| position.to_string())
                .unwrap_or_default(),
            _ => flag.to_owned(),
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

/// Why `SET pgsluice.…` can't be: refused before a server takes it for a setting of some extension. `cluster` is the one that is served, if
/// that is known yet.
pub(super) fn refused(name: &str, value: &str, cluster: Option<SystemIdentifier>) -> Option<SessionError> {
    let value = unquoted(value);
    let allowed = match name.strip_prefix("pgsluice.")? {
        "consistency" if Consistency::from_name(value).is_some() => return None,
        "route" if RoutePreference::from_name(value).is_some() => return None,
        "explain" if flag(value).is_some() => return None,
        "min_position" => bad_position(value, cluster)?,
        "consistency" => "pgsluice.consistency is one of eventual, read_your_writes, session, linearizable.",
        "route" => "pgsluice.route is one of auto, primary, standby.",
        "explain" => "pgsluice.explain is on or off.",
        "position" => "SHOW pgsluice.position tells it; pgsluice.min_position is what can be set.",
        _ => "There are pgsluice.consistency, pgsluice.explain, pgsluice.min_position and pgsluice.route.",
    };
    Some(SessionError::BadSetting {
        name: name.to_owned(),
        value: value.to_owned(),
        allowed,
    })
}

/// What is wrong with a position that no node of this cluster can have.
pub(super) const OTHER_CLUSTER: &str = "This position is another cluster's: its system identifier is not this one's.";

/// What is wrong with a position that a session is to see.
pub(super) fn bad_position(text: &str, cluster: Option<SystemIdentifier>) -> Option<&'static str> {
    match text.parse::<Position>() {
        _ if text.is_empty() => None,
        Err(_) => Some(
            "pgsluice.min_position is what SHOW pgsluice.position tells, TIMELINE:X/Y@SYSTEM_IDENTIFIER, or empty.",
        ),
        Ok(position) if position.cluster.is_some() && cluster.is_some() && position.cluster != cluster => {
            Some(OTHER_CLUSTER)
        }
        Ok(_) => None,
    }
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
            ("pgsluice.min_position", "'1:0/5'", true),
            ("pgsluice.min_position", "'1:0/5@7'", true),
            ("pgsluice.min_position", "'1:0/5@8'", false),
            ("pgsluice.min_position", "''", true),
            ("pgsluice.min_position", "'0/5'", false),
            ("pgsluice.position", "'1:0/5'", false),
            ("pgsluice.nothing", "1", false),
            ("work_mem", "'1MB'", true),
        ] {
            assert_eq!(
                refused(name, value, Some(SystemIdentifier(7))).is_none(),
                ok,
                "{name} = {value}"
            );
        }
    }

    #[test]
    fn a_preference_moves_reads_and_nothing_else() {
        let write = Want::Primary(RouteReason::NeedsPrimary);
        let prefers = |route| OwnSettings {
            route,
            ..OwnSettings::default()
        };
        let (auto, primary, standby) = (
            RoutePreference::Auto,
            RoutePreference::Primary,
            RoutePreference::Standby,
        );
        let on_primary = Want::Primary(RouteReason::HintPrimary);
        for (set, configured, read) in [
            (None, auto, Want::Read),
            (None, primary, on_primary),
            (None, standby, Want::Standby),
            (Some(auto), primary, Want::Read),
            (Some(primary), standby, on_primary),
            (Some(standby), auto, Want::Standby),
        ] {
            assert_eq!(prefers(set).applied_to(Want::Read, configured), read);
            assert_eq!(prefers(set).applied_to(write, configured), write);
            assert_eq!(prefers(set).applied_to(Want::Standby, configured), Want::Standby);
        }
    }
}
