"""A `pair` server that keeps its guarantees, with asyncio and a task for each peer.

    python3 solution.py PORT [--idle-timeout S] [--drain S] [--max-connections N] [--panic TEXT]
"""

import argparse
import asyncio
import json
import signal
import socket
import sys

MAX_LINE = 64 * 1024  # bytes, with the line's end
AT_ONCE = 32  # number of peers accepted in one turn of the loop
LINGER = 1  # seconds for a refused peer to read the error


class Idle(Exception):
    """The peer sent nothing, or took nothing, for too long."""


class Refused(Exception):
    """The peer sent a line that is too long."""


class Server:
    def __init__(self, options):
        self.options = options
        self.tally = dict.fromkeys(
            ["accepted", "served", "refused", "timed_out", "reset", "cut", "failed", "accept_errors"], 0
        )
        self.peers = {}  # task -> socket
        self.stopping = asyncio.Event()
        self.loop = asyncio.get_running_loop()

    # asyncio.start_server accepts without bound, and can't let peers wait in the backlog. So watch the listener here.

    def listen(self):
        if not self.stopping.is_set():
            self.loop.add_reader(self.listener, self.accept)

    def accept(self):
        # Accept a few at a time: if peers come as fast as they are accepted, all other peers would wait for an end.
        for _ in range(min(AT_ONCE, self.options.max_connections - len(self.peers))):
            try:
                peer, _ = self.listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                self.tally["accept_errors"] += 1
                continue
            except OSError:
                # For example, no descriptor is free. The peer still waits and would wake the loop at once: pause first.
                self.tally["accept_errors"] += 1
                self.loop.remove_reader(self.listener)
                self.loop.call_later(0.1, self.listen)
                return
            self.tally["accepted"] += 1
            task = self.loop.create_task(self.serve(peer))
            self.peers[task] = peer
            task.add_done_callback(self.left)
        if len(self.peers) == self.options.max_connections:
            self.loop.remove_reader(self.listener)

    def left(self, task):
        del self.peers[task]
        self.listen()

    async def serve(self, peer):
        """Runs one conversation and counts how it ended. An exception ends only this conversation."""
        ending, writer = "cut", None
        try:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            reader, writer = await asyncio.open_connection(sock=peer, limit=16 * 1024)
            writer.transport.set_write_buffer_limits(high=0)  # so that drain() waits until all is sent
            ending = await self.converse(reader, writer)
        except Refused as why:
            ending = "refused"
            await self.refuse(reader, writer, why)
        except Idle:
            ending = "timed_out"
        except OSError:
            ending = "reset"
        except asyncio.CancelledError:
            pass  # The drain is over.
        except Exception as error:
            ending = "failed"
            print(f"a session failed: {error}", file=sys.stderr)
        finally:
            self.tally[ending] += 1
            if ending == "served":
                writer.close()  # Nothing is left to be sent.
            elif writer:
                writer.transport.abort()
            else:
                peer.close()

    async def converse(self, reader, writer):
        previous, rest = b"", b""
        while True:
            try:
                data = await asyncio.wait_for(reader.read(16 * 1024), self.options.idle_timeout)
            except asyncio.TimeoutError:
                raise Idle from None
            *lines, rest = (rest + data).split(b"\n")
            lines = [line + b"\n" for line in lines]
            if not data and rest and not self.stopping.is_set():
                # The last line needs no end of its own: FIN ends it. After a stop the server itself ended the input.
                lines, rest = [rest], b""
            reply = []
            for line in lines:
                if len(line) > MAX_LINE:
                    break
                if self.options.panic and self.options.panic.encode() in line:
                    await self.send(writer, b"".join(reply))
                    raise RuntimeError("requested by --panic")
                reply += [previous, line]
                previous = line
            await self.send(writer, b"".join(reply))
            if len(rest) > MAX_LINE or any(len(line) > MAX_LINE for line in lines):
                raise Refused(f"error: a line may have {MAX_LINE} bytes\n")
            if not data:
                return "cut" if rest else "served"

    async def send(self, writer, data):
        """Returns when the kernel has taken all data. Until then nothing more is read from this peer."""
        writer.write(data)
        while left := writer.transport.get_write_buffer_size():
            try:
                await asyncio.wait_for(writer.drain(), self.options.idle_timeout)
            except asyncio.TimeoutError:
                if writer.transport.get_write_buffer_size() == left:
                    raise Idle from None
        await writer.drain()  # raises the error that write() met

    async def refuse(self, reader, writer, why):
        async def linger():
            # Closing with unread input would send RST, and the peer might never read the error.
            await self.send(writer, str(why).encode())
            writer.write_eof()
            while await reader.read(16 * 1024):
                pass

        try:
            await asyncio.wait_for(linger(), LINGER)
        except (asyncio.TimeoutError, asyncio.CancelledError, Idle, OSError):
            pass

    def stop(self):
        # Without a handler, the next signal ends the process at once.
        for each in (signal.SIGTERM, signal.SIGINT):
            self.loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)
        self.stopping.set()

    async def run(self):
        for each in (signal.SIGTERM, signal.SIGINT):
            self.loop.add_signal_handler(each, self.stop)
        # Listen only after the handlers are set: a signal may come as soon as the server listens.
        self.listener = socket.create_server(("127.0.0.1", self.options.port), backlog=4096)
        self.listener.setblocking(False)
        self.listen()
        await self.stopping.wait()
        self.loop.remove_reader(self.listener)
        self.listener.close()
        for peer in list(self.peers.values()):
            # Bytes that have arrived are still read and answered. The end of input follows, as if the peer had ended it.
            try:
                peer.shutdown(socket.SHUT_RD)
            except OSError:
                pass  # The peer has left.
        if self.peers:
            _, late = await asyncio.wait(list(self.peers), timeout=self.options.drain)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        print(json.dumps(self.tally), flush=True)


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--idle-timeout", type=float, default=30)
    parser.add_argument("--drain", type=float, default=5)
    parser.add_argument("--max-connections", type=int, default=10_000)
    parser.add_argument("--panic")
    await Server(parser.parse_args()).run()


asyncio.run(main())
