//! The first calls of a new user: `cargo run --example first -- http://localhost:50051`.

use std::time::Duration;

use storeapi::proto::change::Resource;
use storeapi::proto::post_service_client::PostServiceClient;
use storeapi::proto::{
    Action, CreatePostRequest, ErrorReason, GetPostRequest, ListPostsRequest, Post, UpdatePostRequest, WatchRequest,
};
use storeapi::{Client, Error, Watch};
use tonic::transport::Endpoint;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1).ok_or("usage: first URL")?;
    let client = Client::new(Endpoint::from_shared(url)?, Duration::from_secs(10));

    let draft = Post { body: "Hello from Rust".into(), ..Default::default() };
    let request = CreatePostRequest { post: Some(draft), ..Default::default() };
    let post = client.write(request, async |channel, it| PostServiceClient::new(channel).create_post(it).await).await?;
    println!("created: {}", post.body);

    let posts = all_posts(&client).await?;
    println!("listed: {}", posts.contains(&post));

    let request = GetPostRequest { id: i64::MAX, ..Default::default() };
    match client.read(request, async |channel, it| PostServiceClient::new(channel).get_post(it).await).await {
        Err(error) if error.reason() == ErrorReason::PostNotFound => println!("missing: true"),
        other => println!("missing: {other:?}"),
    }

    let mut watch = client.watch(WatchRequest { post_ids: vec![post.id], ..Default::default() });
    watch.next().await?; // The first response has only a token. From here on, no change is missed.
    let changed = Post { body: "Hello again".into(), ..post };
    let request = UpdatePostRequest { post: Some(changed), ..Default::default() };
    client.write(request, async |channel, it| PostServiceClient::new(channel).update_post(it).await).await?;
    println!("watched: {}", updated_body(&mut watch).await?);
    Ok(())
}

async fn all_posts(client: &Client) -> Result<Vec<Post>, Error> {
    let mut posts = Vec::new();
    let mut request = ListPostsRequest::default();
    loop {
        let call = client.read(request.clone(), async |channel, it| PostServiceClient::new(channel).list_posts(it).await);
        let page = call.await?;
        posts.extend(page.posts);
        if page.next_page_token.is_empty() {
            return Ok(posts);
        }
        request.page_token = page.next_page_token;
    }
}

async fn updated_body(watch: &mut Watch) -> Result<String, Error> {
    loop {
        for change in watch.next().await?.changes {
            if let (Action::Update, Some(Resource::Post(post))) = (change.action(), change.resource) {
                return Ok(post.body);
            }
        }
    }
}
