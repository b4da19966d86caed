//! What it costs to tell what a statement is, as a session asks for it: from its worker's cache, worked out anew, and for texts that are
//! made to be hard. The bounds that these are to keep stand in docs/performance.md; `tests/sql_cost.rs` keeps their order of magnitude.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use pgsluice::sql::{BuiltIn, ClassCache, SqlContext};

#[allow(dead_code, unreachable_pub, reason = "only some of its chances are taken here")]
#[path = "../tests/support/dice.rs"]
mod dice;
#[allow(unreachable_pub, reason = "other tests have these as modules of a folder")]
#[path = "../tests/support/texts.rs"]
mod texts;

/// The bounds of a worker's cache.
fn cache() -> ClassCache {
    ClassCache::new(20_000, 16 << 20)
}

fn hit(c: &mut Criterion) {
    let mut group = c.benchmark_group("hit");
    let context = SqlContext::default();
    for (name, sql) in texts::OLTP {
        let mut cache = cache();
        cache.classify(sql.as_bytes(), &context, &BuiltIn, 0);
        group.bench_function(*name, |b| {
            b.iter(|| cache.classify(black_box(sql.as_bytes()), &context, &BuiltIn, 0));
        });
        assert_eq!(cache.misses(), 1, "{name} is no hit");
    }
    group.finish();
}

/// Texts that differ in what doesn't matter: known by their normal form.
fn alike(c: &mut Criterion) {
    let mut group = c.benchmark_group("alike");
    let context = SqlContext::default();
    for (name, sql) in texts::OLTP {
        let variants: Vec<String> = (0..8192).map(|n| format!("{sql} -- {n}")).collect();
        let mut cache = cache();
        cache.classify(sql.as_bytes(), &context, &BuiltIn, 0);
        let mut at = 0;
        group.bench_function(*name, |b| {
            b.iter(|| {
                at = (at + 1) % variants.len();
                cache.classify(black_box(variants[at].as_bytes()), &context, &BuiltIn, 0)
            });
        });
        assert_eq!(cache.misses(), 1, "{name} is no hit");
    }
    group.finish();
}

/// Each with another version of the catalog, so that the cache has none of them and is full, as it is where texts never repeat.
fn miss(c: &mut Criterion) {
    let mut group = c.benchmark_group("miss");
    let context = SqlContext::default();
    for (name, sql) in texts::OLTP {
        let mut cache = cache();
        let mut version = 0;
        group.bench_function(*name, |b| {
            b.iter(|| {
                version += 1;
                cache.classify(black_box(sql.as_bytes()), &context, &BuiltIn, version)
            });
        });
        assert_eq!(cache.hits(), 0, "{name} is no miss");
    }
    group.finish();
}

fn hard(c: &mut Criterion) {
    let mut group = c.benchmark_group("hard");
    group.sample_size(20).measurement_time(Duration::from_secs(2));
    let context = SqlContext::default();
    for (name, sql) in texts::hard() {
        group.throughput(Throughput::Bytes(sql.len() as u64));
        group.bench_function(name, |b| {
            b.iter_batched_ref(
                cache,
                |cache| cache.classify(black_box(&sql), &context, &BuiltIn, 0),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, hit, alike, miss, hard);
criterion_main!(benches);
