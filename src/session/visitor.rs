//! A client who wants no server, but the proxy itself: it has logged in to the admin console's database. Sessions know no more of the
//! console than that it is there; whoever runs the workers sees the visitor to it.

use super::cancel::Registered;
use super::client_link::ClientLink;
use super::worker::Present;
use crate::config::Admin;
use crate::wire::error_response::ErrorFields;
use crate::wire::sqlstate::SqlState;

/// Clients that may be there beyond `max_clients` on their way to the console: whoever looks why the proxy is full must get in.
pub(super) const SPARE: usize = 16;

/// One who has logged in to the console, and waits for its greeting.
pub struct Visitor {
    /// How its worker reaches it; counts as a client as long as it lives.
    pub present: Present,
    /// Its connection.
    pub client: ClientLink,
    /// Its cancel key.
    pub registered: Registered,
    /// Who it is.
    pub user: String,
}

/// Whether `user`, who has proven to be that, may go to the console.
///
/// # Errors
/// What to tell it if not.
pub(super) fn admit(admin: &Admin, user: &str, replicates: bool) -> Result<(), ErrorFields> {
    if admin.users.iter().any(|name| name == user) && !replicates {
        return Ok(());
    }
    let (code, message, hint) = if replicates {
        let message = "the admin console has nothing to replicate".to_owned();
        (SqlState::FEATURE_NOT_SUPPORTED, message, String::new())
    } else {
        let message = format!("user \"{user}\" may not use the admin console");
        let hint = format!("[admin] users = [\"{user}\"] in pgsluice's configuration, and a reload, let it in.");
        (SqlState::INSUFFICIENT_PRIVILEGE, message, hint)
    };
    let name = &admin.database;
    let other = format!("If a database \"{name}\" of the servers is meant, give [admin] database another name.");
    Err(ErrorFields::fatal(code, message).with_hint(format!("{hint} {other}").trim_start().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_those_who_are_named_get_in_and_others_hear_what_to_set() {
        let admin = |users: &[&str]| Admin {
            http: None,
            database: "pgsluice".to_owned(),
            users: users.iter().map(|user| (*user).to_owned()).collect(),
        };
        assert_eq!(admit(&admin(&["a", "ops"]), "ops", false), Ok(()));
        for users in [&[][..], &["ops"], &["APP"]] {
            let refused = admit(&admin(users), "app", false).expect_err("app isn't named");
            assert_eq!(refused.code, SqlState::INSUFFICIENT_PRIVILEGE);
            let hint = refused.hint.expect("a hint");
            assert!(hint.contains("[admin] users = [\"app\"]"), "{hint}");
            assert!(hint.contains("[admin] database"), "{hint}");
        }
        let refused = admit(&admin(&["ops"]), "ops", true).expect_err("it can't replicate");
        assert_eq!(refused.code, SqlState::FEATURE_NOT_SUPPORTED);
    }
}
