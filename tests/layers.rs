//! Who may import whom: a module's paths only ever lead to modules below it. Code under `#[cfg(test)]` is held to it too.
//!
//! A path counts wherever it stands, in a `use` or in the middle of an expression: whatever begins with `crate`, with `pgsluice` (in
//! main.rs), or with as many `super`s as it takes to leave the module. Links in comments don't count.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// From the bottom up. Modules on one line never import each other.
const LAYERS: &[&[&str]] = &[
    &["config", "metrics"],
    &["wire"],
    &["auth", "sql"],
    &["cluster"],
    &["catalog"],
    &["route", "pool"],
    &["session"],
    &["admin", "lab"],
    &["proxy"],
    &["main"],
];

/// Of all that is below them these may import no more than this.
const ONLY: &[(&str, &[&str])] = &[
    ("wire", &["config"]),
    ("auth", &["config", "wire"]),
    ("sql", &["config"]),
    ("lab", &["config"]),
];

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|modules| modules.contains(&module))
}

fn may_import(from: &str, to: &str) -> bool {
    let only = ONLY.iter().find(|(module, _)| *module == from);
    let below = matches!((layer(from), layer(to)), (Some(from), Some(to)) if to < from);
    from == to || below && only.is_none_or(|(_, allowed)| allowed.contains(&to))
}

#[test]
fn imports_only_ever_point_down() {
    let mut wrong = Vec::new();
    for file in sources(&src()) {
        let text = fs::read_to_string(&file).expect("a source file");
        let home = home(file.strip_prefix(src()).expect("a file below src"));
        let Some(from) = home.first().cloned() else { continue };
        for (line, to) in imports(&text, home) {
            if !may_import(&from, &to) {
                wrong.push(format!("{}:{line}: {from} imports {to}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "against the order of LAYERS:\n{}", wrong.join("\n"));
}

#[test]
fn every_module_has_its_layer() {
    let text = fs::read_to_string(src().join("lib.rs")).expect("lib.rs");
    let modules: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'))
        .chain(["main"])
        .collect();
    let layered: BTreeSet<&str> = LAYERS.iter().copied().flatten().copied().collect();
    assert_eq!(modules, layered);
}

#[test]
fn neighbours_and_those_above_are_refused() {
    for (from, to, may) in [
        ("session", "pool", true),
        ("pool", "pool", true),
        ("main", "lab", true),
        ("pool", "session", false),
        ("pool", "route", false),
        ("config", "metrics", false),
        ("lab", "cluster", false),
        ("sql", "wire", false),
        ("session", "*", false),
    ] {
        assert_eq!(may_import(from, to), may, "{from} {to}");
    }
}

#[test]
fn paths_are_found_however_they_are_written() {
    for (text, expected) in [
        ("use crate::wire::frame::HEADER;", &["wire"][..]),
        (
            "use crate::{config, wire::{self, frame}, sql as s};",
            &["config", "wire", "sql"],
        ),
        ("use crate::*;", &["*"]),
        (
            "fn f() -> crate::sql::Access { crate::config::g::<crate::wire::H>() }",
            &["sql", "config", "wire"],
        ),
        (
            "use super::lease::Lease; use super::super::session::Plan;",
            &["pool", "session"],
        ),
        (
            "mod tests { use super::*; mod deep { use super::super::super::super::admin::http; } }",
            &["pool", "admin"],
        ),
        (
            "use super::{super::cluster, lease}; use self::super::Pool;",
            &["cluster", "pool", "pool"],
        ),
        (
            "use metrics::Counter; pub(crate) fn a<'crate_>(b: &'crate_ str) {}",
            &[],
        ),
        (
            "// crate::admin\n/* crate::admin /* */ crate::lab */ let a = (\"crate::lab \\\" \", r#\"crate::\"lab\"#);",
            &[],
        ),
        (
            "let quote = ('\"', '\\'', b'{'); use crate::auth::scram; let open = \"{\";",
            &["auth"],
        ),
    ] {
        let home = vec!["pool".to_owned(), "node_link".to_owned()];
        let found: Vec<String> = imports(text, home).into_iter().map(|(_, module)| module).collect();
        assert_eq!(found, expected, "{text}");
    }
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// The module that a file below `src` is; nothing for the crate's root.
fn home(file: &Path) -> Vec<String> {
    let mut home: Vec<String> = file
        .with_extension("")
        .iter()
        .map(|part| part.to_str().expect("an ASCII name").to_owned())
        .collect();
    match home.pop().as_deref() {
        Some("mod") => {}
        Some("lib") if home.is_empty() => {}
        // A file of tests is named for the one that it is a module of.
        Some(name) => match name.strip_suffix("_tests") {
            Some(tested) => home.extend([tested.to_owned(), "tests".to_owned()]),
            None => home.push(name.to_owned()),
        },
        None => {}
    }
    home
}

/// The top-level modules that paths in `text` lead through, each with its line. `home` is the module that the text is.
fn imports(text: &str, home: Vec<String>) -> Vec<(usize, String)> {
    let tokens = tokens(text);
    let mut found = Vec::new();
    // For each open brace, the module that it opens, if it does.
    let mut braces: Vec<Option<&str>> = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        match (&tokens[at].kind, tokens.get(at + 1).map(|token| &token.kind)) {
            (Kind::Word(root @ ("crate" | "pgsluice" | "super" | "self")), Some(Kind::Separator))
                if at == 0 || tokens[at - 1].kind != Kind::Separator =>
            {
                let mut base = Vec::new();
                if matches!(*root, "super" | "self") {
                    base.clone_from(&home);
                    base.extend(braces.iter().flatten().map(|&name| name.to_owned()));
                }
                let behind_root = if matches!(*root, "super" | "self") { at } else { at + 2 };
                at = follow(&tokens, behind_root, base, &mut found);
                continue;
            }
            (Kind::Sign('{'), _) => braces.push(match tokens[..at] {
                [
                    ..,
                    Token {
                        kind: Kind::Word("mod"),
                        ..
                    },
                    Token {
                        kind: Kind::Word(name), ..
                    },
                ] => Some(name),
                _ => None,
            }),
            (Kind::Sign('}'), _) => drop(braces.pop()),
            _ => {}
        }
        at += 1;
    }
    found
}

/// Follows a path, or each path of a group, from `base` on; answers the first token behind it.
fn follow(tokens: &[Token<'_>], mut at: usize, mut base: Vec<String>, found: &mut Vec<(usize, String)>) -> usize {
    let Some(token) = tokens.get(at) else { return at };
    match token.kind {
        Kind::Word(step @ ("super" | "self")) => {
            if step == "super" {
                base.pop();
            }
            match tokens.get(at + 1).map(|token| &token.kind) {
                Some(Kind::Separator) => follow(tokens, at + 2, base, found),
                _ => at + 1,
            }
        }
        Kind::Sign('{') => {
            at += 1;
            while tokens.get(at).is_some_and(|token| token.kind != Kind::Sign('}')) {
                at = follow(tokens, at, base.clone(), found);
                at = behind_item(tokens, at);
            }
            at + 1
        }
        Kind::Word(name) => {
            found.push((token.line, base.into_iter().next().unwrap_or(name.to_owned())));
            at + 1
        }
        Kind::Sign(sign) => {
            found.push((token.line, base.into_iter().next().unwrap_or(sign.to_string())));
            at + 1
        }
        Kind::Separator => at + 1,
    }
}

/// The next item of a group, or the group's end: what is left of an item can only name what stands below it.
fn behind_item(tokens: &[Token<'_>], mut at: usize) -> usize {
    let mut depth = 0;
    while let Some(token) = tokens.get(at) {
        match token.kind {
            Kind::Sign('{') => depth += 1,
            Kind::Sign('}') if depth == 0 => return at,
            Kind::Sign('}') => depth -= 1,
            Kind::Sign(',') if depth == 0 => return at + 1,
            _ => {}
        }
        at += 1;
    }
    at
}

#[derive(Debug)]
struct Token<'a> {
    line: usize,
    kind: Kind<'a>,
}

#[derive(Debug, PartialEq, Eq)]
enum Kind<'a> {
    /// A name, a keyword or a number.
    Word(&'a str),
    /// `::`
    Separator,
    /// Any other character.
    Sign(char),
}

/// Rust's tokens, as far as paths need them, without comments, strings, characters and lifetimes.
fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let (mut at, mut line) = (0, 1);
    while let Some(first) = text[at..].chars().next() {
        let rest = &text[at..];
        let word = rest
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(rest.len());
        let (len, kind) = match first {
            _ if word > 0 => match raw_string(&rest[word..]).filter(|_| matches!(&rest[..word], "r" | "br")) {
                Some(len) => (word + len, None),
                None => (word, Some(Kind::Word(&rest[..word]))),
            },
            '/' if rest.starts_with("//") => (rest.find('\n').unwrap_or(rest.len()), None),
            '/' if rest.starts_with("/*") => (comment(rest), None),
            '"' => (1 + behind_quote(&rest[1..], '"'), None),
            '\'' => (character_or_lifetime(rest), None),
            ':' if rest.starts_with("::") => (2, Some(Kind::Separator)),
            _ if first.is_whitespace() => (first.len_utf8(), None),
            _ => (first.len_utf8(), Some(Kind::Sign(first))),
        };
        tokens.extend(kind.map(|kind| Token { line, kind }));
        line += rest[..len].matches('\n').count();
        at += len;
    }
    tokens
}

/// The length of `#"…"#` and its like, from behind the `r`.
fn raw_string(rest: &str) -> Option<usize> {
    let hashes = rest.len() - rest.trim_start_matches('#').len();
    let inner = rest[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    Some(hashes + 1 + inner.find(&end)? + end.len())
}

fn comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn behind_quote(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

fn character_or_lifetime(rest: &str) -> usize {
    let mut inside = rest[1..].chars();
    match (inside.next(), inside.next()) {
        (Some('\\'), _) => 1 + behind_quote(&rest[1..], '\''),
        (Some(c), Some('\'')) => 1 + c.len_utf8() + 1,
        _ => 1,
    }
}
