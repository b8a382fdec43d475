//! Records that are ready together, handed to the thread together. Called by `Audit::record` alone.
//!
//! A record alone costs two wakes, of the thread and back of the runtime, which is more than all else that is done for it. So the first one
//! that waits hands over whatever else is ready when its turn comes: nothing is held back for others to come.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::AuditError;
use super::file::{Batch, Record, Told};

/// Records that wait for the disk; who comes when there are so many waits too, within its own deadline.
const PLACES: usize = 1024;

/// What waits to be handed over.
pub struct Gathered {
    queue: mpsc::Sender<Told>,
    waiting: Mutex<Vec<Waiting>>,
    places: Arc<Semaphore>,
}

/// A record, and who waits for it.
struct Waiting {
    record: Record,
    done: oneshot::Sender<Result<(), AuditError>>,
    place: OwnedSemaphorePermit,
}

impl Gathered {
    pub fn new(queue: mpsc::Sender<Told>) -> Arc<Self> {
        Arc::new(Self { queue, waiting: Mutex::default(), places: Arc::new(Semaphore::new(PLACES)) })
    }

    /// When this returns `Ok`, the record is on the disk. Whoever stops waiting takes nothing back.
    pub async fn write(self: &Arc<Self>, record: Record) -> Result<(), AuditError> {
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(|_| AuditError::Closed)?;
        let (done, written) = oneshot::channel();
        if self.put(Waiting { record, done, place }) {
            // A task of its own: the caller may be cancelled, and others wait with it.
            tokio::spawn(Arc::clone(self).hand_over());
        }
        written.await.map_err(|_| AuditError::Closed)?
    }

    /// True for the first that waits.
    fn put(&self, one: Waiting) -> bool {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push(one);
        waiting.len() == 1
    }

    /// Runs once what was ready before it has run. Whom it does not answer is told that the log is closed.
    async fn hand_over(self: Arc<Self>) {
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        let (mut records, mut places) = (Vec::with_capacity(waiting.len()), Vec::with_capacity(waiting.len()));
        for one in waiting {
            records.push(one.record);
            places.push((one.done, one.place));
        }
        let (done, written) = oneshot::channel();
        if self.queue.send(Told::Records(Batch { records, done })).await.is_err() {
            return;
        }
        let Ok(outcomes) = written.await else { return };
        for ((done, _place), outcome) in places.into_iter().zip(outcomes) {
            let _ = done.send(outcome);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(n: usize) -> Record {
        Record { time: n.to_string(), content: b"{}".to_vec() }
    }

    fn times(batch: &Batch) -> Vec<usize> {
        batch.records.iter().map(|record| record.time.parse().unwrap()).collect()
    }

    async fn next(told: &mut mpsc::Receiver<Told>) -> Batch {
        match told.recv().await {
            Some(Told::Records(batch)) => batch,
            _ => panic!("no batch came"),
        }
    }

    fn start() -> (Arc<Gathered>, mpsc::Receiver<Told>) {
        let (queue, told) = mpsc::channel(1024);
        (Gathered::new(queue), told)
    }

    fn write(gathered: &Arc<Gathered>, n: usize) -> tokio::task::JoinHandle<Result<(), AuditError>> {
        let gathered = Arc::clone(gathered);
        tokio::spawn(async move { gathered.write(record(n)).await })
    }

    #[tokio::test]
    async fn what_is_ready_together_is_handed_over_together_in_order_and_each_hears_its_own_outcome() {
        let (gathered, mut told) = start();
        let waiting: Vec<_> = (0..50).map(|n| write(&gathered, n)).collect();
        let batch = next(&mut told).await;
        assert_eq!(times(&batch), (0..50).collect::<Vec<_>>());
        assert!(waiting.iter().all(|one| !one.is_finished()), "nobody is answered before the disk has it");
        let outcome = |n| if n == 7 { Err(AuditError::Write("too long".to_owned())) } else { Ok(()) };
        batch.done.send((0..50).map(outcome).collect()).unwrap();
        for (n, one) in waiting.into_iter().enumerate() {
            assert_eq!(one.await.unwrap().is_ok(), n != 7, "{n}");
        }
    }

    #[tokio::test]
    async fn one_alone_waits_for_no_other() {
        let (gathered, mut told) = start();
        let one = write(&gathered, 1);
        next(&mut told).await.done.send(vec![Ok(())]).unwrap();
        one.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn the_first_that_gives_up_holds_up_nobody() {
        let (gathered, mut told) = start();
        let (first, second) = (write(&gathered, 1), write(&gathered, 2));
        tokio::task::yield_now().await;
        first.abort();
        let mut seen = Vec::new();
        while seen.len() < 2 {
            let batch = next(&mut told).await;
            seen.extend(times(&batch));
            batch.done.send(batch.records.iter().map(|_| Ok(())).collect()).unwrap();
        }
        assert_eq!(seen, [1, 2], "it was decided, and so it is recorded");
        second.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn so_many_wait_and_no_more_whatever_the_disk_does() {
        let (gathered, mut told) = start();
        let waiting: Vec<_> = (0..PLACES + 10).map(|n| write(&gathered, n)).collect();
        // The disk does not answer; who waited has given up, and others come.
        let stuck = next(&mut told).await;
        assert_eq!(stuck.records.len(), PLACES);
        waiting.iter().for_each(|one| one.abort());
        let later = write(&gathered, 1);
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(told.try_recv().is_err() && gathered.waiting.lock().unwrap().is_empty());
        drop(stuck);
        next(&mut told).await.done.send(vec![Ok(())]).unwrap();
        later.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn when_the_thread_is_gone_all_are_told() {
        let (gathered, told) = start();
        drop(told);
        assert!(matches!(gathered.write(record(1)).await, Err(AuditError::Closed)));
        let (gathered, mut told) = start();
        let one = write(&gathered, 1);
        drop(next(&mut told).await);
        assert!(matches!(one.await.unwrap(), Err(AuditError::Closed)));
    }
}
