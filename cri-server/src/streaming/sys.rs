//! What the kernel knows of a TCP connection, for which no crate has a safe call.
#![allow(unsafe_code)]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// How a connection's other end answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answers {
    /// Something was sent that is not acknowledged yet: data, or the question whether there is room or life.
    pub(super) awaited: bool,
    /// Since the last acknowledgement.
    pub(super) silence: Duration,
}

/// Asks the kernel with TCP_INFO.
pub(super) fn answers(socket: BorrowedFd<'_>) -> io::Result<Answers> {
    // SAFETY: `tcp_info` is integers only, for which zero is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).map_err(io::Error::other)?;
    let (place, fd) = ((&raw mut info).cast(), socket.as_raw_fd());
    // SAFETY: `place` is a whole `tcp_info` of `length` bytes, and both live through the call.
    match unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, place, &raw mut length) } {
        0 => Ok(Answers {
            awaited: info.tcpi_unacked > 0 || info.tcpi_probes > 0,
            silence: Duration::from_millis(info.tcpi_last_ack_recv.into()),
        }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_connection_that_says_nothing_awaits_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        let found = answers(client.as_fd()).unwrap();
        assert!(!found.awaited, "{found:?}");
        let (least, most) = (Duration::from_millis(50), Duration::from_secs(10));
        assert!(found.silence >= least && found.silence < most, "{found:?}");
        assert!(answers(std::fs::File::open("/dev/null").unwrap().as_fd()).is_err());
    }
}
