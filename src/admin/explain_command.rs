//! `pgsluice explain`: what a statement is, and why, to people and to programs.
//!
//! With a configuration it asks the servers what a database's own names mean, as the proxy does; without one it knows PostgreSQL's.

use std::io::{self, BufRead, Write};

use crate::catalog;
use crate::config::{Config, RoutePreference};
use crate::sql::{Access, BuiltIn, Catalog, Hint, Learned, SqlContext, StatementClass, classify_with, explain_json};

/// What statements are judged by.
#[derive(Debug, Default)]
pub struct Explainer {
    learned: Option<Learned>,
    route: RoutePreference,
}

impl Explainer {
    /// For statements in `database` by `user`, as far as they are told: without a database, in the monitor's.
    ///
    /// # Errors
    /// No node answers.
    pub async fn of(config: &Config, database: Option<&str>, user: Option<&str>) -> Result<Explainer, String> {
        let database = database.unwrap_or(&config.monitor.database);
        let learned = catalog::look_up(config, database)
            .await
            .map_err(|error| format!("the names of database {database} can't be looked up: {error}"))?;
        Ok(Explainer {
            learned: Some(learned),
            route: config.routing.route_for(user.unwrap_or_default(), database),
        })
    }

    fn catalog(&self) -> &dyn Catalog {
        match &self.learned {
            Some(learned) => learned,
            None => &BuiltIn,
        }
    }

    /// One statement, for people.
    ///
    /// # Errors
    /// What can't be written.
    pub fn explain(&self, sql: &str, out: &mut impl Write) -> io::Result<()> {
        let class = classify_with(sql.as_bytes(), &SqlContext::default(), self.catalog());
        writeln!(out, "class:   {}", class.access.as_str())?;
        writeln!(out, "because: {}", class.reason)?;
        if !class.effects.is_empty() {
            let effects: Vec<String> = class.effects.iter().map(ToString::to_string).collect();
            writeln!(out, "effects: {}", effects.join(", "))?;
        }
        writeln!(out, "goes to: {}", self.destination(&class))
    }

    /// One statement, as a line of JSON.
    ///
    /// # Errors
    /// What can't be written.
    pub fn explain_json(&self, sql: &str, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "{}", explain_json(sql, self.catalog()))
    }

    /// `{"sql": "…"}` lines, a line of JSON for each.
    ///
    /// # Errors
    /// A line is something else; what can't be read or written.
    pub fn batch(&self, lines: impl BufRead, out: &mut impl Write) -> io::Result<()> {
        #[derive(serde::Deserialize)]
        struct Line {
            sql: String,
        }
        for (number, line) in lines.lines().enumerate() {
            let line = line?;
            if line.trim().is_empty() {
                continue;
            }
            let line: Line = serde_json::from_str(&line)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("line {}: {error}", number + 1)))?;
            self.explain_json(&line.sql, out)?;
        }
        out.flush()
    }

    fn destination(&self, class: &StatementClass) -> &'static str {
        match (class.hint, class.access, self.route) {
            (Some(Hint::Primary), ..) => "the primary, as its hint asks",
            (Some(Hint::Standby), Access::Write, _) if class.standby_by_hint => "a standby, as its hint asks",
            (None, Access::Read, RoutePreference::Primary) => "the primary, as is configured for its user or database",
            (None, Access::Read, RoutePreference::Standby) => "a standby, as is configured for its user or database",
            (_, Access::Read, _) => "a standby that is fresh enough, else the primary",
            (_, Access::Write, _) => "the primary",
        }
    }
}
