//! The stub's own tests, over real sockets: bytes, scheduling and faults.

#![expect(clippy::disallowed_methods, reason = "the stub's tests have no task registry")]
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a failed step fails the test")]

mod faults;
mod scheduler;
mod shapes;
mod support;
