//! A socket at which the runtime hands over the terminal of an exec.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};

use super::ends::Terminal;
use crate::node::{new_id, remove_file};

/// How long the runtime may take; it sends before the exec has begun, so that it is there already.
const LIMIT: Duration = Duration::from_secs(10);

/// A listening socket; its file goes with it.
pub(super) struct Console {
    listener: UnixListener,
    path: PathBuf,
}

impl Console {
    /// Listens in `directory`, which only root may enter.
    pub(super) fn listen(directory: &Path) -> Result<Self> {
        // Short: a socket's path has 107 bytes, and the runtime may know no way around that.
        let path = directory.join(&new_id()?.as_str()[..16]);
        let listener = UnixListener::bind(&path).with_context(|| format!("listen at {}", path.display()))?;
        Ok(Console { listener, path })
    }

    /// Where it listens.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The terminal that the runtime has sent.
    pub(super) async fn terminal(self) -> Result<Terminal> {
        let received = async {
            let (peer, _unnamed) = self.listener.accept().await?;
            peer.async_io(Interest::READABLE, || receive(&peer)).await
        };
        let received = tokio::time::timeout(LIMIT, received).await;
        match received
            .context("the runtime has sent no terminal")?
            .context("receive a terminal")?
        {
            Some(master) => Terminal::new(master),
            None => bail!("the runtime has sent something else than a terminal"),
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Err(error) = remove_file(&self.path) {
            tracing::warn!("{error:#}");
        }
    }
}

fn receive(peer: &UnixStream) -> std::io::Result<Option<OwnedFd>> {
    // Beside the descriptor comes the terminal's name, of which nothing depends.
    let mut name = [0; 256];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    recvmsg(peer, &mut [IoSliceMut::new(&mut name)], &mut ancillary, flags)?;
    let mut rights = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    });
    Ok(rights.next().and_then(|mut rights| rights.next()))
}
