// A `pair` server that keeps its guarantees, with a goroutine for each peer.
//
//	go build solution.go
//	./solution [-idle-timeout S] [-drain S] [-max-connections N] [-panic TEXT] PORT
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	maxLine = 64 * 1024   // bytes, with the line's end
	linger  = time.Second // time for a refused peer to read the error
)

var (
	idleTimeout    = flag.Float64("idle-timeout", 30, "seconds")
	drain          = flag.Float64("drain", 5, "seconds")
	maxConnections = flag.Int("max-connections", 10_000, "peers served at a time; the others wait")
	panicOn        = flag.String("panic", "", "text that makes a session panic if a line contains it")

	errRefused = errors.New("the line is too long")
	errCut     = errors.New("stopped in the middle of a line")
)

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// Tally counts connections by the way they ended.
type Tally struct {
	Accepted     int `json:"accepted"`
	Served       int `json:"served"`
	Refused      int `json:"refused"`
	TimedOut     int `json:"timed_out"`
	Reset        int `json:"reset"`
	Cut          int `json:"cut"`
	Failed       int `json:"failed"`
	AcceptErrors int `json:"accept_errors"`
}

// Server holds the shared state. Its mutex guards tally and peers.
type Server struct {
	sync.Mutex
	tally    Tally
	peers    map[*Peer]bool
	all      sync.WaitGroup
	slots    chan struct{}
	stopping atomic.Bool
	drained  atomic.Bool
}

// Peer is a connection with a deadline for each read and each write. One byte of progress starts the deadline anew.
type Peer struct {
	*net.TCPConn
	out *bufio.Writer
}

// Read flushes pending replies first, because the peer may wait for them before it sends more.
func (peer *Peer) Read(buffer []byte) (int, error) {
	if err := peer.out.Flush(); err != nil {
		return 0, err
	}
	peer.SetReadDeadline(time.Now().Add(seconds(*idleTimeout)))
	return peer.TCPConn.Read(buffer)
}

// Write waits as long as the peer takes some bytes before each deadline. Nothing is read meanwhile: this bounds memory.
func (peer *Peer) Write(data []byte) (int, error) {
	written := 0
	for {
		peer.SetWriteDeadline(time.Now().Add(seconds(*idleTimeout)))
		count, err := peer.TCPConn.Write(data[written:])
		written += count
		if err == nil || count == 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return written, err
		}
	}
}

func (server *Server) accept(listener *net.TCPListener) {
	for {
		// Take a slot before the peer: the other peers wait in the kernel's backlog.
		server.slots <- struct{}{}
		connection, err := listener.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		server.Lock()
		if err != nil {
			// For example, no descriptor is free. The peer still waits, and the next call would fail at once: pause first.
			server.tally.AcceptErrors++
			server.Unlock()
			<-server.slots
			time.Sleep(100 * time.Millisecond)
			continue
		}
		peer := &Peer{TCPConn: connection}
		peer.out = bufio.NewWriterSize(peer, 16*1024)
		server.tally.Accepted++
		server.peers[peer] = true
		server.all.Add(1)
		if server.stopping.Load() {
			connection.CloseRead()
		}
		server.Unlock()
		go server.serve(peer)
	}
}

// serve runs one conversation and counts how it ended. An error or a panic ends only this conversation.
func (server *Server) serve(peer *Peer) {
	var err error
	count := &server.tally.Failed
	defer func() {
		if problem := recover(); problem != nil {
			log.Print("a session failed: ", problem)
		}
		peer.Close()
		server.Lock()
		*count++
		delete(server.peers, peer)
		server.Unlock()
		<-server.slots
		server.all.Done()
	}()
	err = server.converse(peer)
	if err == nil {
		err = peer.out.Flush()
	}
	switch {
	case errors.Is(err, errRefused):
		count = &server.tally.Refused
		fmt.Fprintf(peer.out, "error: a line may have %d bytes\n", maxLine)
		if peer.out.Flush() == nil && peer.CloseWrite() == nil {
			// Closing with unread input would send RST, and the peer might never read the error.
			peer.SetReadDeadline(time.Now().Add(linger))
			io.Copy(io.Discard, peer.TCPConn)
		}
	case err == nil:
		count = &server.tally.Served
	case server.drained.Load() || errors.Is(err, errCut):
		count = &server.tally.Cut
	case errors.Is(err, os.ErrDeadlineExceeded):
		count = &server.tally.TimedOut
	default:
		count = &server.tally.Reset
	}
}

func (server *Server) converse(peer *Peer) error {
	in := bufio.NewReaderSize(peer, 16*1024)
	var previous, line []byte
	for {
		part, err := in.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > maxLine {
			return errRefused
		}
		if err == bufio.ErrBufferFull {
			continue
		}
		if err == io.EOF && server.stopping.Load() && len(line) > 0 {
			// The server itself ended the input, so this part is no last line.
			return errCut
		}
		if err != nil && err != io.EOF {
			return err
		}
		if *panicOn != "" && bytes.Contains(line, []byte(*panicOn)) {
			peer.out.Flush()
			panic("requested by -panic")
		}
		// The last line needs no end of its own: FIN ends it.
		if len(line) > 0 {
			peer.out.Write(previous)
			if _, err := peer.out.Write(line); err != nil {
				return err
			}
			previous, line = line, previous[:0]
		}
		if err == io.EOF {
			return nil
		}
	}
}

func main() {
	flag.Parse()
	server := &Server{peers: map[*Peer]bool{}, slots: make(chan struct{}, *maxConnections)}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	// Listen only after Notify: a signal may come as soon as the server listens.
	listener, err := net.Listen("tcp", "127.0.0.1:"+flag.Arg(0))
	if err != nil {
		log.Fatal(err)
	}
	go server.accept(listener.(*net.TCPListener))

	<-signals
	// Without a handler, the next signal ends the process at once.
	signal.Reset()
	listener.Close()
	server.Lock()
	server.stopping.Store(true)
	for peer := range server.peers {
		// Bytes that have arrived are still read and answered. Then comes the end of input, as if the peer had ended it.
		peer.CloseRead()
	}
	server.Unlock()

	over := time.AfterFunc(seconds(*drain), func() {
		server.Lock()
		defer server.Unlock()
		server.drained.Store(true)
		for peer := range server.peers {
			peer.Close()
		}
	})
	server.all.Wait()
	over.Stop()
	server.Lock()
	json.NewEncoder(os.Stdout).Encode(server.tally)
}
