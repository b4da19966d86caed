//! How the rest of the process reaches a session that waits: to drain it, when the proxy shuts down.

use std::cell::{Cell, RefCell};
use std::task::{Context, Waker};

/// What a session is asked to do at its next chance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Go on.
    Serve,
    /// Say goodbye as soon as no transaction is open.
    Drain,
    /// Say goodbye now.
    Leave,
}

/// One session's ear. Lives on the session's own worker, so that listening costs no lock.
#[derive(Debug)]
pub struct Control {
    order: Cell<Order>,
    waiting: RefCell<Option<Waker>>,
}

impl Default for Control {
    fn default() -> Control {
        Control {
            order: Cell::new(Order::Serve),
            waiting: RefCell::new(None),
        }
    }
}

impl Control {
    /// Gives an order, and wakes the session if it waits.
    pub fn order(&self, order: Order) {
        self.order.set(order);
        if let Some(waker) = self.waiting.borrow_mut().take() {
            waker.wake();
        }
    }

    /// The order as it stands; the task of `cx` is woken when it changes.
    pub fn listen(&self, cx: &Context<'_>) -> Order {
        let mut waiting = self.waiting.borrow_mut();
        match &mut *waiting {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *waiting = Some(cx.waker().clone()),
        }
        self.order.get()
    }

    /// The order as it stands.
    pub fn current(&self) -> Order {
        self.order.get()
    }
}
