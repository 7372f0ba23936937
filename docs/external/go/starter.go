// A `pair` server as one writes it first: go run starter.go PORT
package main

import (
	"bufio"
	"fmt"
	"log"
	"net"
	"os"
)

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	for {
		connection, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go converse(connection)
	}
}

func converse(connection net.Conn) {
	defer connection.Close()
	previous := ""
	lines := bufio.NewScanner(connection)
	for lines.Scan() {
		line := lines.Text() + "\n"
		fmt.Fprint(connection, previous+line)
		previous = line
	}
}
