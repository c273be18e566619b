package storeapi.client;

import com.google.gson.Gson;
import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import com.google.protobuf.util.JsonFormat;
import io.grpc.Context;
import io.grpc.ManagedChannelBuilder;
import io.grpc.MethodDescriptor;
import io.grpc.MethodDescriptor.PrototypeMarshaller;
import io.grpc.ServiceDescriptor;
import java.io.File;
import java.io.IOException;
import java.time.Duration;
import java.util.ArrayDeque;
import java.util.List;
import java.util.Queue;
import java.util.Scanner;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import storeapi.v1.Change;
import storeapi.v1.CommentServiceGrpc;
import storeapi.v1.ExportRequest;
import storeapi.v1.ExportResponse;
import storeapi.v1.ImportRecordsRequest;
import storeapi.v1.ImportResult;
import storeapi.v1.PostServiceGrpc;
import storeapi.v1.Record;
import storeapi.v1.RecordState;
import storeapi.v1.TransferServiceGrpc;
import storeapi.v1.WatchRequest;
import storeapi.v1.WatchResponse;

/** The runner of the conformance scenario (clients/conformance/README.md). */
public final class Conformance {
  private StoreClient client;
  private ResumedStream<WatchRequest, WatchResponse> watch;
  private Context context = Context.ROOT;
  private final ScheduledExecutorService timer = Executors.newSingleThreadScheduledExecutor();
  private final Queue<Change> received = new ArrayDeque<>();

  /** Executes one command for each line of stdin. */
  public static void main(String[] arguments) throws Exception {
    Conformance runner = new Conformance();
    Scanner commands = new Scanner(System.in, "UTF-8");
    while (commands.hasNextLine()) {
      System.out.println(runner.run(JsonParser.parseString(commands.nextLine()).getAsJsonObject()));
    }
    runner.connect(null);
    runner.timer.shutdownNow();
  }

  private JsonObject run(JsonObject command) throws Exception {
    try {
      return switch (command.get("do").getAsString()) {
        case "connect" -> connect(command);
        case "watch" -> watch(command);
        case "next" -> context.call(() -> next(command.get("count").getAsInt()));
        case "close" -> close();
        case "export" -> export();
        case "import" -> importRecords(command);
        default -> new Collection(client, command.get("resource").getAsString()).run(command);
      };
    } catch (StoreException error) {
      JsonObject response = new JsonObject();
      response.add("error", shown(error));
      return response;
    }
  }

  private JsonObject connect(JsonObject command) throws IOException {
    if (client != null) {
      client.close();
    }
    if (command != null) {
      Duration timeout = Duration.ofMillis((long) (1000 * command.get("timeout").getAsDouble()));
      String target = command.get("target").getAsString();
      client = new StoreClient(channel(target, command), timeout);
    }
    return new JsonObject();
  }

  private static ManagedChannelBuilder<?> channel(String target, JsonObject command) throws IOException {
    if (!command.has("ca")) {
      return ManagedChannelBuilder.forTarget(target).usePlaintext();
    }
    File authority = new File(command.get("ca").getAsString());
    return StoreClient.secureChannel(target, authority, command.get("key").getAsString());
  }

  private JsonObject watch(JsonObject command) {
    WatchRequest.Builder request = WatchRequest.newBuilder();
    switch (command.get("start").getAsString()) {
      case "earliest" -> request.setEarliest(true);
      case "initial_state" -> request.setInitialState(true);
      default -> throw new IllegalArgumentException("unknown start: " + command);
    }
    if (command.has("post_ids")) {
      command.getAsJsonArray("post_ids").forEach(it -> request.addPostIds(it.getAsLong()));
    }
    watch = client.watch(request.build());
    if (command.has("timeout")) {
      long millis = (long) (1000 * command.get("timeout").getAsDouble());
      context = Context.ROOT.withDeadlineAfter(millis, TimeUnit.MILLISECONDS, timer);
    } else {
      context = Context.ROOT;
    }
    return new JsonObject();
  }

  private JsonObject next(int count) throws InterruptedException {
    JsonArray changes = new JsonArray();
    while (changes.size() < count) {
      while (received.isEmpty()) {
        received.addAll(watch.next().getChangesList());
      }
      changes.add(shown(received.remove()));
    }
    return object("changes", changes);
  }

  private JsonObject close() {
    watch.close();
    received.clear();
    return new JsonObject();
  }

  private JsonObject export() throws InterruptedException {
    JsonArray posts = new JsonArray();
    JsonArray comments = new JsonArray();
    try (ResumedStream<ExportRequest, ExportResponse> export = client.export(ExportRequest.getDefaultInstance())) {
      ExportResponse response;
      do {
        response = export.next();
        for (Record record : response.getRecordsList()) {
          if (record.getState() != RecordState.RECORD_STATE_UNSPECIFIED) {
            continue;
          } else if (record.hasPost()) {
            posts.add(Collection.shown(record.getPost()));
          } else {
            comments.add(Collection.shown(record.getComment()));
          }
        }
      } while (response.getResumeToken().isEmpty());
    }
    JsonObject exported = object("posts", posts);
    exported.add("comments", comments);
    return exported;
  }

  private JsonObject importRecords(JsonObject command) throws InvalidProtocolBufferException {
    JsonArray records = new JsonArray();
    for (JsonElement it : command.getAsJsonArray("records")) {
      records.add(object(it.getAsJsonObject().has("post_id") ? "comment" : "post", it));
    }
    JsonObject fields = object("records", records);
    fields.addProperty("on_conflict", "CONFLICT_POLICY_FAIL");
    ImportRecordsRequest.Builder request = ImportRecordsRequest.newBuilder();
    JsonFormat.parser().merge(fields.toString(), request);
    ImportResult result = client.call(TransferServiceGrpc.getImportRecordsMethod(), request.build()).getResult();
    JsonObject shown = new JsonObject();
    shown.addProperty("stored", result.getCreated() + result.getUnchanged());
    shown.addProperty("failed", result.getFailed());
    return shown;
  }

  private static JsonObject shown(Change change) {
    JsonObject shown = new JsonObject();
    shown.addProperty("action", lowerCase(change.getAction(), "ACTION_"));
    shown.addProperty("kind", lowerCase(change.getKind(), "RESOURCE_KIND_"));
    shown.addProperty("id", change.getId());
    switch (change.getResourceCase()) {
      case POST -> shown.addProperty("body", change.getPost().getBody());
      case COMMENT -> shown.addProperty("body", change.getComment().getBody());
      default -> {}
    }
    return shown;
  }

  private static String lowerCase(Enum<?> value, String prefix) {
    return value.name().substring(prefix.length()).toLowerCase();
  }

  private static JsonObject shown(StoreException error) {
    JsonObject shown = new JsonObject();
    shown.addProperty("code", error.code().name());
    shown.addProperty("reason", error.info().getReason());
    JsonObject metadata = new JsonObject();
    error.info().getMetadataMap().forEach(metadata::addProperty);
    shown.add("metadata", metadata);
    JsonArray fields = new JsonArray();
    error.violations().forEach(it -> fields.add(it.getField()));
    shown.add("fields", fields);
    shown.addProperty("retry_after", error.retryAfter().map(Duration::toSeconds).orElse(null));
    return shown;
  }

  private static JsonObject object(String name, JsonElement value) {
    JsonObject object = new JsonObject();
    object.add(name, value);
    return object;
  }

  /** The methods of one type of resource, which are found by their names. */
  private record Collection(StoreClient client, String plural) {
    JsonObject run(JsonObject command) throws InvalidProtocolBufferException {
      String noun = plural.equals("posts") ? "Post" : "Comment";
      JsonObject request = command.deepCopy();
      request.remove("do");
      request.remove("resource");
      return switch (command.get("do").getAsString()) {
        case "create" -> shown(call("Create" + noun, withContent(request, noun)));
        case "get" -> shown(call("Get" + noun, request));
        case "update" -> shown(call("Update" + noun, withContent(request, noun)));
        case "delete" -> shown(call("Delete" + noun, request));
        case "list" -> list("List" + noun + "s", request);
        case "batch_get" -> object("items", items(call("BatchGet" + noun + "s", request)));
        default -> throw new IllegalArgumentException("unknown command: " + command);
      };
    }

    private JsonObject list(String method, JsonObject request) throws InvalidProtocolBufferException {
      JsonArray items = new JsonArray();
      do {
        Message page = call(method, request);
        items.addAll(items(page));
        request.addProperty("page_token", (String) field(page, "next_page_token"));
      } while (!request.get("page_token").getAsString().isEmpty());
      return object("items", items);
    }

    @SuppressWarnings("unchecked") // All methods have messages, and marshallers of grpc-protobuf.
    private Message call(String name, JsonObject fields) throws InvalidProtocolBufferException {
      ServiceDescriptor service =
          plural.equals("posts") ? PostServiceGrpc.getServiceDescriptor() : CommentServiceGrpc.getServiceDescriptor();
      MethodDescriptor<Message, Message> method =
          (MethodDescriptor<Message, Message>)
              service.getMethods().stream().filter(it -> name.equals(it.getBareMethodName())).findAny().orElseThrow();
      Message.Builder request =
          ((PrototypeMarshaller<Message>) method.getRequestMarshaller()).getMessagePrototype().toBuilder();
      JsonFormat.parser().merge(fields.toString(), request);
      return client.call(method, (Message) request.build());
    }

    /** Moves all fields but request_id into the resource. */
    private static JsonObject withContent(JsonObject request, String noun) {
      JsonObject result = new JsonObject();
      if (request.has("request_id")) {
        result.add("request_id", request.remove("request_id"));
      }
      result.add(noun.toLowerCase(), request);
      return result;
    }

    private JsonArray items(Message page) {
      JsonArray items = new JsonArray();
      ((List<?>) field(page, plural)).forEach(it -> items.add(shown((Message) it)));
      return items;
    }

    private static JsonObject shown(Message resource) {
      JsonObject shown = new JsonObject();
      for (String name : List.of("id", "post_id", "body", "etag")) {
        if (resource.getDescriptorForType().findFieldByName(name) != null) {
          Object value = field(resource, name);
          shown.add(name, new Gson().toJsonTree(value));
        }
      }
      return shown;
    }

    private static Object field(Message message, String name) {
      return message.getField(message.getDescriptorForType().findFieldByName(name));
    }
  }
}
