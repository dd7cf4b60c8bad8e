//! A store inside the process whose requests meet faults.

use crate::body::{self, Broken};
use crate::faults::{Fault, Faults, Met, Op};
use async_trait::async_trait;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Any store, with faults laid over it.
#[derive(Clone, Debug)]
pub struct FaultyStore {
    inner: Arc<dyn ObjectStore>,
    faults: Faults,
    page_keys: usize,
}

impl FaultyStore {
    /// `inner` under `faults`. A list is one page, whatever its length.
    #[must_use]
    pub fn new(inner: Arc<dyn ObjectStore>, faults: Faults) -> Self {
        Self::with_pages(inner, faults, usize::MAX)
    }

    /// The same, with at most `page_keys` keys in a page of a list, each of which is a request of its own.
    #[must_use]
    pub fn with_pages(inner: Arc<dyn ObjectStore>, faults: Faults, page_keys: usize) -> Self {
        Self {
            inner,
            faults,
            page_keys: page_keys.max(1),
        }
    }

    /// `whole`, the inner store's list, by pages.
    fn paged(
        &self,
        prefix: Option<&Path>,
        whole: BoxStream<'static, Result<ObjectMeta>>,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let (store, at) = (self.clone(), prefix.cloned().unwrap_or_default());
        stream::try_unfold(Listing::Begins(whole), move |listing| {
            let (store, at) = (store.clone(), at.clone());
            async move { store.page(&at, listing).await }
        })
        .map_ok(|page| stream::iter(page.into_iter().map(Ok)))
        .try_flatten()
        .boxed()
    }

    /// The next page of a list and what is left of it; none behind the last.
    async fn page(&self, at: &Path, listing: Listing) -> Result<Option<(Vec<ObjectMeta>, Listing)>> {
        if matches!(&listing, Listing::Rest(pages) if pages.is_empty()) {
            return Ok(None);
        }
        let met = self.faults.meet(Op::List, at.as_ref(), None);
        self.before(&met, at).await?;
        let mut pages = match listing {
            Listing::Rest(pages) => pages,
            Listing::Begins(whole) => {
                let keys: Vec<ObjectMeta> = whole.try_collect().await?;
                keys.chunks(self.page_keys).map(<[ObjectMeta]>::to_vec).collect()
            }
        };
        let mut page = after(&met, pages.pop_front().unwrap_or_default())?;
        match met.fault {
            Some(Fault::Slow { gap_ms, .. }) => tokio::time::sleep(Duration::from_millis(gap_ms)).await,
            Some(Fault::ListedReversed) => page.reverse(),
            Some(Fault::ListedTwice) => page.extend(page.clone().into_iter().rev()),
            _ => {}
        }
        Ok(Some((page, Listing::Rest(pages))))
    }

    /// What happens before the request reaches the store.
    async fn before(&self, met: &Met, location: &Path) -> Result<()> {
        match &met.fault {
            Some(Fault::Status(status)) => Err(status_error(*status, location)),
            Some(Fault::Hang) => {
                self.faults.held(met.since).await;
                Ok(())
            }
            Some(Fault::Changed(content)) => {
                self.inner.put(location, content.clone().into()).await?;
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// A list on its way.
enum Listing {
    /// Nothing was asked yet; the inner store's list is read behind what goes wrong with the first page.
    Begins(BoxStream<'static, Result<ObjectMeta>>),
    /// The pages that are still to come.
    Rest(VecDeque<Vec<ObjectMeta>>),
}

/// What happens to the reply of a request that was carried out.
fn after<T>(met: &Met, done: T) -> Result<T> {
    match &met.fault {
        Some(Fault::LostReply) => Err(broken()),
        _ => Ok(done),
    }
}

fn broken() -> Error {
    Error::Generic {
        store: "faulty",
        source: Box::new(Broken),
    }
}

/// The error `object_store`'s HTTP clients make of a status.
fn status_error(status: u16, location: &Path) -> Error {
    let path = location.to_string();
    let source: Box<dyn std::error::Error + Send + Sync> =
        format!("Server returned non-2xx status code: {status} (a planned fault)").into();
    match status {
        404 => Error::NotFound { path, source },
        412 => Error::Precondition { path, source },
        401 => Error::Unauthenticated { path, source },
        403 => Error::PermissionDenied { path, source },
        _ => Error::Generic {
            store: "faulty",
            source,
        },
    }
}

fn asked(options: &GetOptions) -> Option<Range<u64>> {
    match &options.range {
        Some(GetRange::Bounded(range)) => Some(range.clone()),
        Some(GetRange::Offset(start)) => Some(*start..u64::MAX),
        Some(GetRange::Suffix(_)) | None => None,
    }
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultyStore({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let met = self.faults.meet(Op::Put, location.as_ref(), None);
        self.before(&met, location).await?;
        if let Some(Fault::Torn(kept)) = met.fault {
            let whole: Vec<u8> = payload.iter().flat_map(|b| b.to_vec()).collect();
            let kept = usize::try_from(kept).unwrap_or(whole.len()).min(whole.len());
            self.inner
                .put_opts(location, whole[..kept].to_vec().into(), opts)
                .await?;
            return Err(broken());
        }
        after(&met, self.inner.put_opts(location, payload, opts).await?)
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let met = self.faults.meet(Op::Multipart, location.as_ref(), None);
        self.before(&met, location).await?;
        let upload = self.inner.put_multipart_opts(location, opts).await?;
        let store = self.clone();
        let location = location.clone();
        after(
            &met,
            Box::new(FaultyUpload {
                store,
                location,
                upload,
            }) as Box<dyn MultipartUpload>,
        )
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let op = if options.head { Op::Head } else { Op::Get };
        let met = self.faults.meet(op, location.as_ref(), asked(&options));
        self.before(&met, location).await?;
        let got = self.inner.get_opts(location, options).await?;
        let got = after(&met, got)?;
        if op == Op::Head {
            return Ok(got);
        }
        let (mut meta, mut range) = (got.meta.clone(), got.range.clone());
        let (attributes, extensions) = (got.attributes.clone(), got.extensions.clone());
        let mut bytes = got.bytes().await?;
        if let Some(Fault::WrongContent(content)) = &met.fault {
            bytes = content.clone();
            meta.size = bytes.len() as u64;
            meta.e_tag = None;
            range = 0..meta.size;
        }
        let payload = body::stream(bytes, &met, &self.faults).map_err(|_| broken());
        Ok(GetResult {
            payload: GetResultPayload::Stream(payload.boxed()),
            meta,
            range,
            attributes,
            extensions,
        })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        locations
            .and_then(move |location| {
                let store = store.clone();
                async move {
                    let met = store.faults.meet(Op::Delete, location.as_ref(), None);
                    store.before(&met, &location).await?;
                    store.inner.delete(&location).await?;
                    after(&met, location)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.paged(prefix, self.inner.list(prefix))
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.paged(prefix, self.inner.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let name = prefix.map(ToString::to_string).unwrap_or_default();
        let met = self.faults.meet(Op::List, &name, None);
        self.before(&met, &prefix.cloned().unwrap_or_default()).await?;
        after(&met, self.inner.list_with_delimiter(prefix).await?)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let met = self.faults.meet(Op::Copy, to.as_ref(), None);
        self.before(&met, to).await?;
        self.inner.copy_opts(from, to, options).await?;
        after(&met, ())
    }
}

/// A multipart upload whose parts and end meet faults.
#[derive(Debug)]
struct FaultyUpload {
    store: FaultyStore,
    location: Path,
    upload: Box<dyn MultipartUpload>,
}

#[async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let met = self.store.faults.meet(Op::Multipart, self.location.as_ref(), None);
        let part = self.upload.put_part(data);
        let (store, location) = (self.store.clone(), self.location.clone());
        Box::pin(async move {
            store.before(&met, &location).await?;
            part.await?;
            after(&met, ())
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let met = self.store.faults.meet(Op::Multipart, self.location.as_ref(), None);
        self.store.before(&met, &self.location).await?;
        let done = self.upload.complete().await?;
        after(&met, done)
    }

    async fn abort(&mut self) -> Result<()> {
        self.upload.abort().await
    }
}
