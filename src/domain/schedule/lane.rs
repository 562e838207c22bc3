//! Lanes: jobs that are interchangeable for the GPU wait in one.

use std::fmt;

use crate::domain::model::LoadKey;

/// Jobs that are interchangeable for the GPU.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// Jobs that need this key resident.
    Key(LoadKey),
    /// Embeds of an embedding model. They are no jobs and live in memory only, so the store never has this lane.
    Embeds(LoadKey),
    /// Clients' own unload requests, of any model.
    Unload,
    /// Requests that could not be placed.
    Opaque,
}

impl Lane {
    /// The lane of that text; `None` for a text that no version of this program wrote, or a later one.
    pub fn from_text(text: &str) -> Option<Lane> {
        match text {
            UNLOAD => Some(Lane::Unload),
            OPAQUE => Some(Lane::Opaque),
            key => key.parse().ok().map(Lane::Key),
        }
    }

    /// The load key of what waits in the lane, where it has one.
    pub fn key(&self) -> Option<&LoadKey> {
        match self {
            Lane::Key(key) | Lane::Embeds(key) => Some(key),
            Lane::Unload | Lane::Opaque => None,
        }
    }
}

/// No model name begins with `!`, so these cannot be load keys.
const UNLOAD: &str = "!unload";
const OPAQUE: &str = "!opaque";
const EMBEDS: &str = "!embeds";

impl fmt::Display for Lane {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lane::Key(key) => key.fmt(formatter),
            Lane::Embeds(key) => write!(formatter, "{EMBEDS} {key}"),
            Lane::Unload => formatter.write_str(UNLOAD),
            Lane::Opaque => formatter.write_str(OPAQUE),
        }
    }
}
