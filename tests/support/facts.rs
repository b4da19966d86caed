//! The table of `tests/data/facts.txt`, whose head says what its columns mean.

/// One statement.
#[derive(Debug, Default)]
pub struct Fact {
    /// The row of the list that it belongs to.
    pub row: u16,
    /// `read`, `write` or `hidden`.
    pub access: String,
    /// What a standby does with it.
    pub standby: String,
    /// Its text.
    pub sql: String,
    /// What its class says beside the access.
    pub effects: String,
    /// Run first, in the same session.
    pub before: Vec<String>,
    /// Run first, on the primary in another session.
    pub first: Option<String>,
    /// By which it is seen what the statement has left.
    pub shows: Option<String>,
    /// Run at last, in the same session.
    pub after: Option<String>,
    /// Of its parameters.
    pub values: Vec<String>,
    /// The session's `search_path`, where it isn't the usual one.
    pub path: Option<String>,
    /// What the primary answers: a SQLSTATE.
    pub primary: Option<String>,
    /// Why it isn't run.
    pub why: Option<String>,
}

/// All statements, with the primary's port where they need it.
pub fn facts(port: u16) -> Vec<Fact> {
    let text = include_str!("../data/facts.txt").replace("{port}", &port.to_string());
    let mut facts: Vec<Fact> = Vec::new();
    let mut row = 0;
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(more) = line.strip_prefix("        ") {
            let (key, value) = split(more);
            facts.last_mut().expect("a statement").note(key, value);
        } else if let Some((number, _)) = line
            .split_once(". ")
            .filter(|_| line.starts_with(|c: char| c.is_ascii_digit()))
        {
            row = number.parse().expect("a row's number");
        } else {
            let (access, rest) = split(line);
            let (standby, sql) = split(rest);
            facts.push(Fact {
                row,
                access: access.to_owned(),
                standby: standby.to_owned(),
                sql: sql.to_owned(),
                ..Fact::default()
            });
        }
    }
    facts
}

/// The first word, and what follows.
fn split(text: &str) -> (&str, &str) {
    let (word, rest) = text.split_once(' ').expect("a word and a text");
    (word, rest.trim_start())
}

impl Fact {
    fn note(&mut self, key: &str, value: &str) {
        let value = value.to_owned();
        match key {
            "effects" => self.effects = value,
            "before" => self.before.push(value),
            "first" => self.first = Some(value),
            "shows" => self.shows = Some(value),
            "after" => self.after = Some(value),
            "value" => self.values.push(value),
            "path" => self.path = Some(value),
            "primary" => self.primary = Some(value),
            "why" => self.why = Some(value),
            other => panic!("{}: unknown key {other}", self.sql),
        }
    }
}
