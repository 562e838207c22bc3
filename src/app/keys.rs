//! The file of keys, read again while foreman serves. What is in flight goes on; a key counts from its next request on.

use std::sync::Arc;

use crate::http::Edge;
use crate::keys::Keys;
use crate::store::{Cap, Caps};

/// Reads the file of keys again.
pub struct KeyReader(pub(super) Arc<Edge>);

impl KeyReader {
    /// Reads it. A file with a fault is told of in the log, and changes nothing.
    pub async fn reload(&self) {
        let keys = self.0.keys.clone();
        let read = tokio::task::spawn_blocking(move || keys.reload()).await;
        match read {
            Ok(Ok(count)) => {
                keep_caps(&self.0);
                // A job that waited for its owner's cap may run now.
                self.0.worker.wake();
                tracing::info!(keys.count = count, "the keys were read again");
            }
            Ok(Err(faults)) => {
                for fault in faults {
                    tracing::error!("{fault}; the keys stay as they were");
                }
            }
            Err(fault) => {
                tracing::error!(error = %fault, "the keys could not be read again; they stay as they were");
            }
        }
    }
}

/// Has the store hold the owners to the caps of their keys.
pub(super) fn keep_caps(edge: &Edge) {
    edge.store.keep_caps(caps(&edge.keys));
}

fn caps(keys: &Keys) -> Caps {
    let ring = keys.ring();
    let named = ring.iter().filter(|key| !key.name.is_empty());
    let caps = named.map(|key| {
        let cap = Cap { queued_max: key.queued_max, in_flight_max: key.in_flight_max };
        (key.name.clone(), cap)
    });
    caps.filter(|(_, cap)| *cap != Cap::default()).collect()
}
