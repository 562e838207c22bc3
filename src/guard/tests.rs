//! The promises of the whole guard, as a client sees them. The recorded answers are those of a real Ollama 0.33
//! (fixtures `options-cors`, `bad-origin`).

use hyper::header::{HOST, HeaderName, HeaderValue, ORIGIN};
use proptest::prelude::*;

use super::*;

const LOOPBACK: &str = "127.0.0.1:11435";
const OPEN: &str = "0.0.0.0:11435";

/// The header lines of a request.
type Lines<'text> = &'text [(HeaderName, &'text str)];

/// The preflight answer as recorded, without `Allow` (the router's), `Date` and `Connection` (the server's).
const RECORDED_PREFLIGHT: &str = "\
Access-Control-Allow-Headers: Authorization,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta,X-Stainless-Arch,X-Stainless-Async,X-Stainless-Custom-Poll-Interval,X-Stainless-Helper-Method,X-Stainless-Lang,X-Stainless-Os,X-Stainless-Package-Version,X-Stainless-Poll-Helper,X-Stainless-Retry-Count,X-Stainless-Runtime,X-Stainless-Runtime-Version,X-Stainless-Timeout
Access-Control-Allow-Methods: GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS
Access-Control-Allow-Origin: http://localhost:3000
Access-Control-Max-Age: 43200
Vary: Origin
Vary: Access-Control-Request-Method
Vary: Access-Control-Request-Headers
";

fn guard(listen: &str, origins: &str) -> Guard {
    Guard::new(listen.parse().unwrap(), "GPU-Box".to_owned(), origins)
}

fn headers(lines: Lines<'_>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    headers
}

/// Sends one request with these headers to a path and says in a few words what came of it.
fn outcome(guard: &Guard, method: &Method, lines: Lines<'_>, target: &str) -> String {
    match guard.admit(method, &headers(lines), &target.parse().unwrap()) {
        Admission::Pass(cors) => format!("pass {}", spoken(&cors)),
        Admission::Refuse(refusal) => {
            format!("{} {}", refusal.status.as_u16(), spoken(&refusal.cors))
        }
        Admission::Preflight(headers) => format!("204 {}", headers.len()),
    }
}

fn spoken(cors: &CorsHeaders) -> String {
    match cors {
        CorsHeaders::Absent => "-".to_owned(),
        CorsHeaders::Any => "*".to_owned(),
        CorsHeaders::Origin(origin) => origin.to_str().unwrap().to_owned(),
    }
}

#[test]
fn a_preflight_is_answered_as_a_real_ollama_answered_it() {
    let lines = [(HOST, LOOPBACK), (ORIGIN, "http://localhost:3000")];
    let uri = "/api/chat".parse().unwrap();
    let Admission::Preflight(answer) =
        guard(LOOPBACK, "").admit(&Method::OPTIONS, &headers(&lines), &uri)
    else {
        panic!("not a preflight");
    };
    let said: String = answer
        .iter()
        .map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap()))
        .collect();
    let recorded: String = RECORDED_PREFLIGHT
        .lines()
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| format!("{}: {value}\n", name.to_lowercase()))
        .collect();
    assert_eq!(said, recorded);
}

#[test]
fn an_origin_is_judged_before_the_host() {
    let local = "http://localhost:3000";
    let cases: [(Method, Lines<'_>, &str); 14] = [
        (Method::GET, &[(HOST, LOOPBACK)], "pass -"),
        (Method::GET, &[(HOST, LOOPBACK), (ORIGIN, "")], "pass -"),
        (Method::GET, &[(HOST, LOOPBACK), (ORIGIN, local)], "pass http://localhost:3000"),
        (Method::GET, &[(HOST, LOOPBACK), (ORIGIN, "http://127.0.0.1:11435")], "pass -"),
        (Method::GET, &[(HOST, "gpu-box:1"), (ORIGIN, "https://gpu-box:1")], "pass -"),
        (Method::GET, &[(HOST, "gpu-box:1"), (ORIGIN, "https://gpu-box")], "403 -"),
        (Method::GET, &[(HOST, LOOPBACK), (ORIGIN, "http://evil.example")], "403 -"),
        (Method::OPTIONS, &[(HOST, LOOPBACK), (ORIGIN, "http://evil.example")], "403 -"),
        // The first Origin counts, as in Go.
        (Method::GET, &[(HOST, LOOPBACK), (ORIGIN, "null"), (ORIGIN, local)], "403 -"),
        // Rebinding: the page is of the same origin, the host gives it away.
        (Method::POST, &[(HOST, "evil.example"), (ORIGIN, "http://evil.example")], "403 -"),
        // An allowed origin may read that the host was refused.
        (Method::POST, &[(HOST, "evil.example"), (ORIGIN, local)], "403 http://localhost:3000"),
        // A preflight never gets as far as the host.
        (Method::OPTIONS, &[(HOST, "evil.example"), (ORIGIN, local)], "204 7"),
        // An OPTIONS that is no preflight: answered for names, left to the routes for addresses.
        (Method::OPTIONS, &[(HOST, "localhost")], "204 0"),
        (Method::OPTIONS, &[(HOST, LOOPBACK)], "pass -"),
    ];
    let guard = guard(LOOPBACK, "");
    for (method, lines, expected) in cases {
        assert_eq!(outcome(&guard, &method, lines, "/api/chat"), expected, "{method} {lines:?}");
    }
}

#[test]
fn everyone_is_allowed_only_by_a_lone_star_and_only_on_a_local_host() {
    let everyone = guard(LOOPBACK, "*");
    let cases: [(Method, Lines<'_>, &str); 5] = [
        (Method::GET, &[(HOST, LOOPBACK), (ORIGIN, "http://any.example")], "pass *"),
        (Method::GET, &[(HOST, LOOPBACK), (ORIGIN, "http://127.0.0.1:11435")], "pass -"),
        (Method::GET, &[(HOST, LOOPBACK)], "pass -"),
        (Method::OPTIONS, &[(HOST, LOOPBACK), (ORIGIN, "null")], "204 4"),
        (Method::GET, &[(HOST, "evil.example"), (ORIGIN, "http://any.example")], "403 *"),
    ];
    for (method, lines, expected) in cases {
        assert_eq!(outcome(&everyone, &method, lines, "/"), expected, "{method} {lines:?}");
    }
}

#[test]
fn an_open_listener_checks_origins_but_not_hosts() {
    let open = guard(OPEN, "");
    let cases: [(Lines<'_>, &str); 3] = [
        (&[(HOST, "gpu.example.com")], "pass -"),
        (&[(HOST, "gpu.example.com"), (ORIGIN, "http://gpu.example.com")], "pass -"),
        (&[(HOST, "gpu.example.com"), (ORIGIN, "http://evil.example")], "403 -"),
    ];
    for (lines, expected) in cases {
        assert_eq!(outcome(&open, &Method::GET, lines, "/"), expected, "{lines:?}");
    }
    assert_eq!(outcome(&open, &Method::OPTIONS, &[(HOST, "localhost")], "/"), "pass -");
}

#[test]
fn the_target_names_the_host_before_the_header_does() {
    let guard = guard(LOOPBACK, "");
    let cases: [(Lines<'_>, &str, &str); 9] = [
        (&[], "/api/tags", "pass -"),
        (&[(HOST, "")], "/api/tags", "pass -"),
        (&[(HOST, LOOPBACK)], "http://evil.example/api/tags", "403 -"),
        (&[(HOST, "evil.example")], "http://127.0.0.1:11435/api/tags", "pass -"),
        (&[(HOST, LOOPBACK)], "http://localhost@evil.example/api/tags", "403 -"),
        (&[(HOST, LOOPBACK)], "//evil.example/api/tags", "pass -"),
        (&[(HOST, LOOPBACK), (HOST, LOOPBACK)], "/api/tags", "400 -"),
        (&[(HOST, "evil.example/x.local")], "/api/tags", "400 -"),
        (&[(HOST, "\u{e9}.local")], "http://127.0.0.1/api/tags", "400 -"),
    ];
    for (lines, target, expected) in cases {
        assert_eq!(outcome(&guard, &Method::GET, lines, target), expected, "{target} {lines:?}");
    }
}

/// Public names, among them those that look local at either end or in the middle.
fn public_name() -> impl Strategy<Value = String> {
    let lure = prop::sample::select(vec![
        "",
        "localhost.",
        "127.0.0.1.",
        "gpu-box.",
        "a.local.",
        "x.internal.",
        "10.0.0.1.",
        "[::1].",
        "0.",
        "xn--",
        "localhost-",
        "local",
    ]);
    let ending = prop::sample::select(vec![
        "com",
        "org",
        "example",
        "io",
        "localhost.com",
        "local.net",
        "internalx",
        "notlocal",
        "notlocalhost",
        "com.",
        "localhost.",
        "local.",
        "internal.",
    ]);
    (lure, "[a-zA-Z0-9]([a-zA-Z0-9-]{0,12}[a-zA-Z0-9])?", ending)
        .prop_map(|(lure, label, ending)| format!("{lure}{label}.{ending}"))
}

/// Addresses outside the ranges that belong to no machine or to a local one; written out apart from the code.
fn public_address() -> impl Strategy<Value = String> {
    let four = any::<[u8; 4]>().prop_filter("public", |octets| {
        !matches!(octets, [127 | 10, ..] | [192, 168, ..] | [172, 16..=31, ..] | [0, 0, 0, 0])
    });
    let six = any::<[u16; 8]>().prop_map(|mut groups| {
        groups[0] = 0x2000 | (groups[0] & 0x1fff);
        std::net::Ipv6Addr::from(groups)
    });
    prop_oneof![
        four.prop_map(|octets| std::net::Ipv4Addr::from(octets).to_string()),
        four_in_six(),
        six.prop_map(|address| format!("[{address}]")),
    ]
}

fn four_in_six() -> impl Strategy<Value = String> {
    any::<[u8; 2]>().prop_map(|[third, fourth]| format!("[::ffff:8.8.{third}.{fourth}]"))
}

proptest! {
    /// DNS rebinding cannot work: whatever the method, origin list, origin and shape of the request, a host that is
    /// public never gets past a listener on loopback. (A preflight is answered, but reaches no route.)
    #[test]
    fn a_public_host_never_passes_a_loopback_listener(
        name in prop_oneof![public_name(), public_address()],
        port in prop::option::of(any::<u16>()),
        listen in prop::sample::select(vec!["127.0.0.1:11435", "127.0.0.2:80", "[::1]:11435"]),
        list in prop::sample::select(vec!["", "*", "http://*", "*.com", "http://a.example"]),
        method in prop::sample::select(vec![Method::GET, Method::POST, Method::OPTIONS]),
        origin in prop::sample::select(vec!["none", "same", "http://localhost:3000", "null"]),
        is_absolute in any::<bool>(),
    ) {
        let host = port.map_or(name.clone(), |port| format!("{name}:{port}"));
        let absolute = format!("http://{host}/api/tags").parse::<Uri>().ok().filter(|_| is_absolute);
        let (header, uri) = match absolute {
            Some(uri) => (LOOPBACK, uri),
            None => (host.as_str(), Uri::from_static("/api/tags")),
        };
        let same = format!("http://{host}");
        let origin = if origin == "same" { &same } else { origin };
        let lines = [(HOST, header), (ORIGIN, origin)];
        let lines = if origin == "none" { &lines[..1] } else { &lines[..] };
        let admission = guard(listen, list).admit(&method, &headers(lines), &uri);
        prop_assert!(!matches!(admission, Admission::Pass(_)), "{method} {lines:?} {uri}");
    }
}
