//! Writes `events.jsonl` and tells whoever watches.

use argosy_common::events::{RunEvent, StampedEvent};
use argosy_common::secret;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use std::path::{Path, PathBuf};
use std::time::Instant;
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};
use tokio::sync::broadcast;

pub(crate) struct Journal;

#[derive(Debug)]
pub(crate) struct Args {
    pub(crate) path: PathBuf,
    pub(crate) progress: Option<broadcast::Sender<StampedEvent>>,
}

#[derive(Debug)]
pub(crate) struct State {
    path: PathBuf,
    file: File,
    progress: Option<broadcast::Sender<StampedEvent>>,
    began: Instant,
}

impl Actor for Journal {
    type Msg = RunEvent;
    type State = State;
    type Arguments = Args;

    async fn pre_start(&self, _: ActorRef<RunEvent>, args: Args) -> Result<State, ActorProcessingErr> {
        let file = open(&args.path)
            .await
            .map_err(|e| format!("{}: {e}", args.path.display()))?;
        Ok(State {
            path: args.path,
            file,
            progress: args.progress,
            began: Instant::now(),
        })
    }

    async fn handle(
        &self,
        _: ActorRef<RunEvent>,
        event: RunEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let stamped = StampedEvent {
            at_ms: state.began.elapsed().as_millis() as u64,
            event,
        };
        let mut line = secret::hide(&serde_json::to_string(&stamped)?)
            .into_owned()
            .into_bytes();
        line.push(b'\n');
        let written = async {
            state.file.write_all(&line).await?;
            state.file.flush().await
        };
        written.await.map_err(|e| format!("{}: {e}", state.path.display()))?;
        if let Some(progress) = &state.progress {
            let _ = progress.send(stamped); // nobody watches: fine
        }
        Ok(())
    }
}

/// Opens the file for appending whole lines: one that a crash left without its end gets it.
async fn open(path: &Path) -> std::io::Result<File> {
    let options = File::options().create(true).append(true).read(true).clone();
    let mut file = options.open(path).await?;
    if file.metadata().await?.len() > 0 {
        file.seek(std::io::SeekFrom::End(-1)).await?;
        if file.read_u8().await? != b'\n' {
            file.write_all(b"\n").await?;
            file.flush().await?;
        }
    }
    Ok(file)
}
