//! A future that is polled only when what it waits for has happened, however often its task is.
//!
//! A connection waits for bytes, thousands of times, and all the while for the few reasons to cut it, which mostly never come. To look
//! at each of those reasons at every byte took a tenth of our own share of the processor. Used by both journeys around
//! [`Proxy::cut`](crate::proxy::Proxy::cut). It must never miss a wake-up: what was woken is polled before anything else.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// See the module.
#[derive(Debug)]
pub struct OnWake<F> {
    inner: Pin<F>,
    bell: Arc<Bell>,
    waker: Waker,
}

#[derive(Debug)]
struct Bell {
    rang: AtomicBool,
    task: Mutex<Option<Waker>>,
}

impl Bell {
    fn task(&self) -> MutexGuard<'_, Option<Waker>> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Before the task is woken: when it polls, it sees this.
        self.rang.store(true, Ordering::Release);
        let task = self.task().clone();
        if let Some(task) = task {
            task.wake();
        }
    }
}

/// Wraps a pinned future.
pub fn on_wake<F>(inner: Pin<F>) -> OnWake<F> {
    let bell = Arc::new(Bell { rang: AtomicBool::new(true), task: Mutex::new(None) });
    OnWake { inner, waker: Arc::clone(&bell).into(), bell }
}

impl<F, T> Future for OnWake<F>
where
    F: std::ops::DerefMut<Target: Future<Output = T>> + Unpin,
{
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let this = &mut *self;
        {
            let mut task = this.bell.task();
            if !task.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
                *task = Some(cx.waker().clone());
            }
        }
        // After the task is known: who rings from here on wakes it.
        if !this.bell.rang.swap(false, Ordering::AcqRel) {
            return Poll::Pending;
        }
        this.inner.as_mut().poll(&mut Context::from_waker(&this.waker))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_polled_when_it_is_woken_and_not_otherwise() {
        let (notify, polls) = (Notify::new(), AtomicUsize::new(0));
        let notified = pin!(notify.notified());
        let mut notified = notified;
        let mut waits = on_wake(Box::pin(poll_fn(|cx| {
            polls.fetch_add(1, Ordering::Relaxed);
            notified.as_mut().poll(cx)
        })));
        for _ in 0..10 {
            let polled = poll_fn(|cx| Poll::Ready(Pin::new(&mut waits).poll(cx))).await;
            assert!(polled.is_pending());
        }
        assert_eq!(polls.load(Ordering::Relaxed), 1);
        let ring = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            notify.notify_waiters();
        };
        tokio::join!(waits, ring);
        assert_eq!(polls.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn it_wakes_the_task_that_polled_it_last() {
        let notify = Arc::new(Notify::new());
        let waiting = Arc::clone(&notify);
        let mut waits = on_wake(Box::pin(async move { waiting.notified().await }));
        assert!(Pin::new(&mut waits).poll(&mut Context::from_waker(Waker::noop())).is_pending());
        let other = tokio::spawn(waits);
        tokio::task::yield_now().await;
        notify.notify_waiters();
        tokio::time::timeout(Duration::from_secs(10), other).await.unwrap().unwrap();
    }
}
