use std::net::SocketAddr;

use axum::Router;
use axum::extract::{FromRequest, Request, State};
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tonic::server::{Grpc, UnaryService};
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use super::*;

/// What a question is answered with, by its kind.
type Answers = Box<dyn FnMut(&str, &Value) -> Value + Send>;

/// What a Nacos of the test does.
pub(in super::super) struct Scene {
    /// Where there is a login.
    way: &'static str,
    /// What a login is answered with instead of a token.
    refusal: Option<StatusCode>,
    logins: usize,
    /// The token of the last question.
    token: String,
    pub(in super::super) answers: Answers,
}

/// A Nacos of the test: logins by HTTP and questions by gRPC, both at one port.
pub(in super::super) struct Fake {
    at: SocketAddr,
    pub(in super::super) scene: Arc<Mutex<Scene>>,
}

struct Asked(Arc<Mutex<Scene>>);

impl UnaryService<Payload> for Asked {
    type Response = Payload;
    type Future = std::future::Ready<Result<tonic::Response<Payload>, tonic::Status>>;

    fn call(&mut self, request: tonic::Request<Payload>) -> Self::Future {
        let payload = request.into_inner();
        let metadata = payload.metadata.clone().unwrap_or_default();
        let mut scene = self.0.lock();
        scene.token = metadata.headers.get("accessToken").cloned().unwrap_or_default();
        let mut answer = (scene.answers)(&metadata.r#type, &read(&payload).unwrap());
        answer.as_object_mut().unwrap().entry("resultCode").or_insert_with(|| 200.into());
        let body = Body { type_url: String::new(), value: answer.to_string().into_bytes() };
        std::future::ready(Ok(tonic::Response::new(Payload { metadata: None, body: Some(body) })))
    }
}

async fn serve(State(scene): State<Arc<Mutex<Scene>>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    match path.as_str() {
        "/Request/request" => {
            let mut grpc = Grpc::new(tonic_prost::ProstCodec::<Payload, Payload>::default());
            return grpc.unary(Asked(scene), request).await.into_response();
        }
        "/BiRequestStream/requestBiStream" => return std::future::pending().await,
        _ => {}
    }
    let body = String::from_request(request, &()).await.unwrap();
    let mut scene = scene.lock();
    match (path == scene.way, scene.refusal, body.as_str()) {
        (false, ..) => StatusCode::NOT_FOUND.into_response(),
        (true, None, "username=me&password=p%26w") => {
            scene.logins += 1;
            json!({ "accessToken": format!("t{}", scene.logins), "tokenTtl": 100 })
                .to_string()
                .into_response()
        }
        (true, None, _) => (StatusCode::FORBIDDEN, "unknown user!").into_response(),
        (true, Some(refusal), _) => refusal.into_response(),
    }
}

impl Fake {
    /// Its login is there.
    pub(in super::super) async fn start(way: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let answers: Answers = Box::new(|_, _| json!({}));
        let scene = Scene { way, refusal: None, logins: 0, token: String::new(), answers };
        let scene = Arc::new(Mutex::new(scene));
        let router = Router::new().fallback(serve).with_state(scene.clone());
        let server = Server::builder().accept_http1(true).add_routes(Routes::from(router));
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        Self { at, scene }
    }

    /// Settings with it as the last of the servers.
    fn settings(&self, before: &[SocketAddr]) -> Arc<NacosSettings> {
        let urls = before.iter().chain([&self.at]).map(|at| format!("http://me:p%26w@{at}/nacos/")).collect();
        Arc::new(NacosSettings { urls, grpc_port: Some(self.at.port()), ..NacosSettings::default() })
    }

    pub(in super::super) async fn connect(&self) -> Connection {
        Connection::open(&self.settings(&[]), 0).await.unwrap()
    }
}

#[tokio::test]
async fn a_token_is_had_in_the_way_of_either_version_and_a_refusal_is_told() {
    for way in ["/nacos/v1/auth/login", "/nacos/v3/auth/user/login"] {
        let settings = Fake::start(way).await.settings(&[]);
        let (_, mut http, user) = opened(&settings, 0).await.unwrap();
        let good = login(&mut http, &user.unwrap()).await.unwrap();
        assert_eq!((&*good.token, good.lasts), ("t1", Duration::from_secs(100)));
        let why = login(&mut http, &("me".into(), "secret".into())).await.err().unwrap();
        assert!(
            why.contains("unknown user") && why.contains("passwordFile") && !why.contains("secret"),
            "{why}"
        );
    }
    let (_, mut http, user) = opened(&Fake::start("/other").await.settings(&[]), 0).await.unwrap();
    assert!(login(&mut http, &user.unwrap()).await.err().unwrap().contains("404"));
}

#[tokio::test]
async fn a_token_is_renewed_where_the_connection_is_and_a_failure_ends_nothing() {
    let fake = Fake::start("/nacos/v1/auth/login").await;
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let settings = fake.settings(&[dead]);
    let mut connection = Connection::open(&settings, 0).await.unwrap();
    assert_eq!(connection.server, 1);
    connection.renew(&settings).await;
    assert_eq!(fake.scene.lock().logins, 1, "it is not due");
    let late = |connection: &mut Connection| connection.token.as_mut().unwrap().due = Instant::now();
    late(&mut connection);
    connection.renew(&settings).await;
    assert_eq!((fake.scene.lock().logins, connection.trouble()), (2, None));
    // It fails there, then at the other server; what is asked meanwhile is asked with the token of before.
    fake.scene.lock().refusal = Some(StatusCode::INTERNAL_SERVER_ERROR);
    for word in ["500", "cannot be reached", "500"] {
        late(&mut connection);
        connection.renew(&settings).await;
        assert!(connection.trouble().unwrap().contains(word), "{:?}", connection.trouble());
        connection.ask("HealthCheckRequest", json!({})).await.unwrap();
        assert_eq!(fake.scene.lock().token, "t2");
        let wait = connection.token.as_ref().unwrap().due.saturating_duration_since(Instant::now());
        assert!(!wait.is_zero() && wait <= Duration::from_secs(5), "{wait:?}");
    }
    fake.scene.lock().refusal = None;
    for _ in 0..2 {
        late(&mut connection);
        connection.renew(&settings).await;
    }
    connection.ask("HealthCheckRequest", json!({})).await.unwrap();
    assert_eq!((&*fake.scene.lock().token, connection.trouble()), ("t3", None));
}
