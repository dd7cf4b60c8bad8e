//! A moto server: S3 as somebody else has read its documentation, for what must not hang on our own reading.

use crate::s3;
use crate::server::Kind;
use object_store::ObjectStore;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

/// Names the venv that `tests/peers/moto.sh` makes.
const VARIABLE: &str = "ARGOSY_MOTO";
/// It imports half of Amazon.
const START_WITHIN: Duration = Duration::from_secs(60);

/// The server. Ends when dropped.
#[derive(Debug)]
pub struct Moto {
    child: Child,
    address: SocketAddr,
}

impl Moto {
    /// With what reason a test that needs it skips itself where there is none.
    pub const SKIP: &'static str = "no ARGOSY_MOTO: a venv made by tests/peers/moto.sh";

    /// Starts one on a free port of loopback, with these buckets; `None` where nobody named a venv.
    ///
    /// # Errors
    /// When it does not start, or a bucket cannot be made.
    pub fn start(buckets: &[&str]) -> io::Result<Option<Self>> {
        let Some(venv) = std::env::var_os(VARIABLE) else {
            return Ok(None);
        };
        let program = PathBuf::from(venv).join("bin/moto_server");
        let mut child = Command::new(&program)
            .args(["-H", "127.0.0.1", "-p", "0"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", program.display())))?;
        let said = child.stderr.take();
        let mut moto = Self {
            child,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        let (found, address) = channel();
        // It tells of every request: somebody has to read on.
        std::thread::spawn(move || {
            for line in BufReader::new(said.into_iter().next().ok_or(())?).lines() {
                let Ok(line) = line else { break };
                if let Some((_, rest)) = line.split_once("Running on http://") {
                    let digits = rest.trim_end_matches('/').trim();
                    let _ = found.send(digits.parse::<SocketAddr>());
                }
            }
            Ok::<(), ()>(())
        });
        moto.address = address
            .recv_timeout(START_WITHIN)
            .map_err(|_| io::Error::other("moto does not say where it listens"))?
            .map_err(io::Error::other)?;
        for bucket in buckets {
            moto.put(bucket, b"")?;
        }
        Ok(Some(moto))
    }

    /// What a process needs in its environment to reach it as S3.
    #[must_use]
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        s3::environment(Kind::S3, &self.endpoint())
    }

    /// A client of `bucket` that retries nothing.
    ///
    /// # Errors
    /// When the client cannot be made.
    pub fn client(&self, bucket: &str) -> object_store::Result<Arc<dyn ObjectStore>> {
        // Only the first one counts; another one that was chosen before is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        s3::client(Kind::S3, &self.endpoint(), bucket)
    }

    /// Stores a file as an object.
    ///
    /// # Errors
    /// When it cannot be read or stored.
    pub fn insert(&self, bucket: &str, key: &str, file: &Path) -> io::Result<()> {
        self.put(&format!("{bucket}/{key}"), &std::fs::read(file)?)
    }

    fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// One request without a signature, which moto does not ask for.
    fn put(&self, path: &str, body: &[u8]) -> io::Result<()> {
        let mut socket = TcpStream::connect(self.address)?;
        let head = format!(
            "PUT /{path} HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            self.address,
            body.len()
        );
        socket.write_all(head.as_bytes())?;
        socket.write_all(body)?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        match answer.split_whitespace().nth(1) {
            Some("200") => Ok(()),
            _ => Err(io::Error::other(format!("PUT {path}: {answer}"))),
        }
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
