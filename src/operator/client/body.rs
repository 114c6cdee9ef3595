//! The body of an answer: read whole with a bound, or as the lines of a watch with a bound on each.
//!
//! What is no UTF-8 is replaced, so that one string of one object does not make the answer with all
//! others unreadable.
//!
//! Must not know what is in it, and has no deadline: its caller has one.

use std::borrow::Cow;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Deserialize;
use serde_json::value::RawValue;
use tower::BoxError;

/// Most bytes of one answer, and of one event of a watch. An object takes 3 MiB at the most when it is
/// sent to an API server; a page of a list that is larger is asked for in smaller pages.
pub const LARGEST: usize = 16 * 1024 * 1024;

/// Most bytes of an answer that says why there is none.
const LARGEST_ERROR: usize = 64 * 1024;

/// An answer, or one event of a watch, is larger than any that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} has more than {LARGEST} bytes")]
pub struct TooLarge {
    what: &'static str,
}

/// A body, whole.
///
/// # Errors
/// [`TooLarge`], or what the connection says.
pub(super) async fn whole<B>(body: B) -> Result<Bytes, BoxError>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    match Limited::new(body, LARGEST).collect().await {
        Ok(body) => Ok(readable(body.to_bytes())),
        Err(error) if error.is::<LengthLimitError>() => Err(TooLarge { what: "the answer" }.into()),
        Err(error) => Err(error),
    }
}

/// The body of an answer that says why there is none. Too large a one says nothing: its status counts.
///
/// # Errors
/// What the connection says.
pub(super) async fn of_error<B>(body: B) -> Result<Bytes, BoxError>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    match Limited::new(body, LARGEST_ERROR).collect().await {
        Ok(body) => Ok(readable(body.to_bytes())),
        Err(error) if error.is::<LengthLimitError>() => Ok(Bytes::from_static(
            b"an error with a body of more than 64 KiB",
        )),
        Err(error) => Err(error),
    }
}

/// The same, with replacements for what is no UTF-8.
fn readable(body: Bytes) -> Bytes {
    match String::from_utf8_lossy(&body) {
        Cow::Borrowed(_) => body,
        Cow::Owned(text) => Bytes::from(text),
    }
}

/// How every event of a watch begins, as an API server writes it. Only so can the object be read
/// without being copied first.
const BEGINNING: &[u8] = b"{\"type\":";

/// The body of a watch, in frames of whole lines.
#[derive(Debug)]
pub struct Lines<B> {
    inner: Pin<Box<B>>,
    /// The beginning of a line.
    rest: BytesMut,
    is_over: bool,
}

impl<B> Lines<B> {
    pub(super) fn new(inner: B) -> Self {
        Self {
            inner: Box::pin(inner),
            rest: BytesMut::new(),
            is_over: false,
        }
    }
}

impl<B> Body for Lines<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        while !this.is_over {
            let data = match ready!(this.inner.as_mut().poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => data,
                    Err(_trailers) => continue,
                },
                Some(Err(error)) => {
                    this.is_over = true;
                    return Poll::Ready(Some(Err(error.into())));
                }
                None => {
                    this.is_over = true;
                    let rest = std::mem::take(&mut this.rest).freeze();
                    if rest.is_empty() {
                        return Poll::Ready(None);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(readable(rest)))));
                }
            };
            let lines = match memchr::memrchr(b'\n', &data) {
                // Mostly, what comes is whole lines.
                Some(last) if this.rest.is_empty() && last + 1 == data.len() => data,
                Some(last) => {
                    let end = this.rest.len() + last + 1;
                    this.rest.extend_from_slice(&data);
                    this.rest.split_to(end).freeze()
                }
                None => {
                    this.rest.extend_from_slice(&data);
                    Bytes::new()
                }
            };
            let is_too_large = this.rest.len() > LARGEST
                || lines.len() > LARGEST && split(&lines).any(|line| line.len() > LARGEST);
            if is_too_large {
                this.is_over = true;
                this.rest = BytesMut::new();
                let what = "an event of a watch";
                return Poll::Ready(Some(Err(TooLarge { what }.into())));
            }
            if !lines.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(in_order(readable(lines))))));
            }
        }
        Poll::Ready(None)
    }
}

fn split(lines: &[u8]) -> impl Iterator<Item = &[u8]> {
    lines.split_inclusive(|byte| *byte == b'\n')
}

/// The same lines, each with its type first.
fn in_order(lines: Bytes) -> Bytes {
    if split(&lines).all(|line| line.starts_with(BEGINNING)) {
        return lines;
    }
    let mut all = BytesMut::with_capacity(lines.len());
    for line in split(&lines) {
        match serde_json::from_slice::<Event<'_>>(line) {
            Ok(Event { kind, object }) => {
                all.extend_from_slice(BEGINNING);
                all.extend_from_slice(kind.get().as_bytes());
                all.extend_from_slice(b",\"object\":");
                all.extend_from_slice(object.get().as_bytes());
                all.extend_from_slice(b"}\n");
            }
            // It is no event, and whoever reads it says so.
            Err(_) => all.extend_from_slice(line),
        }
    }
    all.freeze()
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "type", borrow)]
    kind: &'a RawValue,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use http_body_util::StreamBody;

    use super::*;

    /// A body that comes in these pieces.
    fn pieces(
        pieces: impl IntoIterator<Item = Bytes>,
    ) -> impl Body<Data = Bytes, Error = BoxError> + Unpin {
        let pieces: Vec<_> = pieces.into_iter().collect();
        StreamBody::new(stream::iter(
            pieces.into_iter().map(|it| Ok(Frame::data(it))),
        ))
    }

    /// A body of this piece for ever, and what counts how often it was asked for.
    fn endless(piece: Bytes) -> impl Body<Data = Bytes, Error = BoxError> + Unpin {
        StreamBody::new(stream::repeat_with(move || Ok(Frame::data(piece.clone()))))
    }

    async fn lines(body: impl Body<Data = Bytes, Error = BoxError> + Unpin) -> Vec<String> {
        let mut lines = Lines::new(body);
        let mut found = Vec::new();
        while let Some(frame) = lines.frame().await {
            match frame {
                Ok(frame) => {
                    let data = frame.into_data().unwrap();
                    found.push(String::from_utf8(data.to_vec()).unwrap());
                }
                Err(error) => found.push(error.to_string()),
            }
        }
        found
    }

    #[tokio::test]
    async fn an_answer_without_end_is_refused() {
        let error = whole(endless(Bytes::from(vec![b' '; 65_536]))).await;
        let error = error.unwrap_err();
        assert!(error.is::<TooLarge>(), "{error}");
        let error = of_error(endless(Bytes::from_static(b"no! ")))
            .await
            .unwrap();
        assert_eq!(error, "an error with a body of more than 64 KiB");
    }

    #[tokio::test]
    async fn an_answer_of_the_largest_size_is_read() {
        let half = Bytes::from(vec![b'x'; LARGEST / 2]);
        let body = whole(pieces([half.clone(), half.clone()])).await.unwrap();
        assert_eq!(body.len(), LARGEST);
        let more = [half.clone(), half, Bytes::from_static(b"x")];
        assert!(whole(pieces(more)).await.unwrap_err().is::<TooLarge>());
    }

    #[tokio::test]
    async fn what_is_no_utf_8_is_replaced() {
        let body = whole(pieces([Bytes::from_static(b"[\"a\xff\"]")])).await;
        assert_eq!(body.unwrap(), "[\"a\u{fffd}\"]");
        // A letter whose bytes come apart is whole.
        let apart = ["{\"type\":\"\u{e9}".as_bytes(), b"\"}\n"].concat();
        let (left, right) = apart.split_at(10);
        let apart = pieces([Bytes::copy_from_slice(left), Bytes::copy_from_slice(right)]);
        assert_eq!(lines(apart).await, ["{\"type\":\"\u{e9}\"}\n"]);
        let bad = Bytes::from_static(b"{\"type\":\"\xe9\"}\n");
        assert_eq!(lines(pieces([bad])).await, ["{\"type\":\"\u{fffd}\"}\n"]);
    }

    #[tokio::test]
    async fn a_line_without_end_ends_the_watch() {
        let event = Bytes::from_static(b"{\"type\":\"BOOKMARK\",\"object\":{}}\n");
        let found = lines(
            // One line, then one without an end.
            StreamBody::new(futures::StreamExt::chain(
                stream::iter([Ok(Frame::data(event.clone()))]),
                stream::repeat_with(|| Ok(Frame::data(Bytes::from(vec![b'['; 65_536])))),
            )),
        );
        let found = found.await;
        assert_eq!(
            found,
            [
                std::str::from_utf8(&event).unwrap(),
                "an event of a watch has more than 16777216 bytes"
            ]
        );
    }

    #[tokio::test]
    async fn lines_come_whole_with_their_type_first() {
        let body = pieces(
            [
                "{\"type\":\"A\",\"object\":1}\n{\"obj",
                "ect\":[",
                "2],\"type\":\"B\"}\n\nnonsense\n",
                "{\"type\":",
            ]
            .map(|it: &'static str| Bytes::from_static(it.as_bytes())),
        );
        assert_eq!(
            lines(body).await,
            [
                "{\"type\":\"A\",\"object\":1}\n",
                "{\"type\":\"B\",\"object\":[2]}\n\nnonsense\n",
                "{\"type\":",
            ]
        );
    }
}
