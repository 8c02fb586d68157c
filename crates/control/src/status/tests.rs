use super::*;

fn board() -> Board {
    Board::new(Audience::new(0))
}

fn client(name: &str, kind: ClientKind) -> Client {
    let scope = Scope {
        kind,
        namespace: "shop".into(),
        service_account: "web".into(),
        instance: None,
        bind: None,
        secure: false,
        regex_limit: crate::compile::scope::REGEX_LIMIT,
    };
    let (version, asked) = ("1".into(), Arc::default());
    let seat = Arc::new(Audience::new(0).join(None));
    Client { node: name.into(), instance: None, identity: None, kind, version, scope, asked, seat }
}

#[tokio::test(start_paused = true)]
async fn waiting_ends_when_the_last_barrier_is_acknowledged() {
    let board = Arc::new(board());
    board.connected(1, client("a", ClientKind::Outrigger));
    board.connected(2, client("b", ClientKind::Outrigger));
    board.barrier(1, 7);
    let state = board.in_force(7);
    assert_eq!((state.complete, state.proxies, state.of), (false, 1, 2));
    assert_eq!(state.waiting, ["b"]);
    let waiting = tokio::spawn({
        let board = board.clone();
        async move { board.wait(7, &[], Duration::from_secs(60)).await }
    });
    tokio::task::yield_now().await;
    board.barrier(2, 6);
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished(), "an older barrier is not enough");
    board.barrier(2, 8);
    assert!(waiting.await.unwrap().complete);
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_silent_proxy_times_out_and_names_it() {
    let board = board();
    board.connected(1, client("a", ClientKind::Outrigger));
    let state = board.wait(1, &[], Duration::from_secs(5)).await;
    assert!(!state.complete);
    assert_eq!(state.waiting, ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_proxy_that_leaves_is_not_waited_for() {
    let board = board();
    board.connected(1, client("a", ClientKind::Outrigger));
    let (state, ()) =
        tokio::join!(board.wait(1, &[], Duration::from_secs(60)), async { board.disconnected(1) });
    assert!(state.complete);
}

#[test]
fn a_foreign_client_has_a_generation_when_everything_sent_is_acknowledged() {
    let board = board();
    board.connected(1, client("envoy", ClientKind::Envoy));
    board.sent(1, ResourceKind::Cluster, 3, 1);
    board.sent(1, ResourceKind::Listener, 3, 1);
    assert!(!board.in_force(3).complete);
    board.acked(1, ResourceKind::Cluster, |_| true);
    assert!(!board.in_force(3).complete);
    let types = &board.proxies(3)[0].types;
    assert_eq!((types["Cluster"].state.as_str(), types["Listener"].state.as_str()), ("SYNCED", "STALE"));
    board.acked(1, ResourceKind::Listener, |_| true);
    board.settled(1, 3);
    assert!(board.in_force(3).complete);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_ends_the_wait_and_is_told_with_reason_and_rule() {
    let board = board();
    board.connected(1, client("a", ClientKind::Outrigger));
    board.sent(1, ResourceKind::Routes, 5, 1);
    let nack = Nack {
        name: "outbound|80||web".into(),
        version: "x".into(),
        field: "virtual_hosts[0]".into(),
        reason: "bad regex".into(),
        rules: vec!["VirtualService shop/web".into()],
    };
    board.nacked(1, ResourceKind::Routes, nack);
    let state = board.wait(5, &[], Duration::from_secs(60)).await;
    assert!(!state.complete);
    assert!(
        state.refused[0].contains("bad regex") && state.refused[0].contains("virtual_hosts[0]"),
        "{state:?}"
    );
    assert_eq!(board.refused_rule("VirtualService shop/web").len(), 1);
    assert!(board.refused_rule("VirtualService shop/other").is_empty());
    board.acked(1, ResourceKind::Routes, |refusal| refusal.version != "x");
    assert_eq!(
        board.refused_rule("VirtualService shop/web").len(),
        1,
        "other resources of the kind were taken"
    );
    board.acked(1, ResourceKind::Routes, |refusal| refusal.name == "outbound|80||web");
    assert!(
        board.refused_rule("VirtualService shop/web").is_empty(),
        "a good version takes the refusal back"
    );
}

#[test]
fn an_acknowledged_barrier_counts_like_everything_else() {
    let board = board();
    board.connected(1, client("a", ClientKind::Outrigger));
    for generation in 1..=3 {
        board.sent(1, ResourceKind::Barrier, generation, 1);
    }
    let barrier = |board: &Board| board.proxies(3)[0].types["Barrier"].clone();
    assert_eq!((barrier(&board).acked, barrier(&board).sent, &*barrier(&board).state), (0, 3, "STALE"));
    for generation in 1..=3 {
        board.barrier(1, generation);
    }
    assert_eq!((barrier(&board).acked, barrier(&board).sent, &*barrier(&board).state), (3, 3, "SYNCED"));
}

#[test]
fn what_a_client_says_of_a_resource_is_cut() {
    let board = board();
    board.connected(1, client("a", ClientKind::Envoy));
    let long = "ä".repeat(1 << 20);
    let nack = Nack {
        name: long.clone(),
        version: long.clone(),
        field: long.clone(),
        reason: long,
        rules: Vec::new(),
    };
    board.nacked(1, ResourceKind::Cluster, nack);
    let refusal = board.proxies(1)[0].refused[0].clone();
    assert_eq!((refusal.name.len(), refusal.version.len(), refusal.field.len()), (512, 512, 512));
    assert_eq!(refusal.reason.len(), 2048);
}

#[test]
fn when_a_client_left_is_remembered_for_so_many() {
    let board = board();
    for n in 0..MOST_SEEN + 10 {
        board.connected(1, Client { instance: Some(n.to_string()), ..client("a", ClientKind::Outrigger) });
        board.disconnected(1);
    }
    assert!(board.left("0").is_none() && board.left(&(MOST_SEEN + 9).to_string()).is_some());
    assert_eq!(board.left.lock().len(), MOST_SEEN);
}
