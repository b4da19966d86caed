//! Settings from the command line and the environment, which come before the file's.

use std::fmt;

use super::keys::{KEYS, Key};
use super::problem::Place;

/// What flags and the environment say. Flags come first, then the environment, then the file.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--listen ADDR`, each; empty if the flag wasn't given.
    pub listen: Vec<String>,
    /// `--node HOST:PORT`, each; empty if the flag wasn't given.
    pub nodes: Vec<String>,
    /// What the environment says.
    pub environment: Environment,
}

/// The `PGSLUICE_…` variables that are set and not empty.
#[derive(Clone, Default)]
pub struct Environment {
    pub(super) settings: Vec<(&'static Key, String)>,
}

/// Values are left out: one of them is a password.
impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.settings.iter().map(|(key, _)| key.path))
            .finish()
    }
}

impl Environment {
    /// Asks `look_up` for the variable of every key. One that is empty counts as unset. Variables that no key has are not
    /// looked at: Kubernetes sets `PGSLUICE_PORT` and others for a service of that name.
    pub fn from_variables(look_up: impl Fn(&str) -> Option<String>) -> Environment {
        let found = |key: &'static Key| Some((key, look_up(&key.variable()?).filter(|text| !text.is_empty())?));
        Environment {
            settings: KEYS.iter().filter_map(found).collect(),
        }
    }
}

impl Overrides {
    /// Flags as given, the environment from this process.
    pub fn with_process_environment(listen: Vec<String>, nodes: Vec<String>) -> Overrides {
        Overrides {
            listen,
            nodes,
            environment: Environment::from_variables(|name| std::env::var(name).ok()),
        }
    }

    /// Every setting as key, place and texts; a list has several.
    pub(super) fn settings(&self) -> Vec<(&'static str, Place, Vec<String>)> {
        let split = |text: &str| {
            text.split(',')
                .map(|item| item.trim().to_owned())
                .filter(|item| !item.is_empty())
                .collect()
        };
        let mut settings: Vec<(&'static str, Place, Vec<String>)> = self
            .environment
            .settings
            .iter()
            .filter_map(|(key, text)| {
                let texts = match key.kind {
                    super::keys::Kind::Addresses | super::keys::Kind::Texts => split(text),
                    _ => vec![text.clone()],
                };
                Some((key.path, Place::Variable(key.variable()?), texts))
            })
            .collect();
        if !self.listen.is_empty() {
            settings.push(("listen.addresses", Place::Flag("--listen"), self.listen.clone()));
        }
        if !self.nodes.is_empty() {
            settings.push(("cluster.nodes", Place::Flag("--node"), self.nodes.clone()));
        }
        settings
    }
}
