//! Who asked for a job: an id of the client that is the same after a restart, and the connection it came on. Pure.
//!
//! `http` makes a [`Whom`] of each queued request; [`super::learning`] tells by it who comes back, [`super::turns`] whose turn it is. Nothing here lets
//! anybody in: an id is for telling clients apart, not for trusting them.

use std::fmt;
use std::hash::Hasher;
#[expect(
    deprecated,
    reason = "the one hash in std with a named algorithm (SipHash-2-4): ids are stored, and must not change with the compiler"
)]
use std::hash::SipHasher;

/// The first half of the fixed key: "foreman " as bytes. It is public; see [`ClientId`] for why that is enough.
const KEY_0: u64 = 0x206e_616d_6572_6f66;

/// The second half: "clientid".
const KEY_1: u64 = 0x6469_746e_6569_6c63;

/// The bits of an id: twelve hexadecimal digits. A thousand clients share an id with a chance of one in half a billion.
const ID_MASK: u64 = (1 << 48) - 1;

/// Twelve hexadecimal digits.
const ID_DIGITS: usize = 12;

/// Tells one client from another: a keyed hash of its token, its address and its `User-Agent`, cut to 48 bits.
///
/// Its text is twelve hexadecimal digits, the same after each restart, and stands in the database and in logs. It is an id,
/// not a place to keep secrets in. It does not give a token away: 48 bits are all it could ever tell, so of a random token
/// of 128 bits at least 80 remain unknown, whoever knows the key, and countless tokens share each id. A token that can be
/// guessed can be guessed against it, as it could be against any hash; no id opens any door, since tokens are compared as
/// tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(u64);

impl ClientId {
    /// The id of the client that sends this token, if any, from this address (without the port, which changes with each
    /// connection), with this `User-Agent` (empty if it names none).
    ///
    /// All three count: programs that only need *some* key to please their library send the same one ("ollama"), programs
    /// on one machine share its address, and programs made of one library its `User-Agent`.
    pub fn of(token: Option<&[u8]>, address: &str, user_agent: &[u8]) -> ClientId {
        #[expect(deprecated, reason = "see the import")]
        let mut hasher = SipHasher::new_with_keys(KEY_0, KEY_1);
        hasher.write(&[u8::from(token.is_some())]);
        for part in [token.unwrap_or_default(), address.as_bytes(), user_agent] {
            // With its length before it, no part can pretend to be the beginning of the next.
            hasher.write(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
            hasher.write(part);
        }
        ClientId(hasher.finish() & ID_MASK)
    }

    /// The id of all programs that send the key of this name, whatever their addresses and `User-Agent`s.
    pub fn of_key(name: &str) -> ClientId {
        #[expect(deprecated, reason = "see the import")]
        let mut hasher = SipHasher::new_with_keys(KEY_0, KEY_1);
        // The other ids begin with 0 or 1.
        hasher.write(&[2]);
        hasher.write(name.as_bytes());
        ClientId(hasher.finish() & ID_MASK)
    }

    /// Reads what `Display` writes; `None` for any other text.
    pub fn from_text(text: &str) -> Option<ClientId> {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        (text.len() == ID_DIGITS && text.bytes().all(is_digit))
            .then(|| u64::from_str_radix(text, 16).ok())?
            .map(ClientId)
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:012x}", self.0)
    }
}

/// Who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Whom {
    /// The client.
    pub client: ClientId,
    /// The number of its connection, counted from 1 since the daemon started. A restart begins anew, so it is never stored.
    pub connection: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Ids are stored: an id that changed with a new build would make every client a new one. The text was computed apart
    /// from this program, by another SipHash-2-4.
    #[test]
    fn an_id_is_the_same_for_ever() {
        let id = ClientId::of(Some(b"sk-1"), "192.168.1.5", b"curl/8.0");
        assert_eq!(id.to_string(), "5555c14dd874");
        assert_eq!(ClientId::from_text("5555c14dd874"), Some(id));
    }

    #[test]
    fn programs_with_one_key_are_one_client_and_no_other() {
        let id = ClientId::of_key("alice");
        assert_eq!(id, ClientId::of_key("alice"));
        assert_ne!(id, ClientId::of_key("bob"));
        assert_ne!(id, ClientId::of(None, "alice", b""));
        assert_ne!(id, ClientId::of(Some(b"alice"), "", b""));
    }

    #[test]
    fn each_part_counts_and_none_runs_into_the_next() {
        let ids = [
            ClientId::of(None, "a", b"b"),
            ClientId::of(Some(b""), "a", b"b"),
            ClientId::of(Some(b"t"), "a", b"b"),
            ClientId::of(None, "ab", b""),
            ClientId::of(None, "", b"ab"),
            ClientId::of(Some(b"ta"), "", b"b"),
        ];
        let different: std::collections::BTreeSet<_> = ids.iter().collect();
        assert_eq!(different.len(), ids.len());
    }

    #[test]
    fn only_an_id_is_read_as_one() {
        for text in
            ["", "0123456789a", "0123456789abc", "0123456789aB", "+12345678901", "é23456789ab"]
        {
            assert_eq!(ClientId::from_text(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn ids_round_trip_through_their_text(token: Option<Vec<u8>>, address: String, agent: Vec<u8>) {
            let id = ClientId::of(token.as_deref(), &address, &agent);
            prop_assert_eq!(id.to_string().len(), ID_DIGITS);
            prop_assert_eq!(ClientId::from_text(&id.to_string()), Some(id));
        }
    }
}
