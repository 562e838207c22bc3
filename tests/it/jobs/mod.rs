//! Jobs that outlive their caller (docs/jobs.md): handing in, looking, following, ending, and being told.

mod acting;
mod batch;
mod events;
mod looking;
mod output;
mod races;
mod replaced;
mod submit;
mod times;
