//! One text, judged by both: what they disagree about.

use pgsluice::sql::{Access, SqlContext, StatementClass, classify};

use crate::facts::Facts;
use crate::oracle::{self, Opinion, Sure};

/// What a text turned out to be.
#[derive(Debug)]
pub(crate) struct Comparison {
    pub(crate) class: StatementClass,
    /// `None` if PostgreSQL doesn't parse it.
    pub(crate) opinion: Option<Opinion>,
    pub(crate) violation: Option<Violation>,
}

/// A disagreement that is the product's fault, or the oracle's. Its parts tell violations of one cause from others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Violation {
    pub(crate) kind: &'static str,
    pub(crate) detail: String,
}

impl Comparison {
    /// A read as PostgreSQL sees it that the product sends to the primary.
    pub(crate) fn is_missed_read(&self) -> bool {
        let read =
            |opinion: &Opinion| opinion.objections.is_empty() && opinion.effects.is_empty() && opinion.statements > 0;
        self.class.access == Access::Write && self.opinion.as_ref().is_some_and(read)
    }

    pub(crate) fn is_read(&self) -> bool {
        self.class.access == Access::Read
    }

    /// Whether the oracle had a doubt that isn't held against the product.
    pub(crate) fn perhaps(&self) -> Option<&'static str> {
        let objections = self.opinion.as_ref()?.objections.iter();
        objections
            .filter(|objection| objection.sure == Sure::Perhaps)
            .map(|objection| objection.kind)
            .next()
    }
}

/// Judges `sql` by the product and by the oracle.
pub(crate) fn compare(sql: &str, facts: &Facts) -> Comparison {
    let class = classify(sql.as_bytes(), &SqlContext::default());
    let opinion = oracle::ask(sql, facts);
    let violation = opinion.as_ref().and_then(|opinion| violation(&class, opinion));
    Comparison {
        class,
        opinion,
        violation,
    }
}

fn violation(class: &StatementClass, opinion: &Opinion) -> Option<Violation> {
    let found = |kind, detail: &str| {
        Some(Violation {
            kind,
            detail: detail.to_owned(),
        })
    };
    if class.access == Access::Read {
        if let Some(objection) = opinion.certain() {
            return found(objection.kind, &objection.detail);
        }
        if !class.effects.is_empty() {
            return found("a read with effects", "");
        }
    }
    if usize::from(class.statements) < opinion.statements {
        return found("fewer statements than PostgreSQL sees", "");
    }
    if usize::from(class.statements) > opinion.statements {
        return found("more statements than PostgreSQL sees", "");
    }
    let effects: Vec<String> = class.effects.iter().map(ToString::to_string).collect();
    let missing = opinion.effects.iter().find(|wanted| {
        let any = |wanted: &str| effects.iter().any(|effect| effect.starts_with(wanted));
        !wanted.split('|').any(any) && !effects.iter().any(|effect| effect == "pin unknown")
    });
    missing.and_then(|wanted| found("effect", wanted))
}
