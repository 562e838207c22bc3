//! Fuzz target of receivers: their URLs, and which addresses are told. Called by `crate::fuzz` only.
#![expect(clippy::panic, reason = "a broken promise must end the run")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::Bytes;
use hyper::Uri;
use hyper::header::HeaderMap;

use super::address::judge;
use super::post::request;
use super::url::{Host, Target, check_url};

/// The URL of a receiver; its first bytes as an address, too.
///
/// # Panics
/// Where a URL is taken that cannot be sent, that another reader reads otherwise, or that leads to an address that is not
/// told.
pub fn receiver(input: &[u8]) {
    addresses(input);
    let Ok(text) = str::from_utf8(input) else { return };
    let Ok(webhook) = check_url(text) else { return };
    assert_eq!(webhook.url, text);
    let Ok(target) = Target::parse(text) else { panic!("taken, and then refused") };
    assert_eq!(target.receiver(), webhook.receiver);
    let receiver = Target::parse(&webhook.receiver);
    assert!(receiver.is_ok_and(|again| again.host == target.host && again.port == target.port));
    assert!(target.port != 0);
    let sent = match request(&target, HeaderMap::new(), Bytes::new()) {
        Ok(sent) => sent,
        Err(fault) => panic!("taken, and cannot be sent: {fault}"),
    };
    let path = sent.uri().path_and_query().map(|path| path.as_str());
    assert_eq!(path, Some(target.path_and_query.as_str()));
    let host = match &target.host {
        Host::Address(address) => {
            assert!(judge(*address).is_ok());
            address.to_string()
        }
        Host::Name(name) => {
            // Whatever a resolver would take for an address is none of the names.
            assert!(name.trim_end_matches('.').parse::<IpAddr>().is_err());
            name.clone()
        }
    };
    if let Ok(uri) = text.parse::<Uri>() {
        let other = uri.host().map(|host| host.trim_matches(['[', ']']).to_ascii_lowercase());
        let is_same = match (other.as_deref().map(str::parse::<IpAddr>), &target.host) {
            (Some(Ok(other)), Host::Address(address)) => other == *address,
            (Some(Err(_)), _) => {
                other.is_some_and(|other| other == host || other.strip_suffix('.') == Some(&host))
            }
            (Some(Ok(_)) | None, _) => false,
        };
        assert!(is_same, "{uri:?} leads elsewhere than {target:?}");
        let own = if target.is_tls { 443 } else { 80 };
        assert_eq!(uri.port_u16().unwrap_or(own), target.port);
    }
}

/// An IPv4 address that is not told is not told inside an IPv6 address either.
fn addresses(input: &[u8]) {
    if let Some(octets) = input.first_chunk::<16>() {
        let address = Ipv6Addr::from(*octets);
        if let Some(mapped) = address.to_ipv4_mapped() {
            assert_eq!(judge(address.into()).is_ok(), judge(mapped.into()).is_ok());
        }
    }
    let Some(octets) = input.first_chunk::<4>() else { return };
    let address = Ipv4Addr::from(*octets);
    if judge(address.into()).is_ok() {
        return;
    }
    let [a, b, c, d] = *octets;
    let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    for written in [
        address.to_ipv6_mapped(),
        Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
        Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, high, low),
        Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
        Ipv6Addr::new(0x2001, 0, 1, 1, 0, 0, !high, !low),
    ] {
        assert!(judge(written.into()).is_err(), "{written} is {address}");
    }
}
