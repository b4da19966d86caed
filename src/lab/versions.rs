//! What differs between the majors that the lab builds, all of it in one match.

use super::binaries::PgVersion;
use super::error::LabError;

/// How one major wants things said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Dialect {
    /// How to keep 256 MB of WAL for standbys that were away.
    pub(super) keep_wal: (&'static str, &'static str),
    /// Whether the server watches a trigger file of its own.
    pub(super) trigger_file: TriggerFile,
    /// How a standby learns whom to follow.
    pub(super) repoint: Repoint,
    /// Whether `pg_rewind` recovers a crashed target by itself.
    pub(super) rewind: Rewind,
}

/// `promote_trigger_file`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TriggerFile {
    /// 12 to 15: polled every 5 s.
    Watched,
    /// Removed in 16.
    Gone,
}

/// `primary_conninfo` and `restore_command` change together, or a standby restores WAL from another node than it streams from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repoint {
    /// 14 and later read both again on SIGHUP.
    Reload,
    /// 13 reads `primary_conninfo` again but not `restore_command`; 12 neither.
    Restart,
}

/// `pg_rewind` and a target that wasn't stopped cleanly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rewind {
    /// 13 and later run crash recovery first.
    RecoversFirst,
    /// 12 wants that done before.
    WantsCleanStop,
}

impl Dialect {
    pub(super) fn of(version: &PgVersion) -> Result<Self, LabError> {
        let keep_size = ("wal_keep_size", "256MB");
        let keep_segments = ("wal_keep_segments", "16");
        let dialect = match version.major {
            ..=11 => {
                return Err(LabError::TooOld {
                    version: version.text.clone(),
                });
            }
            12 => Self {
                keep_wal: keep_segments,
                trigger_file: TriggerFile::Watched,
                repoint: Repoint::Restart,
                rewind: Rewind::WantsCleanStop,
            },
            13 => Self {
                keep_wal: keep_size,
                trigger_file: TriggerFile::Watched,
                repoint: Repoint::Restart,
                rewind: Rewind::RecoversFirst,
            },
            14 | 15 => Self {
                keep_wal: keep_size,
                trigger_file: TriggerFile::Watched,
                repoint: Repoint::Reload,
                rewind: Rewind::RecoversFirst,
            },
            16.. => Self {
                keep_wal: keep_size,
                trigger_file: TriggerFile::Gone,
                repoint: Repoint::Reload,
                rewind: Rewind::RecoversFirst,
            },
        };
        Ok(dialect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialect(major: u32) -> Result<Dialect, LabError> {
        Dialect::of(&PgVersion {
            major,
            text: major.to_string(),
        })
    }

    #[test]
    fn recovery_conf_versions_are_refused_and_told_what_they_lack() {
        let refused = dialect(11).unwrap_err();
        assert!(refused.hint().unwrap().contains("recovery.conf"));
    }

    #[test]
    fn each_setting_is_used_only_where_the_server_has_it() {
        for (major, keep_wal, trigger_file, repoint) in [
            (12, "wal_keep_segments", TriggerFile::Watched, Repoint::Restart),
            (13, "wal_keep_size", TriggerFile::Watched, Repoint::Restart),
            (14, "wal_keep_size", TriggerFile::Watched, Repoint::Reload),
            (15, "wal_keep_size", TriggerFile::Watched, Repoint::Reload),
            (16, "wal_keep_size", TriggerFile::Gone, Repoint::Reload),
            (18, "wal_keep_size", TriggerFile::Gone, Repoint::Reload),
        ] {
            let found = dialect(major).unwrap();
            assert_eq!(
                (found.keep_wal.0, found.trigger_file, found.repoint),
                (keep_wal, trigger_file, repoint),
                "{major}"
            );
        }
    }
}
