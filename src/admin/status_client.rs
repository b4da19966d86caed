//! Asks a running proxy for its [`Status`] over HTTP.

use std::io;
use std::time::Duration;

use super::status::Status;
use crate::config::ApiUrl;
use crate::wire::http_client::{Get, HttpError};

/// For connecting, asking and reading together.
const TIMEOUT: Duration = Duration::from_secs(5);
/// No status is longer; what is, comes from something else.
const MAX_BYTES: usize = 8 << 20;

/// Why there is no status to show.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The URL can't be used.
    #[error("{url:?} is not a URL like http://127.0.0.1:9432")]
    Url {
        /// As given.
        url: String,
    },
    /// Nobody listens, or the host isn't found.
    #[error("can't connect to {address}: {source}; is pgsluice running, with [admin] http set to that address?")]
    Connect {
        /// Host and port.
        address: String,
        /// The socket's error.
        source: io::Error,
    },
    /// No answer in time.
    #[error("{address} didn't answer within {} s", TIMEOUT.as_secs())]
    Timeout {
        /// Host and port.
        address: String,
    },
    /// It isn't HTTP, or it broke off.
    #[error("{address} didn't answer as pgsluice does: {reason}")]
    Answer {
        /// Host and port.
        address: String,
        /// What was wrong.
        reason: String,
    },
}

/// The status of the proxy whose `[admin] http` is at this URL, such as `http://127.0.0.1:9432`, with or without `/status`.
pub async fn fetch(url: &str) -> Result<Status, FetchError> {
    let url = api_url(url).ok_or_else(|| FetchError::Url { url: url.to_owned() })?;
    match tokio::time::timeout(TIMEOUT, ask(&url)).await {
        Ok(result) => result,
        Err(_) => Err(FetchError::Timeout {
            address: url.address.to_string(),
        }),
    }
}

/// A URL that can be asked.
fn api_url(url: &str) -> Option<ApiUrl> {
    let with_scheme = if url.contains("://") {
        url.to_owned()
    } else {
        format!("http://{url}")
    };
    let mut url: ApiUrl = with_scheme.parse().ok()?;
    let fits = !url.encrypted && matches!(&*url.prefix, "" | "/status");
    url.prefix.clear();
    fits.then_some(url)
}

async fn ask(url: &ApiUrl) -> Result<Status, FetchError> {
    let address = url.address.to_string();
    let get = Get {
        url,
        path: "/status",
        token: None,
        tls: None,
    };
    let body = match get.fetch(MAX_BYTES).await {
        Ok(body) => body,
        Err(HttpError::Connect(source)) => return Err(FetchError::Connect { address, source }),
        Err(error) => {
            let reason = error.to_string();
            return Err(FetchError::Answer { address, reason });
        }
    };
    serde_json::from_slice(&body).map_err(|error| FetchError::Answer {
        address,
        reason: format!("no status in it: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_as_people_write_them() {
        for (url, expected) in [
            ("http://127.0.0.1:9432", Some("127.0.0.1:9432")),
            ("http://127.0.0.1:9432/", Some("127.0.0.1:9432")),
            ("http://127.0.0.1:9432/status", Some("127.0.0.1:9432")),
            ("127.0.0.1:9432", Some("127.0.0.1:9432")),
            ("http://[::1]:9432", Some("[::1]:9432")),
            ("http://proxy", Some("proxy:80")),
            ("https://proxy", None),
            ("http://proxy/metrics", None),
            ("http://", None),
            ("", None),
        ] {
            let address = api_url(url).map(|url| url.address.to_string());
            assert_eq!(address.as_deref(), expected, "{url}");
        }
    }
}
