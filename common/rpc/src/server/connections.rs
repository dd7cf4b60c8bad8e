//! Accepted connections, no more than so many at once, and behind the handshake where there are certificates.

use super::rate::Penalties;
use crate::tls::{Loaded, Tls};
use rustls::pki_types::CertificateDer;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tonic::transport::server::Connected;

/// A handshake takes no longer; a caller that is silent or trickles is sent away.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);
/// Certificates are looked at so often while nobody calls: a revoked worker is out so soon.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After the system had no more handles.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections that wait to be taken up.
const WAITING: usize = 64;

/// A stream of accepted connections.
pub(super) struct Connections {
    ready: mpsc::Receiver<Connection>,
    accepting: JoinHandle<()>,
}

impl Connections {
    pub(super) fn new(
        listener: TcpListener,
        tls: Option<Tls>,
        connections_max: usize,
        penalties: Arc<Penalties>,
    ) -> Self {
        let (accepted, ready) = mpsc::channel(WAITING);
        let door = Door {
            tls,
            places: Arc::new(Semaphore::new(connections_max)),
            penalties,
            accepted,
        };
        let accepting = tokio::spawn(door.keep(listener));
        Self { ready, accepting }
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Stream for Connections {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.ready.poll_recv(cx).map(|next| next.map(Ok))
    }
}

struct Door {
    tls: Option<Tls>,
    places: Arc<Semaphore>,
    penalties: Arc<Penalties>,
    accepted: mpsc::Sender<Connection>,
}

impl Door {
    async fn keep(self, listener: TcpListener) {
        let certificates = self.tls.as_ref().map(|tls| watch::Sender::new(tls.current()));
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = look.tick(), if certificates.is_some() => {
                    self.look(certificates.as_ref());
                    continue;
                }
            };
            match accepted {
                Ok((stream, peer)) => {
                    self.look(certificates.as_ref());
                    self.take(stream, peer, certificates.as_ref());
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Tells all connections of certificates that have changed.
    fn look(&self, certificates: Option<&watch::Sender<Arc<Loaded>>>) {
        if let (Some(tls), Some(held)) = (&self.tls, certificates) {
            let now = tls.current();
            held.send_if_modified(|held| {
                let changed = !Arc::ptr_eq(held, &now);
                *held = now;
                changed
            });
        }
    }

    /// Beyond the limits a connection is closed at once, before a byte of it is read.
    fn take(&self, stream: TcpStream, peer: SocketAddr, certificates: Option<&watch::Sender<Arc<Loaded>>>) {
        if self.penalties.keeps_out(peer.ip(), Instant::now()) {
            tracing::debug!(%peer, "closed a connection of an address that failed too often");
            return;
        }
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            tracing::warn!(%peer, "too many connections: closed one");
            return;
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%peer, %error, "no TCP_NODELAY");
        }
        let info = PeerInfo {
            address: peer,
            chain: None,
            penalties: Arc::clone(&self.penalties),
        };
        let accepted = self.accepted.clone();
        let Some(certificates) = certificates.map(watch::Sender::subscribe) else {
            let connection = Connection {
                io: Io::Plain(stream),
                info,
                revoked: None,
                _place: place,
            };
            tokio::spawn(async move { accepted.send(connection).await });
            return;
        };
        tokio::spawn(async move {
            if let Some(connection) = shake_hands(stream, info, certificates, place).await {
                let _ = accepted.send(connection).await; // nobody takes it up: the server ends
            }
        });
    }
}

async fn shake_hands(
    stream: TcpStream,
    mut info: PeerInfo,
    certificates: watch::Receiver<Arc<Loaded>>,
    place: OwnedSemaphorePermit,
) -> Option<Connection> {
    let peer = info.address;
    let acceptor = TlsAcceptor::from(certificates.borrow().session_server());
    let shaken = tokio::time::timeout(HANDSHAKE_WITHIN, acceptor.accept(stream)).await;
    let reason = match shaken {
        Ok(Ok(stream)) => {
            let chain: Vec<_> = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
            let chain: Arc<[CertificateDer<'static>]> = chain.into();
            info.chain = Some(Arc::clone(&chain));
            return Some(Connection {
                io: Io::Tls(Box::new(stream)),
                info,
                revoked: Some(Box::pin(until_revoked(certificates, chain))),
                _place: place,
            });
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no handshake within {} s", HANDSHAKE_WITHIN.as_secs()),
    };
    info.penalties.note(peer.ip(), Instant::now());
    tracing::warn!(%peer, reason, "a caller was refused: its handshake failed");
    None
}

async fn until_revoked(mut certificates: watch::Receiver<Arc<Loaded>>, chain: Arc<[CertificateDer<'static>]>) {
    loop {
        let revoked = certificates.borrow_and_update().is_revoked(&chain);
        if revoked {
            return;
        }
        if certificates.changed().await.is_err() {
            std::future::pending::<()>().await; // the server ends, and with it this connection
        }
    }
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub(super) struct PeerInfo {
    pub(super) address: SocketAddr,
    /// The certificates that it showed and that were found good.
    pub(super) chain: Option<Arc<[CertificateDer<'static>]>>,
    pub(super) penalties: Arc<Penalties>,
}

enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// One connection, which gives its place back when it is dropped.
pub(super) struct Connection {
    io: Io,
    info: PeerInfo,
    /// Done when the other side's certificate is good no more.
    revoked: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    _place: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.info.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(revoked) = &mut self.revoked
            && revoked.as_mut().poll(cx).is_ready()
        {
            self.revoked = None;
            tracing::warn!(peer = %self.info.address, "a worker is cut off: its certificate was revoked");
            return Poll::Ready(Err(io::ErrorKind::PermissionDenied.into()));
        }
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Io::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Io::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Io::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
