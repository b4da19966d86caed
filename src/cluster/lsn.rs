//! Positions in the write-ahead log, and the identities that say which log they are positions in.
//!
//! An [`Lsn`] alone means little: it belongs to a [`Timeline`] of a [`SystemIdentifier`], and two of them compare only where the
//! timelines have not forked yet. Everything here is a value; nothing asks a server.
//! Manual: "WAL Internals", "pg_lsn Type", "Timelines".

use std::fmt;
use std::str::FromStr;

/// A byte position in the write-ahead log (`pg_lsn`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

/// A timeline: 1 after initdb, one more after each promotion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timeline(pub u32);

/// What initdb drew and every physical copy inherits: equal on all servers of one cluster (`pg_control_system()`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SystemIdentifier(pub u64);

/// How often the primary has changed since this proxy started. 0 until a first primary was elected. A server connection carries
/// the epoch under which it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch after this one.
    #[must_use]
    pub fn next(self) -> Epoch {
        Epoch(self.0 + 1)
    }
}

/// The sizes that a server's log is cut into (`pg_control_init()`); both are powers of two, fixed at initdb or at compile time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalLayout {
    page: u64,
    segment: u64,
}

/// `SizeOfXLogShortPHD`, aligned: the header of every log page but a segment's first.
const PAGE_HEADER: u64 = 24;
/// `SizeOfXLogLongPHD`, aligned: the header of a segment's first page.
const SEGMENT_HEADER: u64 = 40;

impl WalLayout {
    /// What initdb does unless told otherwise: pages of 8 KB in segments of 16 MB.
    pub const DEFAULT: WalLayout = WalLayout {
        page: 8192,
        segment: 16 * 1024 * 1024,
    };

    /// The layout with these sizes in bytes, if they are sizes that PostgreSQL can have.
    pub fn new(page: u64, segment: u64) -> Option<WalLayout> {
        let plausible = page.is_power_of_two() && segment.is_power_of_two() && page >= 1024 && segment > page;
        plausible.then_some(WalLayout { page, segment })
    }

    /// The position that replay reaches when it has replayed all that lies before `insert`.
    ///
    /// `pg_current_wal_insert_lsn()` says where the *next* record will start. Right at a page's end that is behind the next
    /// page's header, but replay reports the end of the last record, which is before it: on a primary that then falls idle no
    /// standby would ever be seen to arrive. No record ends inside a header, so taking it off loses nothing. (An offset of 40
    /// inside a segment is an ordinary position.)
    pub fn without_page_header(self, insert: Lsn) -> Lsn {
        if insert.0 % self.segment == SEGMENT_HEADER {
            Lsn(insert.0 - SEGMENT_HEADER)
        } else if insert.0 % self.page == PAGE_HEADER && insert.0 % self.segment != PAGE_HEADER {
            Lsn(insert.0 - PAGE_HEADER)
        } else {
            insert
        }
    }
}

/// Text that is not a `pg_lsn`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a WAL position of the form X/Y: {0:?}")]
pub struct NotAnLsn(pub String);

impl FromStr for Lsn {
    type Err = NotAnLsn;

    fn from_str(text: &str) -> Result<Lsn, NotAnLsn> {
        let half = |digits: &str| {
            let hexadecimal = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
            hexadecimal.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
        };
        let halves = text
            .split_once('/')
            .and_then(|(high, low)| Some((half(high)?, half(low)?)));
        match halves {
            Some((high, low)) => Ok(Lsn(high << 32 | low)),
            None => Err(NotAnLsn(text.chars().take(32).collect())),
        }
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for SystemIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn positions_read_and_print_as_postgresql_does() {
        assert_eq!("16/B374D848".parse(), Ok(Lsn(0x16_B374_D848)));
        assert_eq!(Lsn(0x16_B374_D848).to_string(), "16/B374D848");
        assert_eq!(Lsn(0).to_string(), "0/0");
        for wrong in [
            "",
            "/",
            "1",
            "1/",
            "/1",
            "+1/2",
            "1/-2",
            "1/ 2",
            "123456789/1",
            "1/123456789",
            "g/1",
            "1/2/3",
        ] {
            assert!(wrong.parse::<Lsn>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_insert_position_behind_a_page_header_counts_as_the_boundary() {
        let layout = WalLayout::DEFAULT;
        for (insert, reached) in [
            ("0/4174018", "0/4174000"), // a page's header
            ("0/5000028", "0/5000000"), // a segment's header
            ("0/4174028", "0/4174028"), // 40 inside a segment: a record ends there
            ("0/5000018", "0/5000018"), // can't happen: inside a segment's header
            ("0/4174019", "0/4174019"),
            ("0/0", "0/0"),
        ] {
            assert_eq!(
                layout.without_page_header(insert.parse().unwrap()).to_string(),
                reached,
                "{insert}"
            );
        }
        let small = WalLayout::new(4096, 1 << 20).unwrap();
        assert_eq!(small.without_page_header(Lsn(0x10_0028)), Lsn(0x10_0000));
        assert_eq!(small.without_page_header(Lsn(0x10_1018)), Lsn(0x10_1000));
    }

    #[test]
    fn sizes_that_are_not_powers_of_two_are_refused() {
        assert_eq!(WalLayout::new(8192, 16 << 20), Some(WalLayout::DEFAULT));
        for (page, segment) in [
            (0, 0),
            (8192, 0),
            (8000, 16 << 20),
            (8192, 8192),
            (8192, 3 << 20),
            (1, 2),
        ] {
            assert_eq!(WalLayout::new(page, segment), None);
        }
    }

    proptest! {
        #[test]
        fn printing_and_reading_a_position_gives_it_back(lsn: u64) {
            prop_assert_eq!(Lsn(lsn).to_string().parse(), Ok(Lsn(lsn)));
        }

        #[test]
        fn reading_any_text_never_panics(text in ".{0,40}") {
            let _ = text.parse::<Lsn>();
        }
    }
}
