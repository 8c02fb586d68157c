use super::*;

fn chain(name: &str, matches: ChainMatch) -> FilterChain {
    let terminal = Terminal::Tcp(TcpProxy::new(Vec::new()));
    FilterChain { matches, ..FilterChain::new(name, terminal) }
}

fn listener(chains: Vec<FilterChain>) -> Listener {
    Listener { chains, ..Listener::new("l", Direction::Inbound) }
}

fn input<'a>(tls: bool, name: Option<&'a str>, protocols: &'a [&'a str]) -> ChainInput<'a> {
    ChainInput { destination_port: 80, tls, server_name: name, application_protocols: protocols }
}

#[test]
fn a_chain_for_mesh_alpn_goes_before_one_for_any_tls() {
    let l = listener(vec![
        chain("tls", ChainMatch { transport: TransportMatch::Tls, ..ChainMatch::default() }),
        chain(
            "mesh",
            ChainMatch {
                transport: TransportMatch::Tls,
                application_protocols: vec!["istio-http/1.1".into()],
                ..ChainMatch::default()
            },
        ),
        chain("plain", ChainMatch { transport: TransportMatch::Plain, ..ChainMatch::default() }),
    ]);
    let name = |i| l.select(&i).map(|c| c.name.as_str());
    assert_eq!(name(input(true, None, &["istio-http/1.1", "istio"])), Some("mesh"));
    assert_eq!(name(input(true, None, &["h2"])), Some("tls"));
    assert_eq!(name(input(false, None, &[])), Some("plain"));
}

#[test]
fn the_exact_server_name_beats_the_longer_suffix() {
    let named = |n: &str| ChainMatch { server_names: vec![n.into()], ..ChainMatch::default() };
    let l = listener(vec![
        chain("suffix", named("*.example.org")),
        chain("short", named("*.org")),
        chain("exact", named("a.example.org")),
    ]);
    let name = |n| l.select(&input(true, Some(n), &[])).map(|c| c.name.as_str());
    assert_eq!(name("A.example.org"), Some("exact"));
    assert_eq!(name("b.example.org"), Some("suffix"));
    assert_eq!(name("c.org"), Some("short"));
    assert_eq!(name("com"), None);
}

#[test]
fn a_connection_that_no_chain_matches_gets_the_default_chain() {
    let mut l =
        listener(vec![chain("p", ChainMatch { destination_port: Some(81), ..ChainMatch::default() })]);
    assert!(l.select(&input(false, None, &[])).is_none());
    l.default_chain = Some(chain("default", ChainMatch::default()));
    assert_eq!(l.select(&input(false, None, &[])).map(|c| c.name.as_str()), Some("default"));
}

#[test]
fn a_connection_on_which_nothing_comes_ends_at_the_first_of_its_times() {
    let seconds = Duration::from_secs;
    for (silence, age, quiet) in
        [(10, None, 10), (10, Some(3), 3), (3, Some(10), 3), (0, Some(10), 10), (0, None, 0)]
    {
        let tcp = TcpProxy {
            idle_timeout: seconds(silence),
            max_duration: age.map(seconds),
            ..TcpProxy::new(Vec::new())
        };
        assert_eq!(tcp.quiet(), seconds(quiet), "{silence} {age:?}");
    }
}
