// The runner of the conformance scenario (clients/conformance/README.md) for the Go client.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"iter"
	"log"
	"os"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"store-service.example/storeapi"
	v1 "store-service.example/storeapi/storeapiv1"
)

type command struct {
	Do           string  `json:"do"`
	Target       string  `json:"target"`
	Timeout      float64 `json:"timeout"`
	CA           string  `json:"ca"`
	Key          string  `json:"key"`
	Resource     string  `json:"resource"`
	ID           int64   `json:"id"`
	IDs          []int64 `json:"ids"`
	PostID       int64   `json:"post_id"`
	PostIDs      []int64 `json:"post_ids"`
	Body         string  `json:"body"`
	Etag         string  `json:"etag"`
	RequestID    string  `json:"request_id"`
	AllowMissing bool    `json:"allow_missing"`
	PageSize     int32   `json:"page_size"`
	Start        string  `json:"start"`
	Count        int     `json:"count"`
	Records      []struct {
		ID     int64  `json:"id"`
		PostID int64  `json:"post_id"`
		Body   string `json:"body"`
	} `json:"records"`
}

type result map[string]any

// runner executes commands with one client, and one watch at a time.
type runner struct {
	client  *storeapi.Client
	timeout time.Duration
	next    func() (*v1.WatchResponse, error, bool)
	stop    func()
	left    []*v1.Change
}

func main() {
	running := &runner{}
	lines := bufio.NewScanner(os.Stdin)
	output := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		var next command
		if err := json.Unmarshal(lines.Bytes(), &next); err != nil {
			log.Fatal(err)
		}
		response, err := running.run(next)
		var failure *storeapi.Error
		if errors.As(err, &failure) {
			response = result{"error": describe(failure)}
		} else if err != nil {
			log.Fatal(err)
		}
		if err := output.Encode(response); err != nil {
			log.Fatal(err)
		}
	}
}

func (r *runner) run(c command) (result, error) {
	ctx, cancel := context.WithTimeout(context.Background(), r.timeout)
	defer cancel()
	switch c.Do {
	case "connect":
		if r.client != nil {
			r.client.Close()
		}
		var err error
		r.timeout = seconds(c.Timeout)
		transport := insecure.NewCredentials()
		options := []grpc.DialOption{}
		if c.CA != "" {
			if transport, err = credentials.NewClientTLSFromFile(c.CA, ""); err != nil {
				return nil, err
			}
			options = append(options, storeapi.WithAPIKey(c.Key))
		}
		r.client, err = storeapi.Dial(c.Target, append(options, grpc.WithTransportCredentials(transport))...)
		return result{}, err
	case "watch":
		request := &v1.WatchRequest{PostIds: c.PostIDs, Start: &v1.WatchRequest_Earliest{Earliest: true}}
		if c.Start == "initial_state" {
			request.Start = &v1.WatchRequest_InitialState{InitialState: true}
		}
		r.left = nil
		watching, cancelWatch := context.WithCancel(context.Background())
		if c.Timeout > 0 {
			watching, cancelWatch = context.WithTimeout(context.Background(), seconds(c.Timeout))
		}
		next, stop := iter.Pull2(r.client.Watch(watching, request))
		r.next, r.stop = next, func() { cancelWatch(); stop() }
		return result{}, nil
	case "next":
		return r.changes(c.Count)
	case "close":
		r.stop()
		return result{}, nil
	case "export":
		return r.export()
	case "import":
		return r.imported(ctx, c)
	}
	if c.Resource == "posts" {
		return r.posts(ctx, c)
	}
	return r.comments(ctx, c)
}

func seconds(number float64) time.Duration {
	return time.Duration(number * float64(time.Second))
}

func (r *runner) posts(ctx context.Context, c command) (result, error) {
	posts := r.client.Posts
	switch c.Do {
	case "create":
		return one(posts.CreatePost(ctx, &v1.CreatePostRequest{Post: &v1.Post{Body: c.Body}, RequestId: c.RequestID}))
	case "get":
		return one(posts.GetPost(ctx, &v1.GetPostRequest{Id: c.ID}))
	case "update":
		return one(posts.UpdatePost(ctx, &v1.UpdatePostRequest{Post: &v1.Post{Id: c.ID, Body: c.Body, Etag: c.Etag}}))
	case "delete":
		return one(posts.DeletePost(ctx, &v1.DeletePostRequest{
			Id: c.ID, AllowMissing: c.AllowMissing, RequestId: c.RequestID,
		}))
	case "batch_get":
		found, err := posts.BatchGetPosts(ctx, &v1.BatchGetPostsRequest{Ids: c.IDs})
		return many(found.GetPosts(), err)
	}
	request := &v1.ListPostsRequest{PageSize: c.PageSize}
	return many(collect(storeapi.Items(ctx, posts.ListPosts, request, (*v1.ListPostsResponse).GetPosts)))
}

func (r *runner) comments(ctx context.Context, c command) (result, error) {
	comments := r.client.Comments
	switch c.Do {
	case "create":
		draft := &v1.Comment{PostId: c.PostID, Body: c.Body}
		return one(comments.CreateComment(ctx, &v1.CreateCommentRequest{Comment: draft, RequestId: c.RequestID}))
	case "get":
		return one(comments.GetComment(ctx, &v1.GetCommentRequest{Id: c.ID}))
	case "update":
		changed := &v1.Comment{Id: c.ID, Body: c.Body, Etag: c.Etag}
		return one(comments.UpdateComment(ctx, &v1.UpdateCommentRequest{Comment: changed}))
	case "delete":
		return one(comments.DeleteComment(ctx, &v1.DeleteCommentRequest{
			Id: c.ID, AllowMissing: c.AllowMissing, RequestId: c.RequestID,
		}))
	case "batch_get":
		found, err := comments.BatchGetComments(ctx, &v1.BatchGetCommentsRequest{Ids: c.IDs})
		return many(found.GetComments(), err)
	}
	request := &v1.ListCommentsRequest{PageSize: c.PageSize, PostId: c.PostID}
	return many(collect(storeapi.Items(ctx, comments.ListComments, request, (*v1.ListCommentsResponse).GetComments)))
}

func (r *runner) changes(count int) (result, error) {
	for len(r.left) < count {
		response, err, _ := r.next()
		if err != nil {
			return nil, err
		}
		r.left = append(r.left, response.Changes...)
	}
	changes := make([]result, count)
	for i, change := range r.left[:count] {
		changes[i] = result{
			"action": strings.ToLower(strings.TrimPrefix(change.Action.String(), "ACTION_")),
			"kind":   strings.ToLower(strings.TrimPrefix(change.Kind.String(), "RESOURCE_KIND_")),
			"id":     change.Id,
		}
		if post := change.GetPost(); post != nil {
			changes[i]["body"] = post.Body
		} else if comment := change.GetComment(); comment != nil {
			changes[i]["body"] = comment.Body
		}
	}
	r.left = r.left[count:]
	return result{"changes": changes}, nil
}

func (r *runner) export() (result, error) {
	var posts []*v1.Post
	var comments []*v1.Comment
	for response, err := range r.client.Export(context.Background(), &v1.ExportRequest{}) {
		if err != nil {
			return nil, err
		}
		for _, record := range response.Records {
			if record.State != v1.RecordState_RECORD_STATE_UNSPECIFIED {
				continue
			} else if post := record.GetPost(); post != nil {
				posts = append(posts, post)
			} else {
				comments = append(comments, record.GetComment())
			}
		}
	}
	shownPosts, _ := many(posts, nil)
	shownComments, _ := many(comments, nil)
	return result{"posts": shownPosts["items"], "comments": shownComments["items"]}, nil
}

func (r *runner) imported(ctx context.Context, c command) (result, error) {
	request := &v1.ImportRecordsRequest{OnConflict: v1.ConflictPolicy_CONFLICT_POLICY_FAIL}
	for _, it := range c.Records {
		record := &v1.Record{Resource: &v1.Record_Post{Post: &v1.Post{Id: it.ID, Body: it.Body}}}
		if it.PostID != 0 {
			comment := &v1.Comment{Id: it.ID, PostId: it.PostID, Body: it.Body}
			record.Resource = &v1.Record_Comment{Comment: comment}
		}
		request.Records = append(request.Records, record)
	}
	response, err := r.client.Transfer.ImportRecords(ctx, request)
	stored := response.GetResult()
	return result{"stored": stored.GetCreated() + stored.GetUnchanged(), "failed": stored.GetFailed()}, err
}

// resource is a post or a comment.
type resource interface {
	GetId() int64
	GetBody() string
	GetEtag() string
}

func one[R resource](it R, err error) (result, error) {
	if err != nil {
		return nil, err
	}
	shown := result{"id": it.GetId(), "body": it.GetBody(), "etag": it.GetEtag()}
	if comment, ok := any(it).(*v1.Comment); ok {
		shown["post_id"] = comment.PostId
	}
	return shown, nil
}

func many[R resource](found []R, err error) (result, error) {
	items := []result{}
	for _, it := range found {
		shown, _ := one(it, nil)
		items = append(items, shown)
	}
	return result{"items": items}, err
}

func collect[Item any](items iter.Seq2[Item, error]) ([]Item, error) {
	var found []Item
	for it, err := range items {
		if err != nil {
			return nil, err
		}
		found = append(found, it)
	}
	return found, nil
}

func describe(failure *storeapi.Error) result {
	fields := []string{}
	for _, it := range failure.Violations {
		fields = append(fields, it.Field)
	}
	described := result{
		"code": code.Code(failure.Code).String(), "reason": failure.Reason, "metadata": failure.Metadata, "fields": fields,
		"retry_after": nil,
	}
	if failure.RetryAfter > 0 {
		described["retry_after"] = failure.RetryAfter.Seconds()
	}
	return described
}
