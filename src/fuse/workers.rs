//! Threads for requests that wait for the disk.
//!
//! A loop that waits for an `fsync` cannot fetch the next request, and a few such waits would stop
//! the whole mount. So they wait here, side by side, where the log syncs once for all of them.
//! Invariant: a job that was taken is run, also while the pool ends.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;

type Job = Box<dyn FnOnce() + Send>;

/// A fixed number of threads that run jobs in the order in which they came.
pub(super) struct Workers {
    /// `None` only while the pool is dropped.
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts `count` threads.
    ///
    /// # Errors
    /// When the operating system has no more threads.
    pub fn start(count: usize) -> io::Result<Self> {
        let (sender, receiver) = channel::<Job>();
        let receiver = Arc::new(Mutex::new(receiver));
        let threads = (0..count)
            .map(|number| {
                let receiver = Arc::clone(&receiver);
                thread::Builder::new()
                    .name(format!("sync-{number}"))
                    .spawn(move || run(&receiver))
            })
            .collect::<io::Result<_>>()?;
        Ok(Self {
            jobs: Some(sender),
            threads,
        })
    }

    /// Has `job` run by one of the threads.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        // The threads are there as long as `self` is, so the channel is open.
        if let Some(jobs) = &self.jobs {
            let _ = jobs.send(Box::new(job));
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn run(jobs: &Mutex<Receiver<Job>>) {
    loop {
        // The lock is held while waiting, and let go before the job runs.
        let job = jobs.lock().recv();
        match job {
            Ok(job) => job(),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn jobs_wait_side_by_side_and_all_are_run() {
        let done = Arc::new(AtomicUsize::new(0));
        let together = Arc::new(Barrier::new(4));
        let workers = Workers::start(4).unwrap();
        for _ in 0..8 {
            let (done, together) = (Arc::clone(&done), Arc::clone(&together));
            workers.run(move || {
                together.wait();
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
        drop(workers);
        assert_eq!(done.load(Ordering::Relaxed), 8);
    }
}
