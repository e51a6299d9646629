//! What the event loop waits for: an epoll instance, and what each registered descriptor means.
//!
//! A token is never used twice. News that was fetched from the kernel before its source was removed therefore finds no
//! source, and is dropped.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use corten_proto::id::ContainerId;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::log::Stream;

/// What a descriptor that became ready belongs to.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// A client wants to connect.
    Listener,
    /// A signal waits in the signalfd.
    Signals,
    /// A packet arrived from a client, or there is room to send to it.
    Client(u64),
    /// The child of this pid has ended.
    Child(i32),
    /// A container wrote something, or closed its end.
    Output(ContainerId, Stream),
    /// An attached client's pipe of this number has room again, or its reader has gone.
    Attached(ContainerId, u32),
}

/// Names one registration.
pub(crate) type Token = u64;

/// The descriptors the loop waits for.
pub(crate) struct Poll {
    epoll: Epoll,
    sources: BTreeMap<Token, Source>,
    next: Token,
}

impl Poll {
    pub(crate) fn new() -> Result<Poll> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll_create1(EPOLL_CLOEXEC)")?;
        Ok(Poll {
            epoll,
            sources: BTreeMap::new(),
            next: 1,
        })
    }

    /// Waits for `fd` to be readable, level-triggered.
    pub(crate) fn add(&mut self, fd: impl AsFd, source: Source) -> Result<Token> {
        let token = self.next;
        self.epoll
            .add(fd.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, token))
            .with_context(|| format!("epoll_ctl(EPOLL_CTL_ADD, {source:?})"))?;
        self.next += 1;
        self.sources.insert(token, source);
        Ok(token)
    }

    /// Waits for `fd` to be writable too, or no longer.
    pub(crate) fn set_writable(&self, token: Token, fd: impl AsFd, writable: bool) -> Result<()> {
        let mut interest = EpollFlags::EPOLLIN;
        interest.set(EpollFlags::EPOLLOUT, writable);
        self.epoll
            .modify(fd.as_fd(), &mut EpollEvent::new(interest, token))
            .context("epoll_ctl(EPOLL_CTL_MOD)")
    }

    /// Forgets `fd`; the caller closes it.
    pub(crate) fn remove(&mut self, token: Token, fd: impl AsFd) {
        self.sources.remove(&token);
        // It can fail only for a descriptor that is not registered, which is what is wanted.
        self.epoll.delete(fd.as_fd()).unwrap_or_default();
    }

    /// What `token` means, unless it has been removed.
    pub(crate) fn source(&self, token: Token) -> Option<Source> {
        self.sources.get(&token).cloned()
    }

    /// Waits until something is ready or `deadline` has come.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> Result<Vec<Token>> {
        let mut ready = [EpollEvent::empty(); 32];
        let count = match self.epoll.wait(&mut ready, timeout(deadline)) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(errno).context("epoll_wait"),
        };
        Ok(ready[..count].iter().map(EpollEvent::data).collect())
    }
}

/// The time to `deadline` in whole milliseconds, rounded up, so that the loop does not spin through the last one.
fn timeout(deadline: Option<Instant>) -> EpollTimeout {
    const LONGEST: Duration = Duration::from_secs(3600);
    let Some(deadline) = deadline else {
        return EpollTimeout::NONE;
    };
    let left = deadline.saturating_duration_since(Instant::now()).min(LONGEST);
    let millis = left.as_nanos().div_ceil(1_000_000);
    EpollTimeout::try_from(millis).unwrap_or(EpollTimeout::MAX)
}
