//! `pgsluice status`: once, or again and again on a terminal.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use super::status_client::{FetchError, fetch};
use super::status_table::render;

/// Clears nothing, but moves the cursor home: what is written over doesn't flicker.
const HOME: &str = "\x1b[H";
/// Clears from the cursor to the line's end.
const CLEAR_LINE: &str = "\x1b[K";
/// Clears from the cursor to the screen's end.
const CLEAR_BELOW: &str = "\x1b[J";

/// How the status is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// As a table for people.
    Table,
    /// As one line of JSON.
    Json,
}

/// Writes the status once.
pub async fn show(url: &str, format: Format, out: &mut impl Write) -> Result<(), ShowError> {
    let status = fetch(url).await?;
    match format {
        Format::Table => out.write_all(render(&status).as_bytes())?,
        Format::Json => writeln!(out, "{}", serde_json::to_string(&status).map_err(io::Error::other)?)?,
    }
    Ok(())
}

/// Writes the status at an interval until writing fails. On a terminal each table takes the place of the last; a proxy that
/// doesn't answer is shown as such and asked again, for it may be restarting.
pub async fn watch(url: &str, interval: Duration) -> io::Result<()> {
    let terminal = io::stdout().is_terminal();
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let text = match fetch(url).await {
            Ok(status) => render(&status),
            Err(error) => format!("{error}\n"),
        };
        let mut out = io::stdout().lock();
        out.write_all(
            if terminal {
                over_the_last(&text)
            } else {
                format!("{text}\n")
            }
            .as_bytes(),
        )?;
        out.flush()?;
    }
}

/// The text so that it replaces what is on the screen.
fn over_the_last(text: &str) -> String {
    let lines: String = text.lines().map(|line| format!("{line}{CLEAR_LINE}\n")).collect();
    format!("{HOME}{lines}{CLEAR_BELOW}")
}

/// Why a status wasn't shown.
#[derive(Debug, thiserror::Error)]
pub enum ShowError {
    /// There was none.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// It couldn't be written.
    #[error("can't write the status: {0}")]
    Write(#[from] io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watched_table_leaves_nothing_of_the_longer_one_before() {
        assert_eq!(over_the_last("ab\nc\n"), "\x1b[Hab\x1b[K\nc\x1b[K\n\x1b[J");
    }
}
