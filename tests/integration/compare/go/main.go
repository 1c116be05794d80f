// Plays the steps of scenarios with grpc-go: reads a plan from standard input, writes transcripts to standard output.
//
// Messages are bytes both ways, so no generated stubs are needed: the codec below passes them on as they are.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const service = "/inference.GRPCInferenceService/"

type step struct {
	Do          string      `json:"do"` // ask, open, send, await, close, cancel
	Call        string      `json:"call"`
	Method      string      `json:"method"`
	Body        []byte      `json:"body"`
	Metadata    [][2]string `json:"metadata"`
	TimeoutS    float64     `json:"timeout_s"`
	Compression string      `json:"compression"`
	Channel     string      `json:"channel"`
	Responses   int         `json:"responses"`
}

type scenario struct {
	Name  string `json:"name"`
	Steps []step `json:"steps"`
}

type plan struct {
	Target    string     `json:"target"`
	Scenarios []scenario `json:"scenarios"`
}

type transcript struct {
	Method   string      `json:"method"`
	Messages [][]byte    `json:"messages"`
	Status   string      `json:"status"`
	Details  string      `json:"details"`
	Initial  [][2]string `json:"initial"`
	Trailing [][2]string `json:"trailing"`
	Awaited  *int        `json:"awaited"`
}

// rawCodec passes bytes on. It is named proto, as every gRPC server expects.
type rawCodec struct{}

func (rawCodec) Marshal(value any) ([]byte, error) {
	if raw, ok := value.(*[]byte); ok {
		return *raw, nil
	}
	return nil, fmt.Errorf("not bytes: %T", value)
}

func (rawCodec) Unmarshal(data []byte, value any) error {
	*(value.(*[]byte)) = append([]byte(nil), data...)
	return nil
}

func (rawCodec) Name() string { return "proto" }

// live is a stream that has not ended. A goroutine writes down what it brings.
type live struct {
	stream  grpc.ClientStream
	cancel  context.CancelFunc
	found   *transcript
	awaited int
	mutex   sync.Mutex
	came    *sync.Cond
	ended   bool
}

func (each *live) read() {
	var failure error
	for failure == nil {
		var message []byte
		if failure = each.stream.RecvMsg(&message); failure == nil {
			each.mutex.Lock()
			each.found.Messages = append(each.found.Messages, message)
			each.came.Broadcast()
			each.mutex.Unlock()
		}
	}
	header, _ := each.stream.Header()
	if errors.Is(failure, io.EOF) {
		failure = nil
	}
	each.mutex.Lock()
	end(each.found, failure, header, each.stream.Trailer())
	each.ended = true
	each.came.Broadcast()
	each.mutex.Unlock()
}

// until waits for so many responses; a negative number waits for the end.
func (each *live) until(responses int) {
	each.mutex.Lock()
	defer each.mutex.Unlock()
	for !each.ended && (responses < 0 || len(each.found.Messages) < responses) {
		each.came.Wait()
	}
}

type player struct {
	target   string
	channels map[string]*grpc.ClientConn
	open     map[string]*live
	order    []string
	found    map[string]*transcript
}

func (p *player) channel(name string) *grpc.ClientConn {
	if p.channels[name] == nil {
		channel, err := grpc.NewClient("passthrough:///"+p.target,
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{}),
				grpc.MaxCallRecvMsgSize(math.MaxInt32), grpc.MaxCallSendMsgSize(math.MaxInt32)))
		if err != nil {
			panic(err)
		}
		p.channels[name] = channel
	}
	return p.channels[name]
}

func (p *player) name(wanted string) string {
	free := wanted
	for number := 2; p.found[free] != nil; number++ {
		free = fmt.Sprintf("%s %d", wanted, number)
	}
	return free
}

func (p *player) play(s step) {
	switch s.Do {
	case "ask":
		p.ask(s)
	case "open":
		p.begin(s)
	case "send":
		if each := p.open[s.Call]; each.stream != nil {
			_ = each.stream.SendMsg(&s.Body) // if the stream has ended, its status says why
		}
	case "await":
		p.open[s.Call].awaited = s.Responses
		p.open[s.Call].until(s.Responses)
	case "close":
		p.close(s.Call)
	case "cancel":
		each := p.open[s.Call]
		each.cancel()
		each.until(-1)
		each.found.Awaited = &each.awaited
		delete(p.open, s.Call)
	default:
		panic("unknown step " + s.Do)
	}
}

func (p *player) ask(s step) {
	ctx, cancel := callContext(s)
	defer cancel()
	name := s.Call
	if name == "" {
		name = s.Method
	}
	path := service + s.Method
	if s.Method[0] == '/' {
		path = s.Method
	}
	var answer []byte
	var header, trailer metadata.MD
	options := append(compressed(s), grpc.Header(&header), grpc.Trailer(&trailer))
	failure := p.channel(s.Channel).Invoke(ctx, path, &s.Body, &answer, options...)
	found := &transcript{Method: s.Method}
	if failure == nil {
		found.Messages = append(found.Messages, answer)
	}
	end(found, failure, header, trailer)
	p.found[p.name(name)] = found
}

func (p *player) begin(s step) {
	ctx, cancel := callContext(s)
	found := &transcript{Method: "ModelStreamInfer"}
	p.found[p.name(s.Call)] = found
	both := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
	stream, err := p.channel(s.Channel).NewStream(ctx, both, service+"ModelStreamInfer", compressed(s)...)
	each := &live{stream: stream, cancel: cancel, found: found}
	each.came = sync.NewCond(&each.mutex)
	p.open[s.Call] = each
	p.order = append(p.order, s.Call)
	if err != nil {
		end(found, err, nil, nil)
		each.ended = true
		return
	}
	go each.read()
}

func (p *player) close(call string) {
	each := p.open[call]
	if each == nil {
		return
	}
	delete(p.open, call)
	if each.stream != nil {
		_ = each.stream.CloseSend()
	}
	each.until(-1)
	each.cancel()
	if each.found.Status == "DEADLINE_EXCEEDED" {
		each.found.Awaited = &each.awaited
	}
}

func callContext(s step) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(s.TimeoutS*float64(time.Second)))
	for _, pair := range s.Metadata {
		ctx = metadata.AppendToOutgoingContext(ctx, pair[0], pair[1])
	}
	return ctx, cancel
}

func compressed(s step) []grpc.CallOption {
	if s.Compression == "gzip" {
		return []grpc.CallOption{grpc.UseCompressor(gzip.Name)}
	}
	return nil
}

func end(found *transcript, failure error, header, trailer metadata.MD) {
	what := status.Convert(failure)
	found.Status, found.Details = names[what.Code()], what.Message()
	found.Initial, found.Trailing = pairs(header), pairs(trailer)
}

// pairs leaves out what every call of grpc-go shows and grpc's other clients hide.
func pairs(from metadata.MD) [][2]string {
	found := [][2]string{}
	for key, values := range from {
		for _, value := range values {
			if key != "content-type" && key != "grpc-accept-encoding" {
				found = append(found, [2]string{key, value})
			}
		}
	}
	return found
}

var names = map[codes.Code]string{
	codes.OK: "OK", codes.Canceled: "CANCELLED", codes.Unknown: "UNKNOWN", codes.InvalidArgument: "INVALID_ARGUMENT",
	codes.DeadlineExceeded: "DEADLINE_EXCEEDED", codes.NotFound: "NOT_FOUND", codes.AlreadyExists: "ALREADY_EXISTS",
	codes.PermissionDenied: "PERMISSION_DENIED", codes.ResourceExhausted: "RESOURCE_EXHAUSTED",
	codes.FailedPrecondition: "FAILED_PRECONDITION", codes.Aborted: "ABORTED", codes.OutOfRange: "OUT_OF_RANGE",
	codes.Unimplemented: "UNIMPLEMENTED", codes.Internal: "INTERNAL", codes.Unavailable: "UNAVAILABLE",
	codes.DataLoss: "DATA_LOSS", codes.Unauthenticated: "UNAUTHENTICATED",
}

func main() {
	var wanted plan
	if err := json.NewDecoder(os.Stdin).Decode(&wanted); err != nil {
		panic(err)
	}
	found := map[string]map[string]*transcript{}
	for _, each := range wanted.Scenarios {
		p := &player{wanted.Target, map[string]*grpc.ClientConn{}, map[string]*live{}, nil, map[string]*transcript{}}
		for _, s := range each.Steps {
			p.play(s)
		}
		for _, call := range p.order {
			p.close(call)
		}
		for _, channel := range p.channels {
			channel.Close()
		}
		found[each.Name] = p.found
	}
	if err := json.NewEncoder(os.Stdout).Encode(found); err != nil {
		panic(err)
	}
}
