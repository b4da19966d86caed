//! What is typed into the console, taken apart. Pure.
//!
//! The texts have PostgreSQL's lexical rules: comments, quotes, semicolons between statements, letter case that doesn't matter.

use super::error::ConsoleError;
use crate::sql::{MAX_LENGTH, PlainStrings, Statement, Statements};

/// One statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    /// `SHOW …`
    Show(Topic),
    /// `RELOAD`
    Reload,
    /// `SWITCHOVER [TO node]`
    Switchover(Option<NodeName>),
    /// What drivers send of their own accord, and what changes nothing here: its tag.
    Courtesy(&'static str),
}

/// What can be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Topic {
    Help,
    Nodes,
    Pools,
    Version,
}

/// A node's name as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NodeName {
    pub(super) text: String,
    /// In quotes letter case matters.
    pub(super) quoted: bool,
}

impl NodeName {
    /// Which of `nodes` is meant.
    pub(super) fn among<'a>(&self, nodes: impl Iterator<Item = &'a str> + Clone) -> Option<&'a str> {
        let exact = nodes.clone().find(|node| *node == self.text);
        exact.or_else(|| {
            let mut alike = nodes.filter(|node| !self.quoted && node.eq_ignore_ascii_case(&self.text));
            // None of two that differ in letter case only.
            alike.next().filter(|_| alike.next().is_none())
        })
    }
}

/// A command as the help shows it.
#[derive(Debug)]
pub struct Verb {
    /// How it is written.
    pub syntax: &'static str,
    /// What it does.
    pub meaning: &'static str,
}

/// All commands, in the help's order.
pub const VERBS: [Verb; 6] = [
    Verb {
        syntax: "SHOW HELP",
        meaning: "these commands; HELP alone does too",
    },
    Verb {
        syntax: "SHOW NODES",
        meaning: "the servers: role, timeline, lag, connections, statements",
    },
    Verb {
        syntax: "SHOW POOLS",
        meaning: "server connections, by database, user and node",
    },
    Verb {
        syntax: "SHOW VERSION",
        meaning: "pgsluice's version",
    },
    Verb {
        syntax: "RELOAD",
        meaning: "reads the configuration again, as SIGHUP does",
    },
    Verb {
        syntax: "SWITCHOVER [TO node]",
        meaning: "makes a standby the primary: the one that is named, or else the one that fits best",
    },
];

const TOPICS: [(&str, Topic); 4] = [
    ("help", Topic::Help),
    ("nodes", Topic::Nodes),
    ("pools", Topic::Pools),
    ("version", Topic::Version),
];

/// Commands of SQL that drivers send whatever they talk to, with their tags. There are no transactions here.
const COURTESIES: [(&str, &str); 7] = [
    ("begin", "BEGIN"),
    ("start", "START TRANSACTION"),
    ("commit", "COMMIT"),
    ("end", "COMMIT"),
    ("rollback", "ROLLBACK"),
    ("abort", "ROLLBACK"),
    ("discard", "DISCARD ALL"),
];

/// Settings that drivers make, and that make no difference to what the console says.
const IDLE_SETTINGS: [&str; 8] = [
    "application_name",
    "client_encoding",
    "client_min_messages",
    "datestyle",
    "extra_float_digits",
    "intervalstyle",
    "statement_timeout",
    "timezone",
];

/// The statements of a text, in order; empty ones are none.
///
/// # Errors
/// The first that isn't understood: then none is to be carried out, as a server does it.
pub(super) fn parse(sql: &[u8]) -> Result<Vec<Command>, ConsoleError> {
    if sql.len() > MAX_LENGTH {
        return Err(ConsoleError::TooLong);
    }
    Statements::new(sql, PlainStrings::Conforming)
        .map(|statement| command(&statement))
        .collect()
}

fn command(statement: &Statement<'_>) -> Result<Command, ConsoleError> {
    if statement.unterminated {
        return Err(ConsoleError::Unterminated);
    }
    let (command, words) = if statement.is_word(0, "show") {
        (Command::Show(topic(statement)?), 2)
    } else if statement.is_word(0, "help") {
        (Command::Show(Topic::Help), 1)
    } else if statement.is_word(0, "reload") {
        (Command::Reload, 1)
    } else if statement.is_word(0, "switchover") {
        return switchover(statement);
    } else if let Some(tag) = courtesy(statement)? {
        return Ok(Command::Courtesy(tag));
    } else {
        return Err(ConsoleError::UnknownCommand(written(statement, 0)));
    };
    ends_at(statement, words)?;
    Ok(command)
}

fn topic(statement: &Statement<'_>) -> Result<Topic, ConsoleError> {
    if statement.len() < 2 {
        return Err(ConsoleError::Ends);
    }
    let mut topics = TOPICS.into_iter();
    let topic = topics.find(|(word, _)| statement.is_word(1, word));
    topic
        .map(|(_, topic)| topic)
        .ok_or_else(|| ConsoleError::UnknownTopic(written(statement, 1)))
}

fn switchover(statement: &Statement<'_>) -> Result<Command, ConsoleError> {
    const NAME: usize = 2;
    if statement.len() == 1 {
        return Ok(Command::Switchover(None));
    }
    if !statement.is_word(1, "to") {
        return Err(ConsoleError::Unexpected(written(statement, 1)));
    }
    if statement.len() == NAME {
        return Err(ConsoleError::Ends);
    }
    let quoted = statement.string(NAME).or_else(|| {
        let quoted = statement.bytes(NAME).first() == Some(&b'"');
        quoted.then(|| statement.identifier(NAME).into_owned())
    });
    let name = match quoted {
        Some(text) => {
            ends_at(statement, NAME + 1)?;
            NodeName { text, quoted: true }
        }
        // An address is a name too, and more than one token.
        None => NodeName {
            text: statement.written(NAME, statement.len()).into_owned(),
            quoted: false,
        },
    };
    if let Some(word) = name.text.split_whitespace().nth(1).filter(|_| !name.quoted) {
        return Err(ConsoleError::Unexpected(word.to_owned()));
    }
    Ok(Command::Switchover(Some(name)))
}

/// The tag of what changes nothing.
fn courtesy(statement: &Statement<'_>) -> Result<Option<&'static str>, ConsoleError> {
    if statement.is_word(0, "set") {
        let at = 1 + usize::from(statement.is_any_word(1, &["session", "local"]));
        let name = statement.identifier(at);
        // SET TIME ZONE and SET NAMES have words of their own.
        let special = statement.is_any_word(at, &["time", "names"]);
        return if special || IDLE_SETTINGS.contains(&&*name) {
            Ok(Some("SET"))
        } else {
            Err(ConsoleError::UnknownSetting(written(statement, at)))
        };
    }
    let mut courtesies = COURTESIES.into_iter();
    Ok(courtesies
        .find(|(word, _)| statement.is_word(0, word))
        .map(|(_, tag)| tag))
}

fn ends_at(statement: &Statement<'_>, index: usize) -> Result<(), ConsoleError> {
    if statement.len() > index {
        return Err(ConsoleError::Unexpected(written(statement, index)));
    }
    Ok(())
}

/// A token for an error's text.
fn written(statement: &Statement<'_>, index: usize) -> String {
    const LONGEST: usize = 63;
    statement.written(index, index + 1).chars().take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(text: &str, quoted: bool) -> Command {
        Command::Switchover(Some(NodeName {
            text: text.to_owned(),
            quoted,
        }))
    }

    #[test]
    fn statements_are_read_however_they_are_written() {
        let nodes = || vec![Command::Show(Topic::Nodes)];
        for (sql, expected) in [
            ("", vec![]),
            (" ; -- nothing\n;/* at /* all */ */", vec![]),
            ("SHOW NODES", nodes()),
            ("show nodes;", nodes()),
            ("\n ShOw\t/* the */ Nodes ;; -- all of them", nodes()),
            ("show pools", vec![Command::Show(Topic::Pools)]),
            ("show version", vec![Command::Show(Topic::Version)]),
            ("show help", vec![Command::Show(Topic::Help)]),
            ("help", vec![Command::Show(Topic::Help)]),
            ("Reload;show nodes", vec![Command::Reload, Command::Show(Topic::Nodes)]),
            ("switchover", vec![Command::Switchover(None)]),
            ("SWITCHOVER TO node2;", vec![to("node2", false)]),
            (
                "switchover to db-2.example.com:5432 ",
                vec![to("db-2.example.com:5432", false)],
            ),
            (
                "switchover to 127.0.0.1:15432 -- now",
                vec![to("127.0.0.1:15432", false)],
            ),
            (
                "switchover to [::1]:5432; reload",
                vec![to("[::1]:5432", false), Command::Reload],
            ),
            ("switchover to \"Node;2\"", vec![to("Node;2", true)]),
            ("switchover to \"a\"\"b\"", vec![to("a\"b", true)]),
            ("switchover to 'db--2'", vec![to("db--2", true)]),
            ("switchover to $$n$$", vec![to("n", true)]),
            ("begin", vec![Command::Courtesy("BEGIN")]),
            (
                "START TRANSACTION READ ONLY",
                vec![Command::Courtesy("START TRANSACTION")],
            ),
            (
                "commit and chain; ROLLBACK",
                vec![Command::Courtesy("COMMIT"), Command::Courtesy("ROLLBACK")],
            ),
            ("SET extra_float_digits = 3", vec![Command::Courtesy("SET")]),
            ("set session TimeZone to 'UTC'", vec![Command::Courtesy("SET")]),
            (
                "set time zone 'UTC'; set names 'utf8'",
                vec![Command::Courtesy("SET"); 2],
            ),
        ] {
            assert_eq!(parse(sql.as_bytes()), Ok(expected), "{sql}");
        }
    }

    #[test]
    fn what_is_not_understood_is_named_and_nothing_of_the_text_is_taken() {
        use ConsoleError::*;
        let name = str::to_owned;
        for (sql, expected) in [
            ("select 1", UnknownCommand(name("select"))),
            ("show nodes; drop table t", UnknownCommand(name("drop"))),
            ("\"show\" nodes", UnknownCommand(name("\"show\""))),
            ("show", Ends),
            ("show tables", UnknownTopic(name("tables"))),
            ("show \"nodes\"", UnknownTopic(name("\"nodes\""))),
            ("show nodes all", Unexpected(name("all"))),
            ("reload now", Unexpected(name("now"))),
            ("help me", Unexpected(name("me"))),
            ("switchover node2", Unexpected(name("node2"))),
            ("switchover to", Ends),
            ("switchover to node2 now", Unexpected(name("now"))),
            ("switchover to 'node2' now", Unexpected(name("now"))),
            ("switchover to 'node2", Unterminated),
            ("show nodes /* for ever", Unterminated),
            ("set max_lag = '1s'", UnknownSetting(name("max_lag"))),
            ("set local", UnknownSetting(name(""))),
        ] {
            assert_eq!(parse(sql.as_bytes()), Err(expected), "{sql}");
        }
        assert_eq!(parse(&[b' '; MAX_LENGTH + 1]), Err(TooLong));
        assert!(parse(b"\xff\xfe").is_err());
    }

    #[test]
    fn each_command_of_the_help_is_one() {
        for verb in &VERBS {
            let sql = verb.syntax.replace(['[', ']'], "");
            assert!(parse(sql.as_bytes()).is_ok(), "{sql}");
        }
        for (topic, _) in TOPICS {
            let syntax = format!("SHOW {}", topic.to_uppercase());
            assert!(VERBS.iter().any(|verb| verb.syntax == syntax), "{syntax}");
        }
    }

    #[test]
    fn a_node_is_found_by_its_name_in_any_letter_case_unless_that_is_ambiguous() {
        let found = |text: &str, quoted| {
            let text = text.to_owned();
            NodeName { text, quoted }.among(["node1", "Node2", "n", "N"].into_iter())
        };
        assert_eq!(found("NODE2", false), Some("Node2"));
        assert_eq!(found("node2", true), None);
        assert_eq!(found("Node2", true), Some("Node2"));
        assert_eq!((found("n", false), found("N", false)), (Some("n"), Some("N")));
        assert_eq!(found("node3", false), None);
        let twins = NodeName {
            text: "aB".to_owned(),
            quoted: false,
        };
        assert_eq!(twins.among(["ab", "AB"].into_iter()), None);
    }
}
