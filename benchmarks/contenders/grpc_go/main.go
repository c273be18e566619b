// The contender in Go: grpc-go and SQLite with the durability of the service.
//
// It has GetPost and CreatePost, without validation, idempotency keys and change feed. Writes are committed one by
// one (-commit=each) or in groups (-commit=group): all creates that wait share one transaction.
package main

import (
	"context"
	"database/sql"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	_ "github.com/mattn/go-sqlite3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "store-service.example/storeapi/storeapiv1"
)

const maxGroup = 1000

const (
	getPost    = "SELECT id, body, create_time, update_time, version FROM posts WHERE id = ?"
	createPost = "INSERT INTO posts (body, create_time, update_time, version) VALUES (?, ?, ?, 1)"
)

type create struct {
	body string
	now  int64
	done chan result
}

type result struct {
	id  int64
	err error
}

type service struct {
	pb.UnimplementedPostServiceServer
	get     *sql.Stmt
	creates chan create
}

func (s *service) GetPost(ctx context.Context, request *pb.GetPostRequest) (*pb.Post, error) {
	var id, created, updated, version int64
	var body string
	err := s.get.QueryRowContext(ctx, request.Id).Scan(&id, &body, &created, &updated, &version)
	if err == sql.ErrNoRows {
		return nil, status.Error(codes.NotFound, "there is no such post")
	}
	if err != nil {
		return nil, status.Error(codes.Unavailable, "the database is not available")
	}
	return post(id, body, created, updated, version), nil
}

func (s *service) CreatePost(ctx context.Context, request *pb.CreatePostRequest) (*pb.Post, error) {
	job := create{body: request.Post.Body, now: time.Now().UnixMicro(), done: make(chan result, 1)}
	s.creates <- job
	outcome := <-job.done
	if outcome.err != nil {
		return nil, status.Error(codes.Unavailable, "the database is not available")
	}
	return post(outcome.id, job.body, job.now, job.now, 1), nil
}

func post(id int64, body string, created, updated, version int64) *pb.Post {
	return &pb.Post{
		Id:         id,
		Body:       body,
		CreateTime: timestamppb.New(time.UnixMicro(created)),
		UpdateTime: timestamppb.New(time.UnixMicro(updated)),
		Etag:       fmt.Sprintf("v%x", version),
	}
}

// commitAll stores creates in transactions of at most `limit`, and answers them after the commit.
func commitAll(database *sql.DB, creates <-chan create, limit int) {
	for first := range creates {
		group := []create{first}
	gather:
		for len(group) < limit {
			select {
			case next := <-creates:
				group = append(group, next)
			default:
				break gather
			}
		}
		ids, err := commit(database, group)
		for number, job := range group {
			if err != nil {
				job.done <- result{err: err}
			} else {
				job.done <- result{id: ids[number]}
			}
		}
	}
}

func commit(database *sql.DB, group []create) ([]int64, error) {
	transaction, err := database.Begin()
	if err != nil {
		return nil, err
	}
	defer transaction.Rollback() // has no effect after a commit
	statement, err := transaction.Prepare(createPost)
	if err != nil {
		return nil, err
	}
	defer statement.Close()
	ids := make([]int64, len(group))
	for number, job := range group {
		outcome, err := statement.Exec(job.body, job.now, job.now)
		if err != nil {
			return nil, err
		}
		if ids[number], err = outcome.LastInsertId(); err != nil {
			return nil, err
		}
	}
	return ids, transaction.Commit()
}

func main() {
	mode := flag.String("commit", "group", "each or group")
	flag.Parse()
	limit := maxGroup
	if *mode == "each" {
		limit = 1
	}
	path := strings.TrimPrefix(os.Getenv("DATABASE_URL"), "sqlite:///")
	pragmas := "_journal_mode=WAL&_synchronous=EXTRA&_busy_timeout=5000"
	writer, err := sql.Open("sqlite3", "file:"+path+"?_txlock=immediate&"+pragmas)
	check(err)
	writer.SetMaxOpenConns(1)
	check(writer.Ping())
	reader, err := sql.Open("sqlite3", "file:"+path+"?mode=ro&_busy_timeout=5000")
	check(err)
	reader.SetMaxOpenConns(runtime.NumCPU())
	reader.SetMaxIdleConns(runtime.NumCPU())
	get, err := reader.Prepare(getPost)
	check(err)

	creates := make(chan create, maxGroup)
	go commitAll(writer, creates, limit)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	server := grpc.NewServer()
	pb.RegisterPostServiceServer(server, &service{get: get, creates: creates})
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go func() {
		<-stop
		server.GracefulStop()
	}()
	fmt.Printf("grpc-go is serving on %s\n", listener.Addr())
	check(server.Serve(listener))
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
