//! Every route that takes the GPU, in its own dialect: what foreman reads of it, how its answers end, and what it makes of the
//! ones it does not know. That bytes are Ollama's is shown in `equality`.

mod as_it_came;
mod encoded;
mod ends;
mod search;
mod unsure;
mod v1;

use bytes::Bytes as Body;
use http_body_util::Full;
use hyper::Request;

/// A request in a chosen encoding.
fn with_encoding(
    addr: std::net::SocketAddr,
    path: &str,
    encoding: &str,
    body: Vec<u8>,
) -> Request<Full<Body>> {
    let mut request = crate::harness::client::request(addr, "POST", path, body);
    request.headers_mut().insert("content-encoding", encoding.parse().unwrap());
    request
}
