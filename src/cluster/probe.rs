//! The one statement that a monitor asks, and how its row is read.
//!
//! It runs on PostgreSQL 12 and later, on a primary and on a standby, as a role that may do nothing but log in; with the rights
//! of `pg_monitor` it also sees the timeline that a standby streams. The functions of the other role raise 55000, hence the
//! CASEs; `pg_is_in_recovery()` is asked once, so that a promotion in the middle can't make half a row of each (it may still
//! raise 55000: ask again at once). The control file's timeline is read on standbys only, where it is a lower bound; on a
//! promoted primary it is seconds late. Names are qualified, so that no search path can put others in their place.

use super::lsn::{Lsn, SystemIdentifier, Timeline, WalLayout};
use super::reading::{Answer, ReplayProgress, ServerIdentity, ServerState};

/// The advisory lock on the primary of a proxy that moves the writes away from it (two `int4` keys, in any database).
pub const LOCK: (i32, i32) = (0x7067_736C, 0x7569_6365);

/// Where such a proxy says so to the others, once it has the lock.
pub const CHANNEL: &str = "pgsluice";

/// A session of our own role holds [`LOCK`]. Anybody may take it, and must not be believed.
pub const SOMEBODY_SWITCHES: &str = "EXISTS (SELECT FROM pg_catalog.pg_locks \
JOIN pg_catalog.pg_stat_activity a USING (pid) \
WHERE a.usename OPERATOR(pg_catalog.=) current_user AND locktype = 'advisory' AND classid = 1885827948 AND objid = 1969840997 AND objsubid = 2)";

/// When to look whether somebody holds [`LOCK`]: `pg_locks` isn't free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Somebody may.
    Anyway,
    /// Where the server says that it takes no writes.
    IfReadOnly,
}

/// The statement. Its columns are [`read_row`]'s.
pub fn statement(look: Look) -> String {
    let when = match look {
        Look::Anyway => "true",
        Look::IfReadOnly => "pg_catalog.current_setting('default_transaction_read_only') OPERATOR(pg_catalog.=) 'on'",
    };
    let system_identifier = "(SELECT system_identifier FROM pg_catalog.pg_control_system())";
    format!(
        "SELECT r.in_recovery, {system_identifier}, {SERVER_IDENTITY}, {COLUMNS}, CASE WHEN {when} THEN {SOMEBODY_SWITCHES} ELSE false END {SOURCE}"
    )
}

/// Which run of which server answers, as a [`ServerIdentity`].
pub const SERVER_IDENTITY: &str = "\
((extract(epoch FROM pg_catalog.pg_postmaster_start_time()) OPERATOR(pg_catalog.*) 1000000)::pg_catalog.int8 \
OPERATOR(pg_catalog.#) (pg_catalog.current_setting('port')::pg_catalog.int8 OPERATOR(pg_catalog.<<) 48))";

const COLUMNS: &str = "pg_catalog.current_setting('server_version_num'), \
i.wal_block_size, i.bytes_per_wal_segment, \
CASE WHEN r.in_recovery THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_insert_lsn() END, \
CASE WHEN r.in_recovery THEN pg_catalog.pg_last_wal_receive_lsn() ELSE pg_catalog.pg_current_wal_flush_lsn() END, \
CASE WHEN NOT r.in_recovery \
THEN pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 1, 8) END, \
CASE WHEN r.in_recovery THEN (SELECT received_tli FROM pg_catalog.pg_stat_wal_receiver) END, \
CASE WHEN r.in_recovery THEN (SELECT greatest(c.timeline_id, m.min_recovery_end_timeline) \
FROM pg_catalog.pg_control_checkpoint() c, pg_catalog.pg_control_recovery() m) END, \
CASE WHEN r.in_recovery THEN pg_catalog.pg_is_wal_replay_paused() END, \
pg_catalog.current_setting('synchronous_standby_names') OPERATOR(pg_catalog.<>) ''";

const SOURCE: &str = "FROM (SELECT pg_catalog.pg_is_in_recovery() AS in_recovery) r, pg_catalog.pg_control_init() i";

/// The answer isn't a row of [`statement`]'s.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("column {column} of the answer is {value:?}")]
pub struct BadRow {
    /// From 1.
    pub column: usize,
    /// What is in it, cut to a readable length.
    pub value: Option<String>,
}

/// Reads a row of [`statement`]'s, in text format.
pub fn read_row(columns: &[Option<&[u8]>]) -> Result<Answer, BadRow> {
    let row = Row(columns);
    let in_recovery = row.boolean(0)?;
    let state = if in_recovery {
        ServerState::Standby {
            replayed: row.optional(6, |text| text.parse().ok().map(Some))?,
            received: row.optional(7, |text| text.parse().ok().map(Some))?,
            received_timeline: row.optional(9, decimal_timeline)?,
            recovered_timeline: row.optional(10, decimal_timeline)?,
            progress: if row.boolean(11)? {
                ReplayProgress::Paused
            } else {
                ReplayProgress::Running
            },
        }
    } else {
        let (page, segment): (u64, u64) = (row.parse(4)?, row.parse(5)?);
        let layout = WalLayout::new(page, segment).ok_or_else(|| row.bad(5))?;
        let insert: Lsn = row.parse(6)?;
        ServerState::Primary {
            timeline: row.required(8, hexadecimal_timeline)?,
            insert: layout.without_page_header(insert),
            flush: row.parse(7)?,
            synchronous: row.boolean(12)?,
            yields: row.boolean(13)?,
        }
    };
    Ok(Answer {
        // int8 in SQL, unsigned in the control file.
        system_identifier: SystemIdentifier(row.parse::<i64>(1)?.cast_unsigned()),
        server: ServerIdentity(row.parse(2)?),
        version: row.parse(3)?,
        state,
    })
}

/// 0 stands for "none" in the control file and in the view.
fn decimal_timeline(text: &str) -> Option<Option<Timeline>> {
    let number = text.parse().ok()?;
    Some((number != 0).then_some(Timeline(number)))
}

fn hexadecimal_timeline(text: &str) -> Option<Timeline> {
    u32::from_str_radix(text, 16)
        .ok()
        .filter(|number| *number != 0)
        .map(Timeline)
}

struct Row<'a>(&'a [Option<&'a [u8]>]);

impl Row<'_> {
    fn text(&self, column: usize) -> Result<Option<&str>, BadRow> {
        match self.0.get(column) {
            Some(Some(bytes)) => std::str::from_utf8(bytes).map(Some).map_err(|_| self.bad(column)),
            Some(None) => Ok(None),
            None => Err(self.bad(column)),
        }
    }

    fn required<T>(&self, column: usize, read: impl FnOnce(&str) -> Option<T>) -> Result<T, BadRow> {
        self.text(column)?.and_then(read).ok_or_else(|| self.bad(column))
    }

    fn optional<T>(&self, column: usize, read: impl FnOnce(&str) -> Option<Option<T>>) -> Result<Option<T>, BadRow> {
        match self.text(column)? {
            Some(text) => read(text).ok_or_else(|| self.bad(column)),
            None => Ok(None),
        }
    }

    fn parse<T: std::str::FromStr>(&self, column: usize) -> Result<T, BadRow> {
        self.required(column, |text| text.parse().ok())
    }

    fn boolean(&self, column: usize) -> Result<bool, BadRow> {
        self.required(column, |text| match text {
            "t" => Some(true),
            "f" => Some(false),
            _ => None,
        })
    }

    fn bad(&self, column: usize) -> BadRow {
        let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).chars().take(40).collect();
        BadRow {
            column: column + 1,
            value: self.0.get(column).copied().flatten().map(shown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(row: &str) -> Result<Answer, BadRow> {
        let columns: Vec<Option<&[u8]>> = row
            .split('|')
            .map(|text| (!text.is_empty()).then_some(text.as_bytes()))
            .collect();
        read_row(&columns)
    }

    #[test]
    fn the_lock_is_looked_for_by_its_keys() {
        let keys = format!("classid = {} AND objid = {}", LOCK.0, LOCK.1);
        assert!(SOMEBODY_SWITCHES.contains(&keys));
    }

    const PRIMARY: &str =
        "f|7711484104540977757|1795469808025930|150018|8192|16777216|0/3016018|0/3016000|0000000A||||f|f";
    const STANDBY: &str = "t|-1|1795469808344988|150018|8192|16777216|0/3016018|||2|1|f";

    #[test]
    fn a_primary_tells_its_timeline_and_position_without_the_page_header() {
        let answer = read(PRIMARY).unwrap();
        assert_eq!(answer.system_identifier, SystemIdentifier(7711484104540977757));
        assert_eq!(
            (answer.server, answer.version),
            (ServerIdentity(1795469808025930), 150018)
        );
        let end = Lsn(0x3016000);
        assert_eq!(
            answer.state,
            ServerState::Primary {
                timeline: Timeline(10),
                insert: end,
                flush: end,
                synchronous: false,
                yields: false,
            }
        );
        let yielding = read(&PRIMARY.replace("||||f|f", "||||t|t")).unwrap();
        assert!(matches!(
            yielding.state,
            ServerState::Primary {
                synchronous: true,
                yields: true,
                ..
            }
        ));
    }

    #[test]
    fn a_standby_tells_what_it_replayed_and_may_not_have_received_anything() {
        let answer = read(STANDBY).unwrap();
        assert_eq!(answer.system_identifier, SystemIdentifier(u64::MAX));
        let expected = ServerState::Standby {
            replayed: Some(Lsn(0x3016018)),
            received: None,
            received_timeline: Some(Timeline(2)),
            recovered_timeline: Some(Timeline(1)),
            progress: ReplayProgress::Running,
        };
        assert_eq!(answer.state, expected);
        let fresh = read("t|1|1|120000|8192|16777216|||||0|t").unwrap();
        assert!(matches!(
            fresh.state,
            ServerState::Standby {
                replayed: None,
                received_timeline: None,
                recovered_timeline: None,
                progress: ReplayProgress::Paused,
                ..
            }
        ));
    }

    #[test]
    fn what_is_no_such_row_is_an_error_that_names_the_column() {
        for (row, column) in [
            ("", 1),
            ("x", 1),
            ("f", 5),
            ("t|1|1|150018|8192|16777216|0/1|||1|1", 12),
            ("f|1|1|150018|8000|16777216|0/1|0/1|00000001|||", 6),
            ("f|1|1|150018|8192|16777216|0/1|0/1|00000000|||", 9),
            ("f|1|1|150018|8192|16777216|nowhere|0/1|00000001|||", 7),
            ("f|1|1|150018|8192|16777216|0/1||00000001|||", 8),
        ] {
            assert_eq!(read(row).unwrap_err().column, column, "{row}");
        }
    }

    proptest! {
        #[test]
        fn any_row_is_read_or_refused_without_panic(
            columns in prop::collection::vec(prop::option::of(prop::collection::vec(any::<u8>(), 0..12)), 0..14)
        ) {
            let columns: Vec<Option<&[u8]>> = columns.iter().map(|column| column.as_deref()).collect();
            let _ = read_row(&columns);
        }
    }
}
