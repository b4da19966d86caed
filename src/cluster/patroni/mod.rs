//! Patroni's REST API: `GET /cluster` on any member names all members, and a POST to one of them makes another the leader.
//!
//! The member that answered last is asked first; if it doesn't, all others are asked at once, the ones that the file names and those
//! that the last answer did, and the first good answer counts.
//!
//! A leader is moved by `POST /switchover` or `/failover`. The leader's own API is the first to be asked, since a leader that hears of it
//! from its store may take a whole `loop_wait`. What matters is what is known when it fails: [`NotMoved`].
//! Patroni's manual: "Patroni REST API".

mod view;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustls::ClientConfig;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::config::{self, ApiUrl};
use crate::wire::http_client::{Connected, HttpError, Login, Request};
use crate::wire::tls;
#[cfg(test)]
pub(super) use view::ANSWER;
pub(super) use view::{Member, View};

/// For one member's answer. Patroni asks its own store for it, and waits as long as its `retry_timeout`.
const LIMIT: Duration = Duration::from_secs(5);
/// For the one that answered last, before the others are asked as well. For connecting to one that is to do something, too.
const LIMIT_OF_FIRST: Duration = Duration::from_secs(2);
/// For moving the leader. Patroni itself gives up waiting after 20 s, or two of its `loop_wait`.
const LIMIT_OF_MOVE: Duration = Duration::from_secs(120);
/// No answer is longer.
const MAX_BYTES: usize = 1 << 20;
/// No more of its words are repeated.
const MAX_WORDS: usize = 200;

/// A door to Patroni, for everybody who has something to ask.
pub(super) struct Patroni {
    settings: config::Patroni,
    known: Mutex<Known>,
}

/// What was learned from answers.
#[derive(Default)]
struct Known {
    /// The members' own URLs, from the last answer.
    learned: Vec<ApiUrl>,
    /// Who answered last.
    answered: Option<ApiUrl>,
    /// For `https`; read again after a failure, as a certificate may have been renewed.
    tls: Option<Arc<ClientConfig>>,
}

/// What Patroni is asked to do, with members' names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Move<'a> {
    /// From a leader that is well.
    Switchover { leader: &'a str, candidate: &'a str },
    /// Whether there is a leader or not.
    Failover { candidate: &'a str },
}

/// Patroni has not said that it has moved the leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotMoved {
    /// No member can be asked, so it certainly doesn't happen.
    Unheard(String),
    /// It isn't ours to ask.
    Forbidden(String),
    /// It certainly doesn't happen. Patroni's words, here and below.
    Refused(String),
    /// It was tried, and is no longer.
    GivenUp(String),
    /// It may happen yet.
    Unknown(String),
}

impl fmt::Display for NotMoved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotMoved::Unheard(why) => write!(f, "Patroni can't be asked: {why}"),
            NotMoved::Forbidden(words) => {
                write!(
                    f,
                    "Patroni refuses: {words}; cluster.discovery.patroni_user is who asks"
                )
            }
            NotMoved::Refused(words) => write!(f, "Patroni refuses: {words}"),
            NotMoved::GivenUp(words) => write!(f, "Patroni has given up: {words}"),
            NotMoved::Unknown(words) => write!(f, "Patroni was asked, and what comes of it isn't known: {words}"),
        }
    }
}

impl Patroni {
    pub(super) fn new(settings: config::Patroni) -> Patroni {
        Patroni {
            settings,
            known: Mutex::default(),
        }
    }

    /// The members as they are now. Bounded in time.
    pub(super) async fn cluster(&self) -> Result<View, String> {
        let tls = self.tls()?;
        let (url, view) = match self.first_answer(tls.as_ref()).await {
            Ok(answer) => answer,
            Err(error) => {
                self.known.lock().tls = None;
                return Err(error);
            }
        };
        let mut known = self.known.lock();
        known.answered = Some(url);
        let urls: Vec<ApiUrl> = view.urls().cloned().collect();
        if !urls.is_empty() {
            known.learned = urls;
        }
        Ok(view)
    }

    /// Everyone who may know, each once.
    fn urls(&self) -> Vec<ApiUrl> {
        let mut urls = self.settings.urls.clone();
        for url in &self.known.lock().learned {
            if !urls.contains(url) {
                urls.push(url.clone());
            }
        }
        urls
    }

    /// The first good answer, and who gave it.
    async fn first_answer(&self, tls: Option<&Arc<ClientConfig>>) -> Result<(ApiUrl, View), String> {
        let last = self.known.lock().answered.clone();
        if let Some(url) = last
            && let Ok(view) = ask(&url, tls, LIMIT_OF_FIRST).await
        {
            return Ok((url, view));
        }
        let mut asked = JoinSet::new();
        for url in self.urls() {
            let tls = tls.cloned();
            asked.spawn(async move {
                let answer = ask(&url, tls.as_ref(), LIMIT).await;
                (url, answer)
            });
        }
        let mut failures = Vec::new();
        while let Some(ended) = asked.join_next().await {
            match ended {
                Ok((url, Ok(view))) => return Ok((url, view)),
                Ok((url, Err(error))) => failures.push(format!("{url}: {error}")),
                Err(_) => {}
            }
        }
        failures.sort();
        Err(failures.join("; "))
    }

    fn tls(&self) -> Result<Option<Arc<ClientConfig>>, String> {
        let is_needed = self.urls().iter().any(|url| url.encrypted);
        let mut known = self.known.lock();
        if known.tls.is_none() && is_needed {
            let config = tls::https_config(self.settings.root_cert.as_deref());
            known.tls = Some(config.map_err(|error| error.to_string())?);
        }
        Ok(known.tls.clone())
    }

    /// Has Patroni do it, as seen in `view`; returns when it says that it is done, or not. It does what it has begun also when the
    /// future is dropped. Bounded in time, but longer than anybody should wait: look at the servers meanwhile.
    pub(super) async fn move_leader(&self, wanted: Move<'_>, view: &View) -> Result<(), NotMoved> {
        let tls = self.tls().map_err(NotMoved::Unheard)?;
        let login = self.settings.login.as_ref().map(|login| Login::Basic {
            user: &login.user,
            password: &login.password.0,
        });
        let body = wanted.body();
        let mut failures = Vec::new();
        for url in self.in_order(view) {
            let request = Request {
                url: &url,
                path: wanted.path(),
                login,
                tls: tls.as_ref(),
                body: Some(&body),
            };
            match timeout(LIMIT_OF_FIRST, request.connect()).await {
                Ok(Ok(connected)) => return told(connected).await,
                Ok(Err(error)) => failures.push(format!("{url}: {error}")),
                Err(_) => failures.push(format!("{url}: no connection within {LIMIT_OF_FIRST:?}")),
            }
        }
        Err(NotMoved::Unheard(failures.join("; ")))
    }

    /// The leader first, then whoever else there is.
    fn in_order(&self, view: &View) -> Vec<ApiUrl> {
        let leaders = view.leader().and_then(|leader| leader.url.clone());
        let mut urls: Vec<ApiUrl> = leaders.into_iter().collect();
        for url in view.urls().cloned().chain(self.urls()) {
            if !urls.contains(&url) {
                urls.push(url);
            }
        }
        urls
    }
}

impl Move<'_> {
    /// Who is to lead.
    pub(super) fn candidate(&self) -> &str {
        match self {
            Move::Switchover { candidate, .. } | Move::Failover { candidate } => candidate,
        }
    }

    fn path(self) -> &'static str {
        match self {
            Move::Switchover { .. } => "/switchover",
            Move::Failover { .. } => "/failover",
        }
    }

    fn body(self) -> String {
        let body = match self {
            Move::Switchover { leader, candidate } => json!({"leader": leader, "candidate": candidate}),
            Move::Failover { candidate } => json!({"candidate": candidate}),
        };
        body.to_string()
    }
}

async fn ask(url: &ApiUrl, tls: Option<&Arc<ClientConfig>>, limit: Duration) -> Result<View, String> {
    let request = Request {
        url,
        path: "/cluster",
        login: None,
        tls,
        body: None,
    };
    let body = timeout(limit, request.fetch(MAX_BYTES))
        .await
        .map_err(|_| format!("no answer within {} s", limit.as_secs()))?
        .map_err(|error| error.to_string())?;
    View::read(&body)
}

/// Sends the request to whom it is connected to, and reads what comes of it.
async fn told(connected: Connected<'_>) -> Result<(), NotMoved> {
    let exchange = async {
        let answer = connected.send().await?;
        let status = answer.status.as_u16();
        Ok::<_, HttpError>((status, answer.body.whole(MAX_BYTES).await.unwrap_or_default()))
    };
    match timeout(LIMIT_OF_MOVE, exchange).await {
        Ok(Ok((status, words))) => judge(status, &words),
        Ok(Err(error)) => Err(NotMoved::Unknown(error.to_string())),
        Err(_) => Err(NotMoved::Unknown(format!("no answer within {LIMIT_OF_MOVE:?}"))),
    }
}

/// What an answer means. Patroni says 503 of what has failed, and of what it has looked at for long enough.
fn judge(status: u16, words: &[u8]) -> Result<(), NotMoved> {
    let words = String::from_utf8_lossy(words);
    let words: String = words
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_WORDS)
        .collect();
    let words = match words.trim() {
        "" => format!("HTTP {status}"),
        words => format!("{words} (HTTP {status})"),
    };
    match status {
        200..=299 => Ok(()),
        401 | 403 => Err(NotMoved::Forbidden(words)),
        503 if !words.contains("status unknown") => Err(NotMoved::GivenUp(words)),
        500..=599 => Err(NotMoved::Unknown(words)),
        _ => Err(NotMoved::Refused(words)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_whether_it_may_still_happen() {
        assert_eq!(judge(200, b"Successfully switched over to \"pg2\""), Ok(()));
        let refused = |words: &str| Err(NotMoved::Refused(words.to_owned()));
        assert_eq!(
            judge(412, b"candidate does not exists\n"),
            refused("candidate does not exists (HTTP 412)")
        );
        assert_eq!(judge(404, b""), refused("HTTP 404"));
        let forbidden = Err(NotMoved::Forbidden("not authenticated (HTTP 401)".to_owned()));
        assert_eq!(judge(401, b"not authenticated"), forbidden);
        let given_up = Err(NotMoved::GivenUp("Switchover failed (HTTP 503)".to_owned()));
        assert_eq!(judge(503, b"Switchover failed"), given_up);
        let unknown = Err(NotMoved::Unknown("Switchover status unknown (HTTP 503)".to_owned()));
        assert_eq!(judge(503, b"Switchover status unknown"), unknown);
        assert_eq!(judge(502, b""), Err(NotMoved::Unknown("HTTP 502".to_owned())));
        let Err(NotMoved::Refused(long)) = judge(400, "ä\r\n".repeat(1000).as_bytes()) else {
            panic!("refused")
        };
        assert!(long.chars().count() < 220 && !long.contains('\n'), "{long}");
    }

    #[test]
    fn the_leader_is_asked_first_and_everybody_once() {
        let urls = ["http://a:1", "http://b:1", "http://c:1"].map(|url| url.parse().expect("a URL"));
        let patroni = Patroni::new(config::Patroni {
            urls: urls[1..].to_vec(),
            root_cert: None,
            login: None,
        });
        let view = View::read(
            br#"{"members": [{"name": "b", "role": "replica", "api_url": "http://b:1/patroni"},
                {"name": "a", "role": "leader", "api_url": "http://a:1/patroni"}]}"#,
        );
        assert_eq!(patroni.in_order(&view.expect("members")), urls);
    }

    #[test]
    fn a_move_is_asked_for_by_members_names() {
        let wanted = Move::Switchover {
            leader: "pg1",
            candidate: "a\"b",
        };
        assert_eq!(
            (wanted.path(), wanted.body().as_str()),
            ("/switchover", r#"{"candidate":"a\"b","leader":"pg1"}"#)
        );
        let wanted = Move::Failover { candidate: "pg2" };
        assert_eq!(
            (wanted.path(), wanted.body().as_str()),
            ("/failover", r#"{"candidate":"pg2"}"#)
        );
    }
}
