//! A client of the streaming server by SPDY/3.1 that keeps to no limit: kubectl's and crictl's do.
//!
//! Frames are as `cri-server/src/streaming/spdy` draws them. Header blocks are compressed without the dictionary, which a
//! client may leave out.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flate2::{Compress, Compression, FlushCompress};

use crate::node::Node;
use crate::stream::connect;

/// Longest head of the server's answer.
const MAX_HEAD: usize = 16 << 10;

/// A connected client.
pub struct Spdy {
    socket: TcpStream,
    zlib: Compress,
    next: u32,
}

impl Spdy {
    /// Upgrades; `protocol` is what the client offers.
    ///
    /// # Errors
    /// If the server refuses.
    pub fn open(node: &Node, url: &str, protocol: &str) -> Result<Spdy> {
        let mut socket = connect(node, url)?;
        let path = url.splitn(4, '/').nth(3).context("a URL has a path")?;
        write!(
            socket,
            "POST /{path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
             X-Stream-Protocol-Version: {protocol}\r\nContent-Length: 0\r\n\r\n"
        )?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") && head.len() < MAX_HEAD {
            let mut byte = [0];
            socket.read_exact(&mut byte).context("read the answer's head")?;
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head);
        ensure!(head.starts_with("HTTP/1.1 101"), "{head}");
        Ok(Spdy {
            socket,
            zlib: Compress::new(Compression::fast(), true),
            next: 1,
        })
    }

    /// Reads and forgets what the server writes, until the connection ends.
    ///
    /// # Errors
    /// If the socket cannot be shared.
    pub fn drain(&self) -> Result<JoinHandle<()>> {
        let mut socket = self.socket.try_clone()?;
        Ok(thread::spawn(move || {
            // How it ends is the test's own matter.
            drop(std::io::copy(&mut socket, &mut std::io::sink()));
        }))
    }

    /// Opens a stream; its number.
    ///
    /// # Errors
    /// If the connection has broken.
    pub fn stream(&mut self, headers: &[(&str, &str)]) -> Result<u32> {
        let stream = self.next;
        self.next += 2;
        let block = self.fold(headers)?;
        let length = u32::try_from(10 + block.len())?;
        let mut frame = vec![0x80, 3, 0, 1];
        frame.extend_from_slice(&length.to_be_bytes());
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(&[0; 6]);
        frame.extend_from_slice(&block);
        self.socket.write_all(&frame).context("open a stream")?;
        Ok(stream)
    }

    fn fold(&mut self, headers: &[(&str, &str)]) -> Result<Vec<u8>> {
        let mut plain = u32::try_from(headers.len())?.to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend_from_slice(&u32::try_from(text.len())?.to_be_bytes());
            plain.extend_from_slice(text.as_bytes());
        }
        let mut block = Vec::with_capacity(1024 + plain.len());
        self.zlib.compress_vec(&plain, &mut block, FlushCompress::Sync)?;
        Ok(block)
    }

    /// Writes to a stream; false where the server takes no more for a second. After that the connection is of no use.
    ///
    /// # Errors
    /// If the connection has broken.
    pub fn push(&mut self, stream: u32, bytes: &[u8]) -> Result<bool> {
        self.socket.set_write_timeout(Some(Duration::from_secs(1)))?;
        let length = u32::try_from(bytes.len())?.to_be_bytes();
        let head = [stream.to_be_bytes(), [0, length[1], length[2], length[3]]].concat();
        match self.socket.write_all(&[&head, bytes].concat()) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error).context("write to a stream"),
        }
    }

    /// Gives a stream up.
    ///
    /// # Errors
    /// If the connection has broken.
    pub fn reset(&mut self, stream: u32) -> Result<()> {
        let [a, b, c, d] = stream.to_be_bytes();
        let frame = [0x80, 3, 0, 3, 0, 0, 0, 8, a, b, c, d, 0, 0, 0, 5];
        self.socket.write_all(&frame).context("reset a stream")
    }

    /// The connection, without a goodbye.
    pub fn vanish(self) {
        // A thread that drains it has a copy of the socket. It may be closed already.
        drop(self.socket.shutdown(Shutdown::Both));
    }
}
