//! A way by which connections go on to others: what a Service of Kubernetes does for its endpoints, and a network that can be cut.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// One that is open; it goes on for as long as its runtime does.
pub struct Way {
    cut: Arc<watch::Sender<bool>>,
}

impl Way {
    /// Takes connections and brings them to the first of these that takes them; whoever calls decides by its address with which it begins.
    ///
    /// # Panics
    /// When the address is taken.
    pub async fn open(listen: SocketAddr, to: Vec<SocketAddr>) -> Self {
        let listener = TcpListener::bind(listen).await.expect("the address is free");
        let cut = Arc::new(watch::channel(false).0);
        let (way, to) = (Self { cut: cut.clone() }, Arc::new(to));
        tokio::spawn(async move {
            while let Ok((stream, from)) = listener.accept().await {
                tokio::spawn(carry(stream, from.ip(), to.clone(), cut.subscribe()));
            }
        });
        way
    }

    /// From now on nothing comes through, and nobody is told.
    pub fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// New connections come through again; those that were cut have ended.
    pub fn mend(&self) {
        self.cut.send_replace(false);
    }
}

async fn carry(
    mut from: TcpStream,
    caller: IpAddr,
    to: Arc<Vec<SocketAddr>>,
    mut cut: watch::Receiver<bool>,
) {
    let first = match caller {
        IpAddr::V4(address) => usize::from(address.octets()[3]),
        IpAddr::V6(address) => usize::from(address.octets()[15]),
    };
    let carried = async {
        for step in 0..to.len() {
            let Ok(mut onward) = TcpStream::connect(to[(first + step) % to.len()]).await else { continue };
            let _ = tokio::io::copy_bidirectional(&mut from, &mut onward).await;
            return;
        }
    };
    let is_cut = async { cut.wait_for(|cut| *cut).await.is_ok() };
    let silent = tokio::select! {
        () = carried => false,
        silent = is_cut => silent,
    };
    if silent {
        // Held without a word.
        let _ = cut.wait_for(|cut| !*cut).await;
    }
    drop(from);
}
