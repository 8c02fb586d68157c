//! Uploads that the application does not take.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::*;

const CLIENTS: usize = 400;
const LENGTH: usize = 1 << 20;

/// What HTTP/1 has read ahead of each (64 KiB), and what waits for the application (256 KiB), are 125 MiB for 400 of them, and there are
/// 35 more. Without windows they were 400.
#[tokio::test(flavor = "multi_thread")]
async fn uploads_that_nobody_takes_cost_their_windows() {
    let stage = Stage::with("1Gi").await;
    let what = "400 uploads of 1 MiB that nobody takes";
    let attack = Attack::begin(what, &[stage.catalog(160, 80)], stage.entry(), "/").await;
    let body: Arc<[u8]> = vec![b'x'; LENGTH].into();
    let mut crowd = JoinSet::new();
    for _ in 0..CLIENTS {
        let (to, body) = (stage.catalog.inbound, body.clone());
        crowd.spawn(async move {
            let mut stream = TcpStream::connect(to).await.unwrap();
            let head = format!("POST /held HTTP/1.1\r\nHost: catalog\r\nContent-Length: {LENGTH}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            // The kernel may take all of it, or not.
            let _ = stream.write_all(&body).await;
            let mut said = [0; 256];
            if let Ok(1..) = stream.read(&mut said).await {
                eprintln!("a held upload was answered: {}", String::from_utf8_lossy(&said));
            }
        });
    }
    stage.app.until(CLIENTS).await;
    attack.lasts(100).await;
    let after = attack.end().await;
    crowd.shutdown().await;
    after.calm().await;
}
