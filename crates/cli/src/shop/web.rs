//! The front of the shop: asks catalog and reviews for every product, and stock over one long session.

use std::sync::Arc;

use anyhow::Context;
use hyper::StatusCode;

use super::http::{Pool, forwarded, json, listen};
use super::{Reply, ShopArgs, stock};

/// Serves `/product/{id}`.
pub(super) async fn serve(args: &ShopArgs) -> anyhow::Result<()> {
    let catalog = Pool::new(args.catalog.as_deref().context("--catalog")?, "catalog.shop");
    let reviews = Pool::new(args.reviews.as_deref().context("--reviews")?, "reviews.shop");
    let stock = Arc::new(stock::Session::new(args.stock.as_deref().context("--stock")?));
    let version: Arc<str> = args.version.as_str().into();
    listen(args.listen, move |request| {
        let (catalog, reviews, stock, version) =
            (catalog.clone(), reviews.clone(), stock.clone(), version.clone());
        async move {
            let headers = forwarded(request.headers());
            let id = request.uri().path().rsplit('/').next().unwrap_or("0").to_owned();
            let item = format!("/item/{id}");
            let (a, b, left) = tokio::join!(
                catalog.get(&item, headers.clone()),
                reviews.get(&item, headers),
                stock.left(&id)
            );
            let mut reply = Reply { in_stock: left, ..Reply::default() };
            reply.versions.insert("web".into(), version.to_string());
            let mut status = StatusCode::OK;
            for (name, answer) in [("catalog", a), ("reviews", b)] {
                let (code, body) = answer.unwrap_or((StatusCode::BAD_GATEWAY, bytes::Bytes::new()));
                if let Ok(theirs) = serde_json::from_slice::<Reply>(&body) {
                    reply.versions.extend(theirs.versions);
                }
                if !code.is_success() {
                    reply.failed.insert(name.into(), code.as_u16());
                    status = code;
                }
            }
            json(status, &reply)
        }
    })
    .await
}
