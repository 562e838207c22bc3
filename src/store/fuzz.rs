//! What fuzz targets of other rooms need of the rows: header lines through their column and back.

use super::rows::{HeaderList, headers_from_text, headers_to_text};

/// The lines as they come back; `None` where they do not.
pub(crate) fn kept(headers: &HeaderList) -> Option<HeaderList> {
    headers_from_text(&headers_to_text(headers)).ok()
}
