//! The runner of the conformance scenario (clients/conformance/README.md).

use std::collections::VecDeque;
use std::io::{self, BufRead};
use std::time::Duration;

use serde_json::{Value, json};
use storeapi::proto::change::Resource;
use storeapi::proto::transfer_service_client::TransferServiceClient;
use storeapi::proto::watch_request::Start;
use storeapi::proto::{
    Action, Change, Comment, ConflictPolicy, ExportRequest, ImportRecordsRequest, Post, Record, RecordState, ResourceKind,
    WatchRequest, record,
};
use storeapi::{Client, Error, Watch};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

/// The commands for one type of resource. Only comments have a `post_id`.
macro_rules! collection {
    (
        $module:ident, $resource:ident $plural:ident $(($post_id:ident))?, $message:ident, $client:ident, $service:ident,
        $create:ident $create_request:ident, $get:ident $get_request:ident, $update:ident $update_request:ident,
        $delete:ident $delete_request:ident, $list:ident $list_request:ident, $batch_get:ident $batch_get_request:ident
    ) => {
        mod $module {
            use serde_json::{Value, json};
            use storeapi::proto::$service::$client as Stub;
            use storeapi::proto::{
                $batch_get_request, $create_request, $delete_request, $get_request, $list_request, $message, $update_request,
            };
            use storeapi::{Client, Error};

            use crate::{ids, number, text};

            pub async fn run(client: &Client, command: &Value) -> Result<Value, Error> {
                let (id, request_id) = (number(command, "id"), text(command, "request_id"));
                let resource = $message {
                    id,
                    body: text(command, "body"),
                    etag: text(command, "etag"),
                    $($post_id: number(command, "post_id"),)?
                    ..Default::default()
                };
                let resource = match text(command, "do").as_str() {
                    "create" => {
                        let request = $create_request { $resource: Some(resource), request_id, ..Default::default() };
                        client.write(request, async |channel, it| Stub::new(channel).$create(it).await).await?
                    }
                    "get" => {
                        let request = $get_request { id, ..Default::default() };
                        client.read(request, async |channel, it| Stub::new(channel).$get(it).await).await?
                    }
                    "update" => {
                        let request = $update_request { $resource: Some(resource), ..Default::default() };
                        client.write(request, async |channel, it| Stub::new(channel).$update(it).await).await?
                    }
                    "delete" => {
                        let allow_missing = command["allow_missing"] == true;
                        let request = $delete_request { id, request_id, allow_missing, ..Default::default() };
                        client.write(request, async |channel, it| Stub::new(channel).$delete(it).await).await?
                    }
                    "list" => return list(client, command).await,
                    "batch_get" => {
                        let request = $batch_get_request { ids: ids(command, "ids"), ..Default::default() };
                        let found = client.read(request, async |channel, it| Stub::new(channel).$batch_get(it).await).await?;
                        return Ok(json!({"items": found.$plural.iter().map(shown).collect::<Vec<_>>()}));
                    }
                    other => panic!("unknown command: {other}"),
                };
                Ok(shown(&resource))
            }

            async fn list(client: &Client, command: &Value) -> Result<Value, Error> {
                let mut request = $list_request {
                    page_size: number(command, "page_size") as i32,
                    $($post_id: number(command, "post_id"),)?
                    ..Default::default()
                };
                let mut items = Vec::new();
                loop {
                    let page = client.read(request.clone(), async |channel, it| Stub::new(channel).$list(it).await).await?;
                    items.extend(page.$plural.iter().map(shown));
                    if page.next_page_token.is_empty() {
                        return Ok(json!({"items": items}));
                    }
                    request.page_token = page.next_page_token;
                }
            }

            pub fn shown(it: &$message) -> Value {
                json!({"id": it.id, "body": it.body, "etag": it.etag $(, "post_id": it.$post_id)?})
            }
        }
    };
}

collection! {
    posts, post posts, Post, PostServiceClient, post_service_client, create_post CreatePostRequest, get_post GetPostRequest,
    update_post UpdatePostRequest, delete_post DeletePostRequest, list_posts ListPostsRequest,
    batch_get_posts BatchGetPostsRequest
}
collection! {
    comments, comment comments (post_id), Comment, CommentServiceClient, comment_service_client,
    create_comment CreateCommentRequest, get_comment GetCommentRequest, update_comment UpdateCommentRequest,
    delete_comment DeleteCommentRequest, list_comments ListCommentsRequest, batch_get_comments BatchGetCommentsRequest
}

#[derive(Default)]
struct Runner {
    client: Option<Client>,
    watch: Option<Watch>,
    received: VecDeque<Change>,
}

impl Runner {
    async fn run(&mut self, command: &Value) -> Result<Value, Error> {
        match text(command, "do").as_str() {
            "connect" => {
                let timeout = Duration::from_secs_f64(command["timeout"].as_f64().expect("a number of seconds"));
                let target = text(command, "target");
                let endpoint = |scheme| Endpoint::from_shared(format!("{scheme}://{target}")).expect("a URL");
                self.client = Some(match command["ca"].as_str() {
                    None => Client::new(endpoint("http"), timeout),
                    Some(path) => {
                        let authority = Certificate::from_pem(std::fs::read(path).expect("a file"));
                        let tls = ClientTlsConfig::new().ca_certificate(authority);
                        let mut client = Client::new(endpoint("https").tls_config(tls).expect("a certificate"), timeout);
                        let key = format!("Bearer {}", text(command, "key"));
                        client.metadata.insert("authorization", key.parse().expect("a key"));
                        client
                    }
                });
            }
            "watch" => {
                let start = match text(command, "start").as_str() {
                    "earliest" => Start::Earliest(true),
                    "initial_state" => Start::InitialState(true),
                    other => panic!("unknown start: {other}"),
                };
                let post_ids = ids(command, "post_ids");
                let mut client = self.client().clone();
                if let Some(seconds) = command["timeout"].as_f64() {
                    client.timeout = Duration::from_secs_f64(seconds);
                }
                self.watch = Some(client.watch(WatchRequest { start: Some(start), post_ids, ..Default::default() }));
            }
            "next" => return self.next(number(command, "count") as usize).await,
            "close" => {
                self.watch = None;
                self.received.clear();
            }
            "export" => return self.export().await,
            "import" => return self.import(command).await,
            _ if command["resource"] == "posts" => return posts::run(self.client(), command).await,
            _ => return comments::run(self.client(), command).await,
        }
        Ok(json!({}))
    }

    fn client(&self) -> &Client {
        self.client.as_ref().expect("the first command is connect")
    }

    async fn export(&self) -> Result<Value, Error> {
        let mut export = self.client().export(ExportRequest::default());
        let (mut posts, mut comments) = (Vec::new(), Vec::new());
        loop {
            let response = export.next().await?;
            for record in response.records.iter().filter(|it| it.state() == RecordState::Unspecified) {
                match &record.resource {
                    Some(record::Resource::Post(post)) => posts.push(posts::shown(post)),
                    Some(record::Resource::Comment(comment)) => comments.push(comments::shown(comment)),
                    None => panic!("a record without a resource"),
                }
            }
            if !response.resume_token.is_empty() {
                return Ok(json!({"posts": posts, "comments": comments}));
            }
        }
    }

    async fn import(&self, command: &Value) -> Result<Value, Error> {
        let records = command["records"].as_array().into_iter().flatten().map(|it| {
            let (id, body, post_id) = (number(it, "id"), text(it, "body"), number(it, "post_id"));
            let resource = match post_id {
                0 => record::Resource::Post(Post { id, body, ..Default::default() }),
                _ => record::Resource::Comment(Comment { id, body, post_id, ..Default::default() }),
            };
            Record { resource: Some(resource), ..Default::default() }
        });
        let request =
            ImportRecordsRequest { records: records.collect(), on_conflict: ConflictPolicy::Fail.into(), ..Default::default() };
        let import = async |channel, it| TransferServiceClient::new(channel).import_records(it).await;
        let result = self.client().read(request, import).await?.result.unwrap_or_default();
        Ok(json!({"stored": result.created + result.unchanged, "failed": result.failed}))
    }

    async fn next(&mut self, count: usize) -> Result<Value, Error> {
        let watch = self.watch.as_mut().expect("a watch has started");
        let mut changes = Vec::new();
        while changes.len() < count {
            match self.received.pop_front() {
                Some(change) => changes.push(shown(&change)),
                None => self.received.extend(watch.next().await?.changes),
            }
        }
        Ok(json!({"changes": changes}))
    }
}

fn text(command: &Value, name: &str) -> String {
    command[name].as_str().unwrap_or_default().to_owned()
}

fn number(command: &Value, name: &str) -> i64 {
    command[name].as_i64().unwrap_or_default()
}

fn ids(command: &Value, name: &str) -> Vec<i64> {
    command[name].as_array().into_iter().flatten().filter_map(Value::as_i64).collect()
}

fn shown(change: &Change) -> Value {
    let lower = |name: &str, prefix| name.strip_prefix(prefix).expect("a name of the enum").to_lowercase();
    let (action, kind) = (Action::as_str_name(&change.action()), ResourceKind::as_str_name(&change.kind()));
    let mut shown = json!({"action": lower(action, "ACTION_"), "kind": lower(kind, "RESOURCE_KIND_"), "id": change.id});
    match &change.resource {
        Some(Resource::Post(post)) => shown["body"] = json!(post.body),
        Some(Resource::Comment(comment)) => shown["body"] = json!(comment.body),
        None => {}
    }
    shown
}

fn shown_error(error: &Error) -> Value {
    // NotFound becomes NOT_FOUND.
    let camel_case = format!("{:?}", error.status.code());
    let mut code = String::new();
    for letter in camel_case.chars() {
        if letter.is_uppercase() && !code.is_empty() {
            code.push('_');
        }
        code.extend(letter.to_uppercase());
    }
    json!({
        "code": code,
        "reason": error.info.reason,
        "metadata": error.info.metadata,
        "fields": error.violations.iter().map(|it| &it.field).collect::<Vec<_>>(),
        "retry_after": error.retry_after.map(|it| it.as_secs_f64()),
    })
}

#[tokio::main(worker_threads = 1)]
async fn main() -> io::Result<()> {
    let mut runner = Runner::default();
    for line in io::stdin().lock().lines() {
        let command = serde_json::from_str(&line?).expect("a command");
        let response = runner.run(&command).await.unwrap_or_else(|error| json!({"error": shown_error(&error)}));
        println!("{response}");
    }
    Ok(())
}
