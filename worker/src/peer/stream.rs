//! A connection between two workers: in clear on loopback, with TLS everywhere else.

use super::{PeerError, Result};
use argosy_rpc::tls::{Tls, check_worker};
use rustls::{ClientConnection, Connection, ServerConnection};
use std::io::{Error, ErrorKind, IoSlice, Read, Write};
use std::net::TcpStream;

/// Reads and writes as its socket does, blocking or not. With TLS, [`Write`] may have taken what the socket has not:
/// [`PeerStream::is_pending`] until [`PeerStream::push`] is through.
#[derive(Debug)]
pub struct PeerStream {
    socket: TcpStream,
    tls: Option<Box<Connection>>,
}

impl PeerStream {
    /// In clear.
    #[must_use]
    pub fn plain(socket: TcpStream) -> Self {
        Self { socket, tls: None }
    }

    /// The side that was called; waits for the handshake as long as the socket's time-outs let it.
    pub(super) fn accept(socket: TcpStream, tls: Option<&Tls>) -> std::io::Result<Self> {
        let Some(tls) = tls else { return Ok(Self::plain(socket)) };
        let connection = ServerConnection::new(tls.current().peer_server()).map_err(Error::other)?;
        let mut stream = Self::over(socket, connection.into());
        stream.shake_hands()?;
        let chain = stream.tls.as_ref().and_then(|tls| tls.peer_certificates());
        check_worker(chain).map_err(|status| Error::new(ErrorKind::PermissionDenied, status.message().to_owned()))?;
        Ok(stream)
    }

    /// The side that calls.
    pub(super) fn call(socket: TcpStream, tls: Option<&Tls>, addr: &str) -> Result<Self> {
        let lost = |e: Error| PeerError::Lost {
            addr: addr.into(),
            why: e.to_string(),
        };
        let Some(tls) = tls else {
            return if socket.peer_addr().map_err(lost)?.ip().is_loopback() {
                Ok(Self::plain(socket))
            } else {
                let why = "certificates are needed to reach a worker of another machine; see `argosy pki`".into();
                Err(PeerError::Untrusted { addr: addr.into(), why })
            };
        };
        let (config, name) = tls.current().peer_client();
        let connection = ClientConnection::new(config, name).map_err(|e| lost(Error::other(e)))?;
        let mut stream = Self::over(socket, connection.into());
        stream.shake_hands().map_err(|e| match distrust(&e) {
            Some(why) => PeerError::Untrusted { addr: addr.into(), why },
            None => lost(e),
        })?;
        Ok(stream)
    }

    fn over(socket: TcpStream, connection: Connection) -> Self {
        Self {
            socket,
            tls: Some(Box::new(connection)),
        }
    }

    fn shake_hands(&mut self) -> std::io::Result<()> {
        if let Some(tls) = &mut self.tls {
            while tls.is_handshaking() || tls.wants_write() {
                tls.complete_io(&mut self.socket)?;
            }
        }
        Ok(())
    }

    /// The socket under it.
    #[must_use]
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Whether something was taken that the socket has not.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// Gives the socket what it takes; true if that was anything.
    ///
    /// # Errors
    /// The socket's, but for "not now".
    pub fn push(&mut self) -> std::io::Result<bool> {
        let Some(tls) = &mut self.tls else { return Ok(false) };
        let mut progress = false;
        while tls.wants_write() {
            match tls.write_tls(&mut self.socket) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(_) => progress = true,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        Ok(progress)
    }
}

impl Read for PeerStream {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let Some(tls) = &mut self.tls else {
            return self.socket.read(into);
        };
        loop {
            match tls.reader().read(into) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                read => return read,
            }
            if tls.read_tls(&mut self.socket)? == 0 {
                return Ok(0); // as a socket says it; nobody takes a cut message for a whole one, since all have their length
            }
            if let Err(error) = tls.process_new_packets() {
                let _ = tls.write_tls(&mut self.socket); // the alert that tells the other side why
                return Err(Error::new(ErrorKind::InvalidData, error));
            }
        }
    }
}

impl Write for PeerStream {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> std::io::Result<usize> {
        if self.tls.is_none() {
            return self.socket.write_vectored(slices);
        }
        self.push()?;
        if self.is_pending() {
            return Err(ErrorKind::WouldBlock.into());
        }
        let taken = match &mut self.tls {
            Some(tls) => tls.writer().write_vectored(slices)?,
            None => 0,
        };
        self.push()?;
        Ok(taken)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.push()?;
        if self.is_pending() {
            return Err(ErrorKind::WouldBlock.into());
        }
        Ok(())
    }
}

/// Why there is no trust, if that is what the error is about.
pub(super) fn distrust(error: &Error) -> Option<String> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::AlertReceived(alert) => Some(format!("it refuses this worker's certificate ({alert:?})")),
        rustls::Error::InvalidCertificate(what) => Some(format!("its certificate is not good: {what}")),
        _ => None,
    }
}
