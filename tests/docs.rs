//! What the documents show is so: configurations load, commands and flags are there, `explain` says what it is said to say, links and
//! paths lead somewhere, and tables have the code's words.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use pgsluice::admin::console::VERBS;
use pgsluice::cluster::{NoPrimary, NodeId, Serving};
use pgsluice::config::{Config, Consistency, Overrides};
use pgsluice::sql::PinReason;
use pgsluice::wire::sqlstate::SqlState;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn pgsluice(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgsluice"));
    command.args(arguments).output().expect("pgsluice runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// One document, taken apart.
struct Document {
    path: PathBuf,
    blocks: Vec<Block>,
    /// What stands outside of blocks.
    prose: Vec<String>,
}

/// Lines between fences, or indented ones.
struct Block {
    /// What the opening fence says; empty for indented ones.
    language: String,
    lines: Vec<String>,
}

impl Document {
    fn read(path: &str) -> Document {
        let path = root().join(path);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let (mut blocks, mut prose) = (Vec::<Block>::new(), Vec::<String>::new());
        let mut lines = text.lines().map(str::to_owned).peekable();
        while let Some(line) = lines.next() {
            if let Some(language) = line.strip_prefix("```") {
                let inside = lines.by_ref().take_while(|line| line != "```").collect();
                blocks.push(Block {
                    language: language.to_owned(),
                    lines: inside,
                });
            } else if line.starts_with("    ") && prose.last().is_none_or(String::is_empty) {
                let mut inside = vec![line.trim_start().to_owned()];
                while let Some(next) = lines.next_if(|next| next.starts_with("    ")) {
                    inside.push(next.trim_start().to_owned());
                }
                blocks.push(Block {
                    language: String::new(),
                    lines: inside,
                });
            } else {
                prose.push(line);
            }
        }
        Document { path, blocks, prose }
    }

    fn all() -> Vec<Document> {
        let manuals = fs::read_dir(root().join("docs")).expect("docs");
        let manuals = manuals.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"));
        let manuals = manuals
            .filter(|name| name.ends_with(".md"))
            .map(|name| format!("docs/{name}"));
        ["README.md", "CHANGELOG.md", "deploy/README.md"]
            .map(str::to_owned)
            .into_iter()
            .chain(manuals)
            .map(|path| Document::read(&path))
            .collect()
    }

    fn in_language(&self, language: &str) -> Vec<String> {
        let blocks = self.blocks.iter().filter(|block| block.language == language);
        blocks.map(|block| block.lines.join("\n") + "\n").collect()
    }

    /// What stands between backticks, paragraph by paragraph.
    fn spans(&self) -> Vec<String> {
        let text = self.prose.join("\n");
        text.split("\n\n")
            .flat_map(|paragraph| paragraph.split('`').skip(1).step_by(2))
            .map(|span| span.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect()
    }

    /// Whatever is to be typed into a shell.
    fn commands(&self) -> Vec<String> {
        let shell = self
            .blocks
            .iter()
            .filter(|block| block.language != "text" && block.language != "toml");
        let lines = shell
            .flat_map(|block| &block.lines)
            .map(|line| line.trim_start_matches("$ ").to_owned());
        lines.chain(self.spans()).collect()
    }

    /// The first cells of the table below a heading.
    fn table(&self, heading: &str) -> Vec<String> {
        let section = self
            .prose
            .iter()
            .skip_while(|line| line.trim_start_matches('#').trim() != heading);
        let rows = section.skip(1).take_while(|line| !line.starts_with('#'));
        let cells = rows.filter_map(|line| line.strip_prefix("| `")?.split('`').next());
        let cells: Vec<String> = cells.map(str::to_owned).collect();
        assert!(
            !cells.is_empty(),
            "{} has no table below {heading:?}",
            self.path.display()
        );
        cells
    }

    fn headings(&self) -> impl Iterator<Item = String> {
        let headings = self.prose.iter().filter(|line| line.starts_with('#'));
        headings.map(|line| {
            let kept = line
                .trim_start_matches('#')
                .trim()
                .chars()
                .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            kept.collect::<String>().to_lowercase().replace(' ', "-")
        })
    }
}

#[test]
fn the_readmes_configuration_is_a_file_that_passes() {
    let blocks = Document::read("README.md").in_language("toml");
    assert!(!blocks.is_empty());
    assert_eq!(
        blocks[0].lines().count(),
        5,
        "five lines of configuration:\n{}",
        blocks[0]
    );
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("users.txt"), "\"app\" \"a password\"\n").expect("the users");
    let file = folder.path().join("pgsluice.toml");
    // Each later block is added to those before it.
    for end in 1..=blocks.len() {
        let text = blocks[..end].concat();
        fs::write(&file, &text).expect("the configuration");
        let checked = pgsluice(&["check-config", file.to_str().expect("UTF-8")]);
        assert!(
            checked.status.success(),
            "{}{text}",
            String::from_utf8_lossy(&checked.stderr)
        );
        assert!(
            stdout(&checked).contains("ok: listens on 127.0.0.1:5432"),
            "{}",
            stdout(&checked)
        );
    }
}

#[test]
fn parts_of_configurations_load_in_front_of_some_node() {
    let some_node = Overrides {
        nodes: vec!["db1:5432".to_owned()],
        ..Overrides::default()
    };
    for document in Document::all()
        .iter()
        .filter(|document| !document.path.ends_with("README.md"))
    {
        for block in document.in_language("toml") {
            if let Err(errors) = Config::parse(&block, &document.path.display().to_string(), &some_node) {
                panic!("{errors}\n{block}");
            }
        }
    }
}

/// Comes to the same configuration whether the nodes are named or found.
#[test]
fn the_sidecars_configuration_is_a_file_that_passes_both_ways() {
    let sidecar = fs::read_to_string(root().join("deploy/kubernetes/sidecar.yaml")).expect("the sidecar");
    let (_, rest) = sidecar.split_once("pgsluice.toml: |\n").expect("a configuration");
    let (indented, rest) = rest.split_once("\n---\n").expect("its end");
    let named: Vec<&str> = indented.lines().map(|line| line.trim_start_matches(' ')).collect();
    let is_entry =
        |line: &&str| line.starts_with("name =") || line.starts_with("address =") || *line == "[[cluster.node]]";
    let found = named.iter().filter(|line| !is_entry(line)).copied();
    let found: Vec<&str> = found
        .map(|line| match line.strip_prefix("# ") {
            Some(code) if code.starts_with("[cluster.discovery]") || code.starts_with("kubernetes.") => code,
            _ => line,
        })
        .collect();

    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("users.txt"), "\"app\" \"a password\"\n").expect("the users");
    fs::write(folder.path().join("monitor_password"), "a password\n").expect("the password");
    let checked = |lines: &[&str]| {
        let text = lines
            .join("\n")
            .replace("/run/secrets/pgsluice", &folder.path().display().to_string());
        Config::parse(&text, "sidecar.yaml", &Overrides::default()).unwrap_or_else(|errors| panic!("{errors}\n{text}"))
    };
    let (named, found) = (checked(&named).cluster, checked(&found).cluster);
    assert_eq!((named.nodes.len(), named.discovery.is_empty()), (3, true));
    assert_eq!(
        (found.nodes.len(), found.discovery.names()),
        (0, vec!["kubernetes".to_owned()])
    );
    // Each of them is a pod of the service.
    let service = found.discovery.kubernetes.expect("a service").service;
    let is_pod = |host: &str| host.split_once('.').is_some_and(|(_, of)| of == service);
    assert!(named.nodes.iter().all(|node| is_pod(&node.address.host)));

    // The account that the pod would run as has what the manual says is needed.
    let rights = fs::read_to_string(root().join("deploy/kubernetes/discovery.yaml")).expect("the rights");
    let account = rest
        .lines()
        .find_map(|line| line.trim().strip_prefix("# serviceAccountName: "));
    let account = account.expect("an account");
    assert_eq!(rights.matches(&format!("name: {account}\n")).count(), 5, "{rights}");
    let role = &Document::read("docs/configuration.md").in_language("yaml")[0];
    let (_, rules) = role.split_once("rules:\n").expect("rules");
    for rule in rules.lines() {
        let rule = rule.trim_start_matches([' ', '-']);
        assert!(rights.contains(rule), "{rule}");
    }
}

#[test]
fn commands_and_flags_that_are_shown_exist() {
    let mut seen = BTreeSet::new();
    for document in Document::all() {
        for command in document.commands() {
            let mut words = command.split_whitespace();
            let program = words.next().unwrap_or_default();
            if program != "pgsluice" && !program.ends_with("/pgsluice") {
                continue;
            }
            let (mut path, mut help) = (Vec::new(), stdout(&pgsluice(&["--help"])));
            for word in words.take_while(|word| !word.starts_with(['"', '\'', '|', '&', '#'])) {
                let takes_command = help.contains("<COMMAND>");
                if word.starts_with('-') {
                    let flag = word.split('=').next().unwrap_or(word);
                    assert!(
                        mentions(&help, flag),
                        "{}: {command}: there is no {flag}",
                        document.path.display()
                    );
                } else if takes_command {
                    let listed = help.lines().any(|line| line.split_whitespace().next() == Some(word));
                    assert!(listed, "{}: {command}: there is no {word}", document.path.display());
                    path.push(word);
                    help = stdout(&pgsluice(&[path.as_slice(), &["--help"]].concat()));
                }
            }
            seen.insert(path.join(" "));
        }
    }
    for command in [
        "serve",
        "check-config",
        "explain",
        "status",
        "lab up",
        "lab rejoin",
        "console",
        "switchover",
    ] {
        assert!(seen.contains(command), "no document shows `pgsluice {command}`");
    }
}

/// Whether a flag is listed: not as the front of a longer one.
fn mentions(help: &str, flag: &str) -> bool {
    let words = help.split(|c: char| c.is_whitespace() || c == ',');
    words.into_iter().any(|word| word == flag)
}

#[test]
fn targets_of_make_that_are_shown_exist() {
    let makefile = fs::read_to_string(root().join("Makefile")).expect("the Makefile");
    let targets: Vec<&str> = makefile
        .lines()
        .filter(|line| !line.starts_with(['\t', '#', '.']))
        .filter_map(|line| line.split_once(':').map(|(target, _)| target))
        .collect();
    let mut count = 0;
    for document in Document::all() {
        for command in document.commands() {
            if let Some(target) = command
                .strip_prefix("make ")
                .and_then(|rest| rest.split_whitespace().next())
            {
                assert!(targets.contains(&target), "{}: {command}", document.path.display());
                count += 1;
            }
        }
    }
    assert!(count >= 3, "only {count} commands of make were found");
}

#[test]
fn explain_says_what_the_readme_shows() {
    let mut count = 0;
    for block in Document::read("README.md").in_language("console") {
        for session in block.split("$ ").filter(|session| !session.is_empty()) {
            let (command, shown) = session.split_once('\n').unwrap_or((session, ""));
            let Some(quoted) = command.strip_prefix("pgsluice explain ") else {
                continue;
            };
            let sql = quoted
                .strip_prefix('"')
                .and_then(|rest| rest.strip_suffix('"'))
                .expect("a quoted statement");
            assert_eq!(stdout(&pgsluice(&["explain", sql])), shown, "{sql}");
            count += 1;
        }
    }
    assert!(count > 0, "the README shows no explanation");
}

#[test]
fn links_lead_somewhere() {
    for document in Document::all() {
        let text = document.prose.join("\n");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("http://") || link.starts_with("https://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() {
                document.path.clone()
            } else {
                document.path.parent().expect("a folder").join(file)
            };
            assert!(target.exists(), "{}: {link} leads nowhere", document.path.display());
            if !anchor.is_empty() {
                let target = Document::read(target.strip_prefix(root()).unwrap_or(&target).to_str().expect("UTF-8"));
                let found = target.headings().any(|heading| heading == anchor);
                assert!(found, "{}: {link}: there is no such heading", document.path.display());
            }
        }
    }
}

#[test]
fn paths_that_are_named_exist() {
    const FOLDERS: [&str; 7] = ["src/", "tests/", "docs/", "conf/", "deploy/", "scripts/", "benches/"];
    for document in Document::all() {
        for span in document.spans() {
            let path = span.split(' ').next().unwrap_or_default();
            if FOLDERS.iter().any(|folder| path.starts_with(folder)) {
                assert!(
                    root().join(path).exists(),
                    "{}: there is no {path}",
                    document.path.display()
                );
            }
        }
    }
}

#[test]
fn tables_have_the_codes_words() {
    let readme = Document::read("README.md");
    assert_eq!(readme.table("What a read is sure to see"), Consistency::NAMES);
    assert_eq!(
        readme.table("What pins a session"),
        PinReason::ALL.map(PinReason::as_str)
    );
    let refusals = Document::read("docs/console.md").table("What SWITCHOVER answers");
    for code in readme
        .table("What a failover looks like to a client")
        .into_iter()
        .chain(refusals)
    {
        let named = SqlState::NAMED.iter().any(|(state, _)| state.as_str() == code);
        assert!(named, "pgsluice knows no SQLSTATE {code}");
    }

    assert_eq!(
        Document::read("docs/console.md").table("Commands"),
        VERBS.map(|verb| verb.syntax)
    );

    let words: BTreeSet<String> = Document::read("docs/failover.md")
        .table("Watch it")
        .into_iter()
        .collect();
    let serving = [
        Serving::Serving,
        Serving::Lagging,
        Serving::LagUnknown,
        Serving::OtherTimeline,
        Serving::Fenced,
        Serving::Foreign,
        Serving::Unreachable,
    ];
    let no_primary = [
        NoPrimary::Starting,
        NoPrimary::NoneOutOfRecovery,
        NoPrimary::NoneReachable,
        NoPrimary::OnlyForeign,
        NoPrimary::Unreachable(NodeId(0)),
        NoPrimary::Confirming(NodeId(0)),
        NoPrimary::OnlyStale,
        NoPrimary::SplitBrain,
        NoPrimary::SwitchingOver,
        NoPrimary::Promoting,
        NoPrimary::PromotionUncertain,
    ];
    let code = serving
        .map(Serving::as_str)
        .into_iter()
        .chain(no_primary.map(NoPrimary::as_str));
    assert_eq!(words, code.map(str::to_owned).collect());
}
