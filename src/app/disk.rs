//! Looks after the disk under the database: whether there is room for new jobs, and whether it can be written at all.

use std::sync::Arc;
use std::time::Duration;

use crate::http::Edge;
use crate::store::Room;

/// How often the free space is looked at: what a disk takes in a second is well below the floor.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Looks until the drain, so that intake closes in time and opens by itself.
pub(super) async fn run(edge: Arc<Edge>) {
    let mut had_room = true;
    loop {
        match edge.store.look_for_room().await {
            Ok(room) => {
                tell(had_room, room);
                had_room = room.has_room;
            }
            Err(fault) => tracing::debug!(error = %fault, "the free space is not known"),
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => (),
            () = edge.tasks.draining() => return,
        }
    }
}

fn tell(had_room: bool, room: Room) {
    let (free, free_min) = (room.free_bytes, room.free_min_bytes);
    match (had_room, room.has_room) {
        (true, false) => tracing::warn!(
            disk.free_bytes = free,
            disk.free_min_bytes = free_min,
            "the disk is full: new jobs are refused until there is room (FOREMAN_FREE_MIN)"
        ),
        (false, true) => {
            tracing::info!(
                disk.free_bytes = free,
                "there is room on the disk again: new jobs are taken"
            );
        }
        (true, true) | (false, false) => (),
    }
}

/// Ends the daemon when its database can no longer be written: whoever supervises it starts it anew on what is on disk.
pub(super) async fn mourn(edge: Arc<Edge>) {
    tokio::select! {
        // In this order: the stop closes the store, too.
        biased;
        () = edge.tasks.draining() => (),
        () = edge.store.ended() => edge.tasks.break_down("store"),
    }
}
