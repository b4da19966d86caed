//! Classes that were worked out before, by the normal form of their text.
//!
//! One cache per worker: nothing in it is shared, so that a hit takes no lock. It costs one pass of the lexer, one hash and one
//! comparison of keys, and allocates nothing. Texts that come again as they are, as parameterised ones do, are known without the pass.

use std::hash::BuildHasher;
use std::sync::Arc;

use quick_cache::{Weighter, unsync::Cache};

use super::names::Catalog;
use super::{MAX_LENGTH, SqlContext, StatementClass, classify_normal_form, classify_normalised, fingerprint};

/// A bounded map from texts to classes.
#[derive(Debug)]
pub struct ClassCache {
    classes: Cache<Box<[u8]>, Arc<StatementClass>, EntryWeight, foldhash::fast::RandomState>,
    /// Of texts as they are, that have come more than once.
    exact: Cache<Box<[u8]>, Known, EntryWeight, foldhash::fast::RandomState>,
    /// Hashes of texts that have come once, each in the place that it says.
    seen: Box<[u32; SEEN]>,
    hasher: foldhash::fast::RandomState,
    normal_form: Vec<u8>,
    hits: u64,
    misses: u64,
}

/// A text's class, and for whom.
#[derive(Debug, Clone)]
struct Known {
    context: SqlContext,
    version: u64,
    class: Arc<StatementClass>,
}

/// How many texts are remembered to have come once.
const SEEN: usize = 4096;

impl ClassCache {
    /// Holds at most about `entries` classes, and at most about `bytes` of keys and classes, whichever is less.
    pub fn new(entries: usize, bytes: usize) -> Self {
        let entries = entries.max(1);
        let weight = EntryWeight {
            least: least_of(entries, bytes),
        };
        ClassCache {
            classes: Cache::with(entries, bytes as u64, weight, Default::default(), Default::default()),
            exact: Cache::with(
                entries.div_ceil(4),
                (bytes / 4) as u64,
                EntryWeight {
                    least: least_of(entries.div_ceil(4), bytes / 4),
                },
                Default::default(),
                Default::default(),
            ),
            seen: Box::new([0; SEEN]),
            hasher: Default::default(),
            normal_form: Vec::new(),
            hits: 0,
            misses: 0,
        }
    }

    /// The class of `sql`, as [`classify_with`](super::classify_with) gives it. `version` is another for each `catalog`.
    pub fn classify(
        &mut self,
        sql: &[u8],
        context: &SqlContext,
        catalog: &dyn Catalog,
        version: u64,
    ) -> Arc<StatementClass> {
        if let Some(known) = self.exact.get(sql)
            && known.context == *context
            && known.version == version
        {
            self.hits += 1;
            return Arc::clone(&known.class);
        }
        let class = self.by_normal_form(sql, context, catalog, version);
        if self.has_come_before(sql) {
            let known = Known {
                context: *context,
                version,
                class: Arc::clone(&class),
            };
            self.exact.insert(sql.into(), known);
        }
        class
    }

    /// Whether this very text has come lately; if not, it has now.
    fn has_come_before(&mut self, sql: &[u8]) -> bool {
        let hash = self.hasher.hash_one(sql);
        let (place, tag) = (hash as usize % SEEN, (hash >> 32) as u32 | 1);
        std::mem::replace(&mut self.seen[place], tag) == tag && sql.len() <= MAX_LENGTH
    }

    fn by_normal_form(
        &mut self,
        sql: &[u8],
        context: &SqlContext,
        catalog: &dyn Catalog,
        version: u64,
    ) -> Arc<StatementClass> {
        if !fingerprint::normalise(sql, context, &mut self.normal_form) {
            self.misses += 1;
            return Arc::new(classify_normal_form(sql, context, catalog));
        }
        let length = self.normal_form.len();
        self.normal_form.extend_from_slice(&version.to_ne_bytes());
        if let Some(class) = self.classes.get(self.normal_form.as_slice()) {
            self.hits += 1;
            return Arc::clone(class);
        }
        self.misses += 1;
        let normal_form = &self.normal_form[..length];
        let class = Arc::new(classify_normalised(normal_form, context, catalog));
        self.classes
            .insert(self.normal_form.as_slice().into(), Arc::clone(&class));
        class
    }

    /// Look-ups answered from the cache.
    pub fn hits(&self) -> u64 {
        self.hits
    }

    /// Look-ups that were worked out.
    pub fn misses(&self) -> u64 {
        self.misses
    }

    /// Classes held.
    pub fn len(&self) -> usize {
        self.classes.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.classes.is_empty()
    }
}

fn least_of(entries: usize, bytes: usize) -> u64 {
    (bytes / entries).max(1) as u64
}

/// An entry weighs its bytes, but at least its share of the bound: so one bound on weights bounds bytes and count.
#[derive(Debug, Clone)]
struct EntryWeight {
    least: u64,
}

impl Weighter<Box<[u8]>, Known> for EntryWeight {
    fn weight(&self, key: &Box<[u8]>, known: &Known) -> u64 {
        self.weight(key, &known.class)
    }
}

impl Weighter<Box<[u8]>, Arc<StatementClass>> for EntryWeight {
    fn weight(&self, key: &Box<[u8]>, class: &Arc<StatementClass>) -> u64 {
        let bytes = key.len() + size_of::<StatementClass>() + class.effects.len() * 64 + ENTRY_OVERHEAD;
        (bytes as u64).max(self.least)
    }
}

/// The cache's own bookkeeping, about: slots, hash table, allocator headers.
const ENTRY_OVERHEAD: usize = 96;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::BuiltIn;

    #[test]
    fn values_do_not_defeat_the_cache() {
        let mut cache = ClassCache::new(100, 1 << 20);
        for id in 0..50 {
            let class = cache.classify(
                format!("select v from t where id = {id} -- {id}").as_bytes(),
                &SqlContext::default(),
                &BuiltIn,
                0,
            );
            assert!(class.retry_safe);
        }
        assert_eq!((cache.hits(), cache.misses()), (49, 1));
    }

    #[test]
    fn count_and_bytes_are_bounded() {
        let mut cache = ClassCache::new(10, 1 << 20);
        let mut small = ClassCache::new(1000, 4000);
        for id in 0..1000 {
            let sql = format!("select c{id} from t");
            cache.classify(sql.as_bytes(), &SqlContext::default(), &BuiltIn, 0);
            small.classify(sql.as_bytes(), &SqlContext::default(), &BuiltIn, 0);
        }
        assert!(cache.len() <= 10, "{}", cache.len());
        assert!(small.len() <= 20, "{}", small.len());
    }

    #[test]
    fn a_text_that_comes_again_is_known_as_it_is() {
        let mut cache = ClassCache::new(100, 1 << 20);
        let mut ask = |sql: &str, version| {
            let class = cache.classify(sql.as_bytes(), &SqlContext::default(), &BuiltIn, version);
            (class, cache.exact.len())
        };
        let (first, exact) = ask("select v from t where id = $1 limit 7", 0);
        assert_eq!(exact, 0);
        assert_eq!(ask("select v from t where id = $1 limit 8", 0).1, 0);
        let (second, exact) = ask("select v from t where id = $1 limit 7", 0);
        assert_eq!((exact, &second), (1, &first));
        assert_eq!(ask("select v from t where id = $1 limit 7", 0).0, first);
        // Names that mean something else make another class of it.
        assert_eq!(ask("select v from t where id = $1 limit 7", 1).1, 1);
    }

    #[test]
    fn contexts_do_not_share_classes() {
        let mut cache = ClassCache::new(10, 1 << 20);
        let first = cache.classify(b"select lower('x')", &SqlContext::default(), &BuiltIn, 0);
        let shadowed = SqlContext {
            pg_catalog_first: false,
            ..SqlContext::default()
        };
        let second = cache.classify(b"select lower('x')", &shadowed, &BuiltIn, 0);
        assert_ne!(first.access, second.access);
        // Nor do catalogs.
        let again = cache.classify(b"select lower('x')", &SqlContext::default(), &BuiltIn, 1);
        assert!(!Arc::ptr_eq(&first, &again));
    }
}
