//! What each database's names mean, kept up to date: which of its functions, views and types only read.
//!
//! A session asks [`DatabaseNames::current`] for every statement. At first, and whenever something may have changed that isn't known yet,
//! that is nothing but PostgreSQL's own names: safe, and slower, since what isn't known goes to the primary. `keeper` loads a database's
//! names with the monitor's role (`load`), when a session first needs them, after DDL that went through this proxy, when a name turns up that
//! isn't known, and on a timer, for what was changed past it.

mod keeper;
mod load;
mod look_up;
mod refusals;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use foldhash::HashMap;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use crate::sql::{BuiltIn, Catalog, Learned};
pub use keeper::{Keeping, keep};
pub use look_up::{LookUpError, look_up};
pub use refusals::Refusals;

/// The names of all databases.
#[derive(Debug)]
pub struct Catalogs {
    by_database: Mutex<HashMap<Box<str>, Arc<DatabaseNames>>>,
    /// To the keeper: databases that it doesn't know yet.
    fresh: mpsc::UnboundedSender<Arc<DatabaseNames>>,
}

/// What the keeper takes: databases that have turned up.
pub type Fresh = mpsc::UnboundedReceiver<Arc<DatabaseNames>>;

impl Catalogs {
    /// None yet. [`keep`] takes what turns up.
    pub fn new() -> (Catalogs, Fresh) {
        let (fresh, keeper) = mpsc::unbounded_channel();
        let catalogs = Catalogs {
            by_database: Mutex::default(),
            fresh,
        };
        (catalogs, keeper)
    }

    /// The names of a database to which somebody has logged in.
    pub fn of(&self, database: &str) -> Arc<DatabaseNames> {
        let mut by_database = self.by_database.lock();
        if let Some(known) = by_database.get(database) {
            return Arc::clone(known);
        }
        // Those that nobody uses; their keeper holds one.
        by_database.retain(|_, names| Arc::strong_count(names) > 2);
        let names = Arc::new(DatabaseNames::new(database));
        by_database.insert(database.into(), Arc::clone(&names));
        // Without a keeper, what a database has of its own is never known.
        let _ = self.fresh.send(Arc::clone(&names));
        names
    }
}

/// What names mean at one time.
#[derive(Debug)]
pub struct Names {
    /// No other names, of any database, have the same number.
    pub version: u64,
    learned: Option<Learned>,
    puzzled: Arc<Notify>,
}

impl Names {
    fn new(learned: Option<Learned>, puzzled: &Arc<Notify>) -> Names {
        static VERSIONS: AtomicU64 = AtomicU64::new(0);
        Names {
            version: VERSIONS.fetch_add(1, Ordering::Relaxed),
            learned,
            puzzled: Arc::clone(puzzled),
        }
    }

    /// A text names something that isn't known: it may be new.
    pub fn puzzle(&self) {
        if self.is_learned() {
            self.puzzled.notify_one();
        }
    }

    /// For classification.
    pub fn catalog(&self) -> &dyn Catalog {
        match &self.learned {
            Some(learned) => learned,
            None => &BuiltIn,
        }
    }

    /// Whether the database's own names are in it.
    pub fn is_learned(&self) -> bool {
        self.learned.is_some()
    }
}

/// One database's names.
#[derive(Debug)]
pub struct DatabaseNames {
    database: Box<str>,
    current: ArcSwap<Names>,
    /// That of `current`, for who has some already.
    version: AtomicU64,
    /// Grows whenever something may have changed.
    changes: AtomicU64,
    /// Sessions that have changed something, and may not have committed it yet.
    changing: AtomicUsize,
    /// A name that isn't known has turned up.
    puzzled: Arc<Notify>,
    changed: Notify,
    /// What standbys have refused.
    pub refusals: Refusals,
}

impl DatabaseNames {
    fn new(database: &str) -> DatabaseNames {
        let puzzled = Arc::default();
        let names = Names::new(None, &puzzled);
        DatabaseNames {
            database: database.into(),
            version: AtomicU64::new(names.version),
            current: ArcSwap::from_pointee(names),
            changes: AtomicU64::new(0),
            changing: AtomicUsize::new(0),
            puzzled,
            changed: Notify::new(),
            refusals: Refusals::default(),
        }
    }

    /// What names mean now.
    pub fn current(&self) -> Arc<Names> {
        self.current.load_full()
    }

    /// Whether `names` are still what names mean.
    pub fn is_current(&self, names: &Names) -> bool {
        self.version.load(Ordering::Acquire) == names.version
    }

    fn publish(&self, learned: Option<Learned>) {
        let names = Names::new(learned, &self.puzzled);
        let version = names.version;
        self.current.store(Arc::new(names));
        self.version.store(version, Ordering::Release);
    }

    /// A session is about to change what names mean. Until it has, for good or not, and what has become of it is known, only PostgreSQL's
    /// own names are.
    pub fn change(self: &Arc<Self>) -> Change {
        self.changing.fetch_add(1, Ordering::SeqCst);
        self.forget();
        Change(Arc::clone(self))
    }

    /// A server doesn't know what we thought it did, or the other way round.
    pub fn puzzle(&self) {
        self.puzzled.notify_one();
    }

    fn forget(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.refusals.clear();
        if self.current().is_learned() {
            self.publish(None);
        }
    }

    /// Takes over what was loaded, unless something has changed since `changes` was read.
    fn learn(&self, learned: Learned, changes: u64) -> bool {
        let unchanged = || self.changing.load(Ordering::SeqCst) == 0 && self.changes.load(Ordering::SeqCst) == changes;
        if !unchanged() {
            return false;
        }
        self.publish(Some(learned));
        if !unchanged() {
            self.publish(None);
            return false;
        }
        self.refusals.clear();
        true
    }
}

/// A session that has changed what names mean, and may yet take it back.
#[derive(Debug)]
pub struct Change(Arc<DatabaseNames>);

impl Drop for Change {
    fn drop(&mut self) {
        self.0.forget();
        self.0.changing.fetch_sub(1, Ordering::SeqCst);
        self.0.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::CatalogRows;

    fn learned() -> Learned {
        Learned::from_rows(&CatalogRows::default(), &[])
    }

    #[test]
    fn what_was_loaded_before_a_change_is_never_taken_over() {
        let names = Arc::new(DatabaseNames::new("d"));
        let before = names.changes.load(Ordering::SeqCst);
        assert!(names.learn(learned(), before));
        assert!(names.current().is_learned());
        let change = names.change();
        assert!(!names.current().is_learned());
        let during = names.changes.load(Ordering::SeqCst);
        assert!(!names.learn(learned(), before));
        assert!(!names.learn(learned(), during));
        drop(change);
        // It was read before the change was committed.
        assert!(!names.learn(learned(), during));
        assert!(!names.current().is_learned());
        assert!(names.learn(learned(), names.changes.load(Ordering::SeqCst)));
    }

    #[test]
    fn sessions_of_a_database_share_its_names() {
        let (catalogs, mut fresh) = Catalogs::new();
        let one = catalogs.of("a");
        assert!(Arc::ptr_eq(&one, &catalogs.of("a")));
        assert!(!Arc::ptr_eq(&one, &catalogs.of("b")));
        assert_eq!(&*fresh.try_recv().expect("a").database, "a");
        assert_eq!(&*fresh.try_recv().expect("b").database, "b");
        assert!(fresh.try_recv().is_err());
    }
}
