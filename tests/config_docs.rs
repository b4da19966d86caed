//! The manual and the sample files say what the table of keys says.

use std::path::Path;

use pgsluice::config::keys::{KEYS, Key, Kind, LISTS, SUBSECTIONS, Unset};
use pgsluice::config::{Config, Overrides};

const MANUAL: &str = include_str!("../docs/configuration.md");
const SAMPLE: &str = include_str!("../conf/pgsluice.toml");

#[test]
fn the_manual_has_each_key_as_the_table_has_it() {
    let rows: Vec<&str> = MANUAL.lines().filter(|line| line.starts_with("| `")).collect();
    let expected: Vec<String> = KEYS.iter().map(manual_row).collect();
    let wanted = expected.join("\n");
    assert!(
        rows == expected,
        "docs/configuration.md should have these rows:\n{wanted}"
    );
}

#[test]
fn each_row_of_the_manual_stands_under_its_section() {
    for key in KEYS {
        let (section, _) = in_section(key);
        let heading = if LISTS.contains(&section) {
            format!("## [[{section}]]")
        } else {
            format!("## [{section}]")
        };
        let chapter = MANUAL
            .split("\n## ")
            .find(|chapter| format!("## {chapter}").starts_with(&format!("{heading}\n")));
        let chapter = chapter.unwrap_or_else(|| panic!("{heading} is missing"));
        assert!(chapter.contains(&manual_row(key)), "{} isn't under {heading}", key.path);
    }
}

#[test]
fn the_sample_shows_each_key_with_its_default() {
    for key in KEYS {
        let (section, name) = in_section(key);
        let heading = if LISTS.contains(&section) {
            format!("[[{section}]]")
        } else {
            format!("[{section}]")
        };
        let lines = SAMPLE.lines().map(|line| line.strip_prefix("# ").unwrap_or(line));
        let value = lines
            .skip_while(|line| *line != heading)
            .skip(1)
            .take_while(|line| !line.starts_with('['))
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "))
            .unwrap_or_else(|| panic!("conf/pgsluice.toml doesn't have {}", key.path));
        if let Unset::Is(text) = key.default {
            let written = in_toml(&key.kind, text);
            assert!(
                value.starts_with(&written),
                "conf/pgsluice.toml has {} = {value}, but the default is {written}",
                key.path
            );
        }
    }
}

#[test]
fn the_sample_files_load_and_mean_the_same() {
    let load = |name: &str| {
        Config::load(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join("conf").join(name),
            &Overrides::default(),
        )
        .unwrap_or_else(|errors| panic!("{errors}"))
    };
    assert_eq!(load("pgsluice.toml"), load("minimal.toml"));
}

#[test]
fn every_commented_line_of_the_sample_is_a_key_that_loads() {
    let uncommented: String = SAMPLE
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(inside) if inside.starts_with("[[") || inside.contains(" = ") => format!("{inside}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let errors =
        Config::parse(&uncommented, "sample.toml", &Overrides::default()).expect_err("its example files aren't there");
    for problem in errors.problems() {
        let expected = ["is not there", "stands beside", "no node is called"];
        assert!(expected.iter().any(|text| problem.message.contains(text)), "{problem}");
    }
}

/// `listen.tls.cert` is written as `tls.cert` in `[listen]`; lists and subsections are sections of their own.
fn in_section(key: &Key) -> (&'static str, &'static str) {
    let by_itself = LISTS.into_iter().chain(SUBSECTIONS).find_map(|section| {
        let name = key.path.strip_prefix(section)?.strip_prefix('.')?;
        Some((section, name))
    });
    by_itself.unwrap_or_else(|| key.path.split_once('.').expect("each key is in a section"))
}

fn manual_row(key: &Key) -> String {
    let default = match key.default {
        Unset::Is(text) => format!("`{}`", in_toml(&key.kind, text)),
        Unset::Means(text) => text.to_owned(),
    };
    format!(
        "| `{}` | {} | {default} | {} |",
        in_section(key).1,
        takes(&key.kind),
        key.meaning
    )
}

fn in_toml(kind: &Kind, text: &str) -> String {
    match kind {
        Kind::Flag | Kind::Count(..) => text.to_owned(),
        Kind::Addresses | Kind::Texts => format!("[\"{text}\"]"),
        Kind::Text
        | Kind::Secret
        | Kind::Address
        | Kind::File
        | Kind::FutureFile
        | Kind::Span(..)
        | Kind::Choice { .. } => {
            format!("\"{text}\"")
        }
    }
}

fn takes(kind: &Kind) -> String {
    match kind {
        Kind::Text | Kind::Secret => "text".to_owned(),
        Kind::Address => "address".to_owned(),
        Kind::Addresses => "list of addresses".to_owned(),
        Kind::Texts => "list of texts".to_owned(),
        Kind::File => "file that is there".to_owned(),
        Kind::FutureFile => "file".to_owned(),
        Kind::Flag => "`true` or `false`".to_owned(),
        Kind::Count(min, max) => format!("number, {min} to {max}"),
        Kind::Span(min, max) => format!("duration, {} to {}", in_words(*min), in_words(*max)),
        Kind::Choice { names, .. } => names
            .iter()
            .map(|name| format!("`\"{name}\"`"))
            .collect::<Vec<_>>()
            .join(", "),
    }
}

fn in_words(duration: std::time::Duration) -> String {
    match duration.as_millis() {
        0 => "0".to_owned(),
        ms if ms % 86_400_000 == 0 => format!("{} d", ms / 86_400_000),
        ms if ms % 3_600_000 == 0 => format!("{} h", ms / 3_600_000),
        ms if ms % 1000 == 0 => format!("{} s", ms / 1000),
        ms => format!("{ms} ms"),
    }
}
