//! Which addresses are told: everything but link-local ones, metadata services, and what is no single host. Loopback and
//! private networks are allowed, because that is where a home lab's receivers are. A name is resolved once a try, and what is
//! connected to is what was judged.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Addresses tried of a name that has many.
const CANDIDATES_MAX: usize = 4;

/// Where clouds keep credentials, outside the link-local networks: Alibaba's, Azure's and Oracle's older one.
const METADATA_V4: [Ipv4Addr; 3] = [
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(192, 0, 0, 192),
];

/// The same in IPv6: Amazon's, Google's and Scaleway's.
const METADATA_V6: [Ipv6Addr; 3] = [
    Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254),
    Ipv6Addr::new(0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x0254),
    Ipv6Addr::new(0xfd00, 0x0042, 0, 0, 0, 0, 0, 0x0042),
];

/// Whether an address may be connected to.
///
/// # Errors
/// What it is, where it may not.
pub(super) fn judge(address: IpAddr) -> Result<(), &'static str> {
    match address {
        IpAddr::V4(address) => judge_v4(address),
        IpAddr::V6(address) => judge_v6(address),
    }
}

fn judge_v4(address: Ipv4Addr) -> Result<(), &'static str> {
    if METADATA_V4.contains(&address) || address == Ipv4Addr::new(169, 254, 169, 254) {
        Err("a metadata service")
    } else if address.is_link_local() {
        Err("link-local")
    } else if address.octets()[0] == 0 {
        Err("unspecified")
    } else if address.is_multicast() {
        Err("multicast")
    } else if address.is_broadcast() {
        Err("broadcast")
    } else {
        Ok(())
    }
}

fn judge_v6(address: Ipv6Addr) -> Result<(), &'static str> {
    if METADATA_V6.contains(&address) {
        Err("a metadata service")
    } else if address.is_unspecified() {
        Err("unspecified")
    } else if address.is_multicast() {
        Err("multicast")
    } else if address.is_unicast_link_local() {
        Err("link-local")
    } else if address.is_loopback() {
        Ok(())
    } else {
        embedded(address).into_iter().flatten().try_for_each(judge_v4)
    }
}

/// The IPv4 addresses that one may stand for, by the ways there are to write one inside another.
fn embedded(address: Ipv6Addr) -> [Option<Ipv4Addr>; 2] {
    let [a, b, c, d, e, f, g, h] = address.segments();
    let of = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    let last = Some(of(g, h));
    match [a, b, c, d, e, f] {
        // Compatible, mapped, translated.
        [0, 0, 0, 0, 0, 0 | 0xffff] | [0, 0, 0, 0, 0xffff, 0] => [last, None],
        // NAT64, by its well-known prefix (RFC 6052) and its local ones (RFC 8215), which may end at 48 or at 96 bits.
        [0x64, 0xff9b, 0, 0, 0, 0] => [last, None],
        [0x64, 0xff9b, 1, _, _, _] => {
            let [_, _, _, high, _, _, _, _] = address.segments();
            let octets = address.octets();
            [last, Some(of(high, u16::from_be_bytes([octets[9], octets[10]])))]
        }
        // 6to4; Teredo, which hides the client's by inverting it.
        [0x2002, high, low, ..] => [Some(of(high, low)), None],
        [0x2001, 0, high, low, ..] => [Some(of(high, low)), Some(of(!g, !h))],
        _ => [None, None],
    }
}

/// The addresses of a host that may be connected to. `looked_up` are what a resolver said of it. An address that may not is
/// left out, because a name on a local network often has a link-local one beside the others.
///
/// # Errors
/// Why there is none.
pub(super) fn choose(looked_up: io::Result<Vec<SocketAddr>>) -> Result<Vec<SocketAddr>, String> {
    let found = looked_up.map_err(|fault| format!("its name could not be resolved: {fault}"))?;
    let mut refused = None;
    let mut chosen = Vec::new();
    for candidate in found {
        match judge(candidate.ip()) {
            Ok(()) => chosen.push(candidate),
            Err(kind) => refused = Some(format!("its address is {kind}, which is not told")),
        }
    }
    chosen.truncate(CANDIDATES_MAX);
    match (chosen.is_empty(), refused) {
        (false, _) => Ok(chosen),
        (true, Some(refused)) => Err(refused),
        (true, None) => Err("its name has no address".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_told(address: &str) -> bool {
        judge(address.parse().unwrap()).is_ok()
    }

    #[test]
    fn loopback_private_and_public_addresses_are_told() {
        for address in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "8.8.8.8",
            "::1",
            "fd12:3456::1",
            "2001:db8::1",
            "::ffff:127.0.0.1",
            "::ffff:192.168.1.1",
            "64:ff9b::8.8.8.8",
            "2606:4700::1111",
        ] {
            assert!(is_told(address), "{address}");
        }
    }

    #[test]
    fn what_is_link_local_metadata_or_no_host_is_not_told_however_it_is_written() {
        for address in [
            "169.254.169.254",
            "169.254.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "239.255.255.255",
            "255.255.255.255",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "::",
            "ff02::1",
            "fe80::1",
            "febf::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            "fd00:42::42",
            "::ffff:169.254.169.254",
            "::169.254.169.254",
            "::ffff:0:169.254.169.254",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::169.254.169.254",
            "64:ff9b:1:a9fe:a9:fe00::",
            "2002:a9fe:a9fe::1",
            "2001:0:0:0:0:0:5601:5601",
            "2001:0:a9fe:a9fe::",
            "::ffff:0.0.0.0",
            "::ffff:255.255.255.255",
        ] {
            assert!(!is_told(address), "{address}");
        }
    }

    /// By a fake resolver: a name is no way around the rule.
    #[test]
    fn a_name_is_judged_by_its_addresses() {
        let of = |addresses: &[&str]| {
            let found = addresses.iter().map(|text| SocketAddr::new(text.parse().unwrap(), 80));
            choose(Ok(found.collect()))
        };
        assert!(of(&["169.254.169.254"]).unwrap_err().contains("a metadata service"));
        assert!(of(&["fe80::1", "169.254.1.1"]).unwrap_err().contains("link-local"));
        assert!(of(&[]).unwrap_err().contains("no address"));
        let chosen = of(&["fe80::1", "192.168.1.1", "::ffff:169.254.169.254"]).unwrap();
        assert_eq!(chosen, ["192.168.1.1:80".parse().unwrap()]);
        assert_eq!(of(&["10.0.0.1"; 9]).unwrap().len(), CANDIDATES_MAX);
        let fault = choose(Err(io::Error::other("no such name")));
        assert_eq!(fault.unwrap_err(), "its name could not be resolved: no such name");
    }
}
