//! How many connections the open files of the process allow.

use super::SPARE;

/// What is needed beside clients' sockets and their likes towards Ollama: the database, its log and its readers, files of
/// answers, webhooks in flight (256), listeners and the runtime's own.
const FILES_RESERVED: u64 = 384;

/// Of what is left, so much is for clients; the rest is for connections to Ollama, which relayed requests and embeds need and
/// waiting clients do not.
const CLIENTS_SHARE: (u64, u64) = (3, 4);

/// Fewer are no service.
pub(super) const PLACES_MIN: usize = 16;

/// As many connections as `files_max` open files allow, at most `wanted`.
pub(in super::super) fn allowed(wanted: usize, files_max: u64) -> usize {
    let (of, all) = CLIENTS_SHARE;
    let clients = files_max.saturating_sub(FILES_RESERVED) / all * of;
    let clients = usize::try_from(clients).unwrap_or(usize::MAX).saturating_sub(SPARE);
    wanted.min(clients.max(PLACES_MIN))
}
