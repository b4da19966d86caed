//! Wires everything: worker threads with their sessions, and one control thread with the acceptor, the monitors, the admin server and the
//! signals.
//!
//! ```text
//! control thread (this one)                       worker threads, one runtime each
//! acceptor ──── sockets, in turn ───────────────▶ sessions
//! monitors ───▶ routing table (ArcSwap) ────────▶ read by every statement
//! fence: cuts the connections to a node that is no longer what it was
//! reaper · metrics · admin HTTP · SIGHUP reload · SIGTERM drain
//! ```

mod acceptor;
mod fence;
mod observe;
mod operate;
mod reload;
mod warm;
mod workers;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::admin;
use crate::admin::console::Console;
use crate::auth::userlist::{UserList, UserListError};
use crate::catalog::{self, Catalogs, Keeping};
use crate::cluster::{Asker, Cluster, StartError};
use crate::config::Config;
use crate::metrics::{self, Metrics};
use crate::pool::{Pools, REAP_INTERVAL};
use crate::session::notifiers::Notifiers;
use crate::session::worker::{Counters, Shared};
use crate::wire::tls::{NodeTlsConnector, TlsError, server_config};
use operate::{ProxyOperator, ReloadRequest};
use reload::Reload;
use workers::Workers;

/// Why a proxy doesn't start, or doesn't take a new configuration.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// An address can't be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The users file can't be used.
    #[error(transparent)]
    Users(#[from] UserListError),
    /// A certificate or key can't be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// What was remembered of the cluster can't be used.
    #[error(transparent)]
    Cluster(#[from] StartError),
    /// A thread, a runtime or a signal handler could not be had.
    #[error("the operating system refused: {0}")]
    System(#[from] io::Error),
}

/// Reads the configuration again, on SIGHUP.
pub type Reread = Box<dyn Fn() -> Result<Config, String>>;

/// Runs a proxy until it is told to stop.
///
/// # Errors
/// [`ProxyError`]: it did not start.
pub fn run(config: Config, reread: Reread) -> Result<(), ProxyError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(Arc::new(config), reread))
}

async fn serve(config: Arc<Config>, reread: Reread) -> Result<(), ProxyError> {
    raise_descriptor_limit();
    let started = Instant::now();
    let listeners = listen(&config)?;
    let (catalogs, fresh) = Catalogs::new();
    let shared = Arc::new(shared(&config, catalogs)?);
    let listening: Vec<SocketAddr> = listeners
        .iter()
        .filter_map(|listener| listener.local_addr().ok())
        .collect();
    let (stop, stopped) = watch::channel(false);
    let admin = admin_listener(&config).await?;
    let observer = Arc::new(observe::Observer::new(Arc::clone(&shared), listening.clone(), started));
    let (operator, reloads) = ProxyOperator::new(&shared, &observer);
    let workers = Arc::new(Workers::start(&shared, &Arc::new(Console::new(Arc::new(operator))))?);

    tokio::spawn(fence::run(Arc::clone(&shared), Arc::clone(&workers)));
    tokio::spawn(reap(Arc::clone(&shared)));
    tokio::spawn(catalog::keep(
        fresh,
        Asker::new(&config, &shared.node_tls, shared.cluster.book().clone()),
        shared.cluster.clone(),
        keeping(&shared),
    ));
    {
        let metrics = shared.metrics.clone();
        tokio::spawn(async move { metrics.run_upkeep(Duration::from_secs(1)).await });
    }
    if let Some(listener) = admin {
        tracing::info!(address = %listener.local_addr()?, "status page and metrics");
        let mut stopped = stopped.clone();
        tokio::spawn(admin::http::serve(listener, observer, async move {
            let _ = stopped.wait_for(|stop| *stop).await;
        }));
    }
    let acceptors: Vec<_> = listeners
        .into_iter()
        .map(|listener| tokio::spawn(acceptor::run(listener, Arc::clone(&workers), Arc::clone(&shared))))
        .collect();
    for address in &listening {
        tracing::info!(%address, "listening for clients");
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);

    let mut reload = Reload::new(Arc::clone(&shared), reread);
    wait_for_stop(&mut reload, reloads).await?;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    for acceptor in acceptors {
        acceptor.abort();
    }
    drain(&shared, &workers).await;
    let _ = stop.send(true);
    tracing::info!("stopped");
    Ok(())
}

fn listen(config: &Config) -> Result<Vec<TcpListener>, ProxyError> {
    config
        .listen
        .addresses
        .iter()
        .map(|&address| acceptor::bind(address).map_err(|source| ProxyError::Listen { address, source }))
        .collect()
}

async fn admin_listener(config: &Config) -> Result<Option<TcpListener>, ProxyError> {
    match config.admin.http {
        None => Ok(None),
        Some(address) => match TcpListener::bind(address).await {
            Ok(listener) => Ok(Some(listener)),
            Err(source) => Err(ProxyError::Listen { address, source }),
        },
    }
}

fn shared(config: &Arc<Config>, catalogs: Catalogs) -> Result<Shared, ProxyError> {
    let node_tls = NodeTlsConnector::new(&config.cluster.tls)?;
    let metrics = Metrics::new();
    metrics
        .gauge(
            metrics::BUILD_INFO,
            &[("version", env!("CARGO_PKG_VERSION").to_owned())],
        )
        .set(1.0);
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    metrics.gauge(metrics::START_TIME, &[]).set(now.as_secs_f64());
    let cluster = Cluster::start(config, &node_tls)?;
    Ok(Shared {
        config: ArcSwap::from(Arc::clone(config)),
        pools: Pools::new(
            cluster.book(),
            node_tls.clone(),
            config.pool.clone(),
            config.listen.threads,
        ),
        catalogs,
        notifiers: Notifiers::default(),
        cancels: Arc::default(),
        users: ArcSwap::from_pointee(users(config)?),
        tls: ArcSwapOption::from(client_tls(config)?),
        node_tls,
        clients: AtomicUsize::new(0),
        held: AtomicUsize::new(0),
        draining: AtomicBool::new(false),
        counters: Counters::new(&metrics, cluster.book()),
        cluster,
        metrics,
    })
}

/// What the keeper of names needs to know, as it is configured now.
fn keeping(shared: &Arc<Shared>) -> impl Fn() -> Keeping + Clone + use<> {
    let shared = Arc::clone(shared);
    move || {
        let routing = &shared.config.load().routing;
        Keeping {
            refresh: routing.catalog_refresh,
            read_only_functions: routing.read_only_functions.clone(),
        }
    }
}

fn users(config: &Config) -> Result<UserList, UserListError> {
    let Some(path) = &config.auth.users else {
        return Ok(UserList::empty());
    };
    let users = UserList::load(path)?;
    for warning in users.warnings() {
        tracing::warn!(%warning, "users file");
    }
    Ok(users)
}

fn client_tls(config: &Config) -> Result<Option<Arc<tokio_rustls::TlsAcceptor>>, TlsError> {
    let Some(tls) = &config.listen.tls else { return Ok(None) };
    Ok(Some(Arc::new(tokio_rustls::TlsAcceptor::from(server_config(
        &tls.cert, &tls.key,
    )?))))
}

async fn reap(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(REAP_INTERVAL);
    loop {
        ticks.tick().await;
        shared.pools.reap(Instant::now());
    }
}

/// Ends with SIGTERM or SIGINT; reloads meanwhile, on SIGHUP or when the console asks for it.
async fn wait_for_stop(reload: &mut Reload, mut requests: mpsc::Receiver<ReloadRequest>) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = hangup.recv() => drop(reload.run()),
            Some(done) = requests.recv() => drop(done.send(reload.run())),
        }
    }
}

/// Lets clients go: those between transactions at once, the others when theirs ends or `drain_timeout` passes. A second signal ends it.
async fn drain(shared: &Shared, workers: &Workers) {
    let limit = shared.config.load().listen.drain_timeout;
    tracing::info!(clients = shared.clients.load(Ordering::Relaxed), ?limit, "draining");
    shared.draining.store(true, Ordering::Relaxed);
    workers.order_all(crate::session::control::Order::Drain);
    let gone = async {
        while shared.clients.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return;
    };
    let over = tokio::select! {
        over = tokio::time::timeout(limit, gone) => over.is_ok(),
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
    };
    if !over {
        let left = shared.clients.load(Ordering::Relaxed);
        tracing::warn!(
            clients = left,
            "some clients are still in a transaction: their connections are closed"
        );
        workers.order_all(crate::session::control::Order::Leave);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Ten thousand clients are ten thousand descriptors: takes all that the operating system allows.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, soft, "the limit of open files stays as it is");
    }
}
