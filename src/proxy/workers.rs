//! The worker threads: a runtime each, which owns its sessions for life, so that a query needs no wake-up across threads.

use std::io;
use std::net::{SocketAddr, TcpStream as StdTcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::TcpStream;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc;

use super::operate::ProxyOperator;
use super::warm::{Warmth, warm};
use crate::admin::console::Console;
use crate::session::control::Order;
use crate::session::login;
use crate::session::worker::{Shared, Worker};

enum Task {
    Client(StdTcpStream, SocketAddr),
    Order(Order),
    Warm(Warmth),
}

/// All workers.
pub(super) struct Workers {
    inboxes: Vec<mpsc::UnboundedSender<Task>>,
    next: AtomicUsize,
}

impl Workers {
    /// Starts as many as configured. They run for as long as the process does.
    pub(super) fn start(shared: &Arc<Shared>, console: &Arc<Console<ProxyOperator>>) -> io::Result<Workers> {
        let count = shared.config.load().listen.threads;
        let mut inboxes = Vec::with_capacity(count);
        for index in 0..count {
            // Unbounded, but filled only by the acceptor, which counts clients, and when a primary is lost.
            let (inbox, tasks) = mpsc::unbounded_channel();
            let (shared, console) = (Arc::clone(shared), Arc::clone(console));
            std::thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || work(index, shared, console, tasks))?;
            inboxes.push(inbox);
        }
        Ok(Workers {
            inboxes,
            next: AtomicUsize::new(0),
        })
    }

    /// Deals a client to the next worker. Answers whether it was taken.
    pub(super) fn give(&self, tcp: StdTcpStream, peer: SocketAddr) -> bool {
        let next = self.next.fetch_add(1, Ordering::Relaxed) % self.inboxes.len();
        self.inboxes[next].send(Task::Client(tcp, peer)).is_ok()
    }

    /// Has the workers open connections.
    pub(super) fn warm_all(&self, warmth: &Warmth) {
        for inbox in &self.inboxes {
            let _ = inbox.send(Task::Warm(warmth.clone()));
        }
    }

    /// Gives every session of every worker an order.
    pub(super) fn order_all(&self, order: Order) {
        for inbox in &self.inboxes {
            let _ = inbox.send(Task::Order(order));
        }
    }
}

fn work(
    index: usize,
    shared: Arc<Shared>,
    console: Arc<Console<ProxyOperator>>,
    mut tasks: mpsc::UnboundedReceiver<Task>,
) {
    let runtime = match Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
    {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, worker = index, "no runtime for a worker");
            return;
        }
    };
    runtime.block_on(async move {
        let worker = Rc::new(Worker::new(index, shared));
        while let Some(task) = tasks.recv().await {
            match task {
                Task::Client(tcp, peer) => match TcpStream::from_std(tcp) {
                    Ok(tcp) => {
                        let (worker, console) = (Rc::clone(&worker), Arc::clone(&console));
                        drop(tokio::task::spawn_local(async move {
                            if let Some(visitor) = login::serve(worker, tcp, peer).await {
                                // Boxed: few clients come for it.
                                Box::pin(console.receive(*visitor)).await;
                            }
                        }));
                    }
                    Err(error) => {
                        worker.shared.clients.fetch_sub(1, Ordering::Relaxed);
                        tracing::warn!(%error, "cannot watch a client's socket");
                    }
                },
                Task::Order(order) => worker.order_all(order),
                Task::Warm(warmth) => drop(tokio::task::spawn_local(warm(Rc::clone(&worker), warmth))),
            }
        }
    });
}
