//! Where the timelines before the primary's ended, as its own history file says.

use std::time::Duration;

use tokio::sync::mpsc;

use super::coordinator::Event;
use super::lsn::Timeline;
use super::position::{Fork, forks};
use super::probe_connection::{ProbeConnection, Target};

/// How often a primary is asked again that could not answer.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_secs(2);

/// Asks a primary on `timeline` for its history, and tells the coordinator.
pub(super) async fn find_out(target: Target, timeline: Timeline, tell: mpsc::WeakSender<Event>) {
    for attempt in 1..=ATTEMPTS {
        match tokio::time::timeout(target.timeout, ask(&target, timeline)).await {
            Ok(Ok(forks)) => {
                if let Some(tell) = tell.upgrade() {
                    let _ = tell.send(Event::History(timeline, forks)).await;
                }
                return;
            }
            Ok(Err(why)) if attempt == ATTEMPTS => {
                tracing::warn!(
                    %timeline, %why,
                    "where earlier timelines ended isn't known: positions of sessions that a failover has lost can't be told from others \
                     (the monitor's role needs pg_read_server_files and EXECUTE on pg_read_file)"
                );
            }
            Ok(Err(_)) | Err(_) => {}
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn ask(target: &Target, timeline: Timeline) -> Result<Vec<Fork>, String> {
    let mut connection = ProbeConnection::open(target)
        .await
        .map_err(|failure| failure.message.to_string())?;
    let question = format!("SELECT pg_catalog.pg_read_file('pg_wal/{:08X}.history')", timeline.0);
    let rows = connection.query(&question).await.map_err(|error| error.to_string())?;
    let text = rows.first().and_then(|row| row.first()).and_then(Option::as_ref);
    Ok(text
        .map(|text| forks(&String::from_utf8_lossy(text)))
        .unwrap_or_default())
}
