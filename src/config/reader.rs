//! Reads single values as what their key asks for. What doesn't fit is put down as a problem, and the key's default stands in
//! for it, so that reading goes on to find the next one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::file::{Entry, Value};
use super::keys::{self, Key, Kind, Unset};
use super::problem::{Place, Problem, Unfit};
use super::units::{parse_duration, show_duration};

/// The entries of a file, or of one of its node tables.
pub(super) struct Reader<'a> {
    entries: Vec<Entry>,
    /// The place of what is missing.
    whole: Place,
    /// The folder that relative paths start from.
    folder: &'a Path,
    problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    /// Entries that no key has are refused at once.
    pub(super) fn new(entries: Vec<Entry>, whole: Place, folder: &'a Path) -> Reader<'a> {
        let problems = entries.iter().filter_map(unknown_key).collect();
        Reader {
            entries,
            whole,
            folder,
            problems,
        }
    }

    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }

    pub(super) fn add_problems(&mut self, problems: Vec<Problem>) {
        self.problems.extend(problems);
    }

    /// Whether a key was written, well or not.
    pub(super) fn has(&self, path: &str) -> bool {
        self.entry(path).is_some()
    }

    /// Where a key was written, or the whole file's place.
    pub(super) fn place(&self, path: &str) -> Place {
        self.entry(path).map_or(&self.whole, |entry| &entry.place).clone()
    }

    /// Puts down a problem at the key's place.
    pub(super) fn refuse(&mut self, path: &str, unfit: Unfit) {
        self.refuse_at(self.place(path), path, unfit);
    }

    /// Puts down a problem at another place, such as an item of a list.
    pub(super) fn refuse_at(&mut self, place: Place, path: &str, Unfit { message, suggestion }: Unfit) {
        self.problems.push(Problem {
            place,
            key: path.to_owned(),
            message,
            suggestion,
        });
    }

    /// A text, or the default if there is one.
    pub(super) fn text(&mut self, path: &'static str) -> Option<String> {
        let read = self.read(path, |value| match value {
            Value::Text(text) => non_empty(text),
            Value::Untyped(texts) => non_empty(&texts.join(",")),
            // The value isn't repeated, as it may be a password.
            Value::Integer(_) | Value::Number(_) | Value::Flag(_) | Value::Date(_) | Value::List(_) | Value::Table => {
                Err(Unfit::new("must be a text").suggest("put it in quotes"))
            }
        });
        read.or_else(|| default_of(path).map(str::to_owned))
    }

    /// The items of a list with the place of each, or the default as the only one.
    pub(super) fn texts(&mut self, path: &'static str) -> Vec<(Place, String)> {
        let place = self.place(path);
        let read = self.read(path, |value| match value {
            Value::List(items) => items.iter().map(|(place, item)| list_item(place, item)).collect(),
            Value::Untyped(texts) => Ok(texts.iter().map(|text| (place.clone(), text.clone())).collect()),
            Value::Text(text) => Err(Unfit::new("must be a list").suggest(format!("did you mean {}?", as_list(text)))),
            other => Err(Unfit::new(format!("must be a list of texts, not {other}"))),
        });
        read.unwrap_or_else(|| {
            default_of(path)
                .map(|text| (self.whole.clone(), text.to_owned()))
                .into_iter()
                .collect()
        })
    }

    /// A whole number in the key's range; the key has a default.
    pub(super) fn count(&mut self, path: &'static str) -> usize {
        let default = default_of(path)
            .and_then(|text| text.parse().ok())
            .expect("a number, as a test of the table shows");
        self.count_if_set(path).unwrap_or(default)
    }

    /// A whole number in the key's range, if it is set.
    pub(super) fn count_if_set(&mut self, path: &'static str) -> Option<usize> {
        let Kind::Count(min, max) = key(path).kind else {
            unreachable!("{path} is a count in the table")
        };
        let range = || format!("must be a whole number from {min} to {max}");
        self.read(path, |value| {
            let number = match value {
                Value::Integer(number) => *number,
                Value::Untyped(texts) => {
                    let text = texts.join(",");
                    text.parse()
                        .map_err(|_| Unfit::new(format!("{}, not {text:?}", range())))?
                }
                Value::Text(text) if text.parse::<i64>().is_ok() => {
                    return Err(
                        Unfit::new(format!("{}, not {value}", range())).suggest(format!("write {text} without quotes"))
                    );
                }
                other => return Err(Unfit::new(format!("{}, not {other}", range()))),
            };
            let fits = u64::try_from(number).is_ok_and(|number| (min..=max).contains(&number));
            let number = usize::try_from(number).ok().filter(|_| fits);
            number.ok_or_else(|| Unfit::new(format!("{}, not {value}", range())))
        })
    }

    /// A duration in the key's range; the key has a default.
    pub(super) fn duration(&mut self, path: &'static str) -> Duration {
        let Kind::Span(min, max) = key(path).kind else {
            unreachable!("{path} is a duration in the table")
        };
        let read = self.read(path, |value| {
            let duration = match value {
                Value::Text(text) => parse_duration(text)?,
                Value::Untyped(texts) => parse_duration(&texts.join(","))?,
                Value::Integer(number) => {
                    let unfit = Unfit::new("must be a duration with a unit, in quotes");
                    return Err(unfit.suggest(format!("did you mean \"{number}s\"?")));
                }
                other => return Err(Unfit::new(format!("must be a duration such as \"10s\", not {other}"))),
            };
            if (min..=max).contains(&duration) {
                return Ok(duration);
            }
            let (min, max) = (show_duration(min), show_duration(max));
            Err(Unfit::new(format!(
                "must be from {min} to {max}, not {}",
                show_duration(duration)
            )))
        });
        let default = default_of(path).and_then(|text| parse_duration(text).ok());
        read.unwrap_or(default.expect("a duration, as a test of the table shows"))
    }

    /// `true` or `false`; the key has a default.
    pub(super) fn flag(&mut self, path: &'static str) -> bool {
        let read = self.read(path, |value| {
            let text = match value {
                Value::Flag(flag) => return Ok(*flag),
                Value::Untyped(texts) => texts.join(","),
                other => return Err(Unfit::new(format!("must be true or false, not {other}"))),
            };
            match text.as_str() {
                "true" | "on" | "yes" | "1" => Ok(true),
                "false" | "off" | "no" | "0" => Ok(false),
                _ => Err(Unfit::new(format!("must be true or false, not {text:?}"))),
            }
        });
        read.unwrap_or(default_of(path) == Some("true"))
    }

    /// One of the key's names; the key has a default.
    pub(super) fn choice<T>(&mut self, path: &'static str, from_name: fn(&str) -> Option<T>) -> T {
        let default = default_of(path)
            .and_then(from_name)
            .expect("one of its names, as a test of the table shows");
        self.choice_if_set(path, from_name).unwrap_or(default)
    }

    /// One of the key's names, if it is set.
    pub(super) fn choice_if_set<T>(&mut self, path: &'static str, from_name: fn(&str) -> Option<T>) -> Option<T> {
        let Kind::Choice { names, not_yet } = key(path).kind else {
            unreachable!("{path} is a choice in the table")
        };
        self.read(path, |value| {
            let text = match value {
                Value::Text(text) => text.clone(),
                Value::Untyped(texts) => texts.join(","),
                other => {
                    return Err(Unfit::new(format!(
                        "must be one of {}, not {other}",
                        keys::quoted(names)
                    )));
                }
            };
            if let Some(choice) = from_name(&text) {
                return Ok(choice);
            }
            if let Some((_, why)) = not_yet.iter().find(|(name, _)| *name == text) {
                let unfit = Unfit::new(format!("{text:?} is not supported yet: {why}"));
                return Err(unfit.suggest(format!("choose one of {}", keys::quoted(names))));
            }
            let unfit = Unfit::new(format!("{text:?} is not one of {}", keys::quoted(names)));
            Err(match keys::nearest(&text, names.iter().copied()) {
                Some(name) => unfit.suggest(format!("did you mean \"{name}\"?")),
                None => unfit,
            })
        })
    }

    /// A path, made to start from the file's folder. It must be there if the key says so.
    pub(super) fn file(&mut self, path: &'static str) -> Option<PathBuf> {
        let file = self.folder.join(self.text(path)?);
        if matches!(key(path).kind, Kind::File) && !file.is_file() {
            let why = if file.exists() { "is not a file" } else { "is not there" };
            self.refuse(path, Unfit::new(format!("{} {why}", file.display())));
        }
        Some(file)
    }

    /// A value that fits, or else `None` and, if it was written, a problem.
    fn read<T>(&mut self, path: &'static str, fit: impl FnOnce(&Value) -> Result<T, Unfit>) -> Option<T> {
        match fit(&self.entry(path)?.value) {
            Ok(value) => Some(value),
            Err(unfit) => {
                self.refuse(path, unfit);
                None
            }
        }
    }

    fn entry(&self, path: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.path == path)
    }
}

fn key(path: &str) -> &'static Key {
    keys::find(path).expect("only keys of the table are asked for, and reading any file asks for all of them")
}

fn default_of(path: &str) -> Option<&'static str> {
    match key(path).default {
        Unset::Is(text) => Some(text),
        Unset::Means(_) => None,
    }
}

fn unknown_key(entry: &Entry) -> Option<Problem> {
    let path = entry.path.as_str();
    let unfit = if keys::find(path).is_some() {
        return None;
    } else if path == keys::NODE {
        Unfit::new("is a list of tables").suggest("write [[cluster.node]] above each node's address, name and weight")
    } else if let Some(list) = keys::list(path) {
        Unfit::new("is a list of tables").suggest(format!("write [[{list}]] above the keys of each"))
    } else if keys::is_section(path) {
        Unfit::new(format!("is a section, not {}", entry.value)).suggest(format!("write [{path}] and its keys below"))
    } else if let Some((_, why)) = keys::NOT_YET.iter().find(|(name, _)| *name == path) {
        Unfit::new(format!("is not supported yet: {why}"))
    } else {
        let what = if matches!(entry.value, Value::Table) {
            "section"
        } else {
            "key"
        };
        Unfit {
            message: format!("there is no such {what}"),
            suggestion: keys::suggestion(path),
        }
    };
    let Unfit { message, suggestion } = unfit;
    Some(Problem {
        place: entry.place.clone(),
        key: path.to_owned(),
        message,
        suggestion,
    })
}

fn non_empty(text: &str) -> Result<String, Unfit> {
    if text.trim().is_empty() {
        Err(Unfit::new("must not be empty"))
    } else {
        Ok(text.to_owned())
    }
}

fn list_item(place: &Place, item: &Value) -> Result<(Place, String), Unfit> {
    match item {
        Value::Text(text) => Ok((place.clone(), text.clone())),
        other => Err(Unfit::new(format!("must be a list of texts, but has {other} in it"))),
    }
}

/// A text with commas as the list that was meant.
fn as_list(text: &str) -> String {
    let items: Vec<String> = text.split(',').map(|item| format!("{:?}", item.trim())).collect();
    format!("[{}]", items.join(", "))
}
