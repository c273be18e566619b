package storeapi.client;

import io.grpc.ManagedChannelBuilder;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import storeapi.v1.Action;
import storeapi.v1.Change;
import storeapi.v1.CreatePostRequest;
import storeapi.v1.ErrorReason;
import storeapi.v1.GetPostRequest;
import storeapi.v1.ListPostsRequest;
import storeapi.v1.ListPostsResponse;
import storeapi.v1.Post;
import storeapi.v1.PostServiceGrpc;
import storeapi.v1.UpdatePostRequest;
import storeapi.v1.WatchRequest;
import storeapi.v1.WatchResponse;

/** The first calls of a new user. */
public final class Example {
  /** Runs the example with the service at HOST:PORT, the first argument. */
  public static void main(String[] arguments) throws InterruptedException {
    ManagedChannelBuilder<?> builder = ManagedChannelBuilder.forTarget(arguments[0]).usePlaintext();
    try (StoreClient client = new StoreClient(builder, Duration.ofSeconds(10))) {
      Post draft = Post.newBuilder().setBody("Hello from Java").build();
      Post post =
          client.call(
              PostServiceGrpc.getCreatePostMethod(), CreatePostRequest.newBuilder().setPost(draft).build());
      System.out.println("created: " + post.getBody());

      List<Post> posts = new ArrayList<>();
      ListPostsResponse page;
      String token = "";
      do {
        page =
            client.call(
                PostServiceGrpc.getListPostsMethod(), ListPostsRequest.newBuilder().setPageToken(token).build());
        posts.addAll(page.getPostsList());
        token = page.getNextPageToken();
      } while (!token.isEmpty());
      System.out.println("listed: " + posts.contains(post));

      try {
        client.call(PostServiceGrpc.getGetPostMethod(), GetPostRequest.newBuilder().setId(Long.MAX_VALUE).build());
      } catch (StoreException error) {
        System.out.println("missing: " + (error.reason() == ErrorReason.ERROR_REASON_POST_NOT_FOUND));
      }

      WatchRequest fromNow = WatchRequest.newBuilder().addPostIds(post.getId()).build();
      try (ResumedStream<WatchRequest, WatchResponse> watch = client.watch(fromNow)) {
        watch.next(); // The first response has only a token. From here on, no change is missed.
        Post changed = post.toBuilder().setBody("Hello again").build();
        client.call(
            PostServiceGrpc.getUpdatePostMethod(), UpdatePostRequest.newBuilder().setPost(changed).build());
        System.out.println("watched: " + nextUpdate(watch).getPost().getBody());
      }
    }
  }

  private static Change nextUpdate(ResumedStream<WatchRequest, WatchResponse> watch) throws InterruptedException {
    while (true) {
      for (Change change : watch.next().getChangesList()) {
        if (change.getAction() == Action.ACTION_UPDATE) {
          return change;
        }
      }
    }
  }
}
