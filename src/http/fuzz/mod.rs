//! Fuzz targets of what clients send: header lines, submissions; those of paths and queries are beside the jobs. Called by
//! `crate::fuzz` only.

mod headers;
mod submission;

pub use headers::headers;
pub use submission::submission;

pub use super::jobs::fuzz::route;
