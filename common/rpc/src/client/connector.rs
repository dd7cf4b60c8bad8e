//! How a worker's connection is made: TCP, and TLS on it where the address asks for it.

use crate::tls::Tls;
use hyper_util::rt::TokioIo;
use rustls::Error as TlsError;
use std::error::Error;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::codegen::http::Uri;
use tower_service::Service;

/// Whether the address is one of this machine only.
pub(super) fn is_local(uri: &Uri) -> bool {
    let host = host(uri);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn host(uri: &Uri) -> &str {
    uri.host().unwrap_or_default().trim_matches(['[', ']'])
}

/// Makes the connection of one session.
pub(super) struct Connector {
    tls: Option<Tls>,
    /// Where this side of it is.
    local: Arc<OnceLock<IpAddr>>,
}

impl Connector {
    pub(super) fn new(tls: Option<Tls>) -> Self {
        Self {
            tls,
            local: Arc::default(),
        }
    }

    /// Says, once there is a connection, which address of this machine it begins at.
    pub(super) fn local(&self) -> impl Fn() -> IpAddr + use<> {
        let local = Arc::clone(&self.local);
        move || local.get().copied().unwrap_or(Ipv4Addr::LOCALHOST.into())
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Io>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (tls, local) = (self.tls.clone(), Arc::clone(&self.local));
        Box::pin(async move {
            let stream = TcpStream::connect((host(&uri), uri.port_u16().unwrap_or(443))).await?;
            stream.set_nodelay(true)?;
            let _ = local.set(stream.local_addr()?.ip()); // a second connection of a session has the same
            let Some(tls) = tls else {
                return Ok(TokioIo::new(Io::Plain(stream)));
            };
            let (config, name) = tls.current().session_client();
            let mut stream = TlsConnector::from(config).connect(name, stream).await?;
            // A coordinator that does not believe our certificate says so only now, where HTTP would lose its words. One that
            // does speaks first.
            let first = stream.read_u8().await?;
            Ok(TokioIo::new(Io::Tls {
                first: Some(first),
                stream: Box::new(stream),
            }))
        })
    }
}

/// Why there is no trust, if that is what the error is about.
pub(super) fn distrust(error: &(dyn Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let inside = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let tls = inside
            .and_then(|e| e.downcast_ref::<TlsError>())
            .or_else(|| error.downcast_ref::<TlsError>());
        match tls {
            Some(TlsError::AlertReceived(alert)) => {
                return Some(format!("it refuses this worker's certificate ({alert:?})"));
            }
            Some(TlsError::InvalidCertificate(what)) => return Some(format!("its certificate is not good: {what}")),
            _ => {}
        }
        cause = error.source();
    }
    None
}

/// Either kind of connection.
pub(super) enum Io {
    Plain(TcpStream),
    Tls {
        /// What was read ahead.
        first: Option<u8>,
        stream: Box<TlsStream<TcpStream>>,
    },
}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls { first, stream } => {
                if buf.remaining() > 0
                    && let Some(byte) = first.take()
                {
                    buf.put_slice(&[byte]);
                    return Poll::Ready(Ok(()));
                }
                Pin::new(stream).poll_read(cx, buf)
            }
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls { stream, .. } => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls { stream, .. } => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls { stream, .. } => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
