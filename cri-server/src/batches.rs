//! Lists as streams: the items of a list call in messages of bounded size, for all of CRI's `Stream` calls.
//!
//! Every item is sent once and in order; a message holds at least one, and an empty list has no message. A message is
//! built when the one before has been taken: what is never read costs nothing but its iterator.

use std::pin::Pin;

use prost::Message;
use tokio_stream::Stream;
use tonic::Status;

/// Most items in one message.
const MAX_ITEMS: usize = 256;
/// A message takes no further item once it holds this many encoded bytes. The kubelet takes 16 MiB; the last item may be
/// a large one, with annotations of 256 KiB and more.
const MAX_BYTES: usize = 1 << 20;

/// The stream of a call that lists.
pub(crate) type Batches<M> = Pin<Box<dyn Stream<Item = Result<M, Status>> + Send>>;

/// `items`, in messages that `message` makes of some of them.
pub(crate) fn batches<T, M>(
    items: impl IntoIterator<Item = T, IntoIter: Send + 'static>,
    message: fn(Vec<T>) -> M,
) -> Batches<M>
where
    T: Message + 'static,
    M: 'static,
{
    let mut items = items.into_iter();
    let messages = std::iter::from_fn(move || {
        let batch = take_batch(&mut items);
        (!batch.is_empty()).then(|| Ok(message(batch)))
    });
    Box::pin(tokio_stream::iter(messages))
}

/// The items of the next message; none at the end of the list.
fn take_batch<T: Message>(items: &mut impl Iterator<Item = T>) -> Vec<T> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    while batch.len() < MAX_ITEMS && bytes < MAX_BYTES {
        let Some(item) = items.next() else { break };
        bytes += item.encoded_len();
        batch.push(item);
    }
    batch
}

#[cfg(test)]
mod tests {
    use corten_proto::cri::{Image, StreamImagesResponse};
    use tokio_stream::StreamExt;

    use super::*;

    /// The number of items in each message of a list of `sizes` bytes each.
    async fn counts(sizes: &[usize]) -> Vec<usize> {
        let images: Vec<_> = sizes
            .iter()
            .map(|&size| Image {
                id: "x".repeat(size),
                ..Default::default()
            })
            .collect();
        let stream = batches(images.clone(), |images| StreamImagesResponse { images });
        let messages: Vec<_> = stream
            .map(|message| message.expect("no failure").images)
            .collect()
            .await;
        assert_eq!(messages.concat(), images, "every item once, in order");
        messages.iter().map(Vec::len).collect()
    }

    #[tokio::test]
    async fn messages_are_bounded_by_items_and_bytes() {
        const LARGE: usize = MAX_BYTES / 2;
        let table: [(&[usize], &[usize]); 5] = [
            (&[], &[]),
            (&[1], &[1]),
            (&[1; MAX_ITEMS + 1], &[MAX_ITEMS, 1]),
            (&[LARGE; 5], &[2, 2, 1]),
            (&[1, 3 * MAX_BYTES, 1], &[2, 1]),
        ];
        for (sizes, expected) in table {
            assert_eq!(counts(sizes).await, expected, "{} items", sizes.len());
        }
    }
}
