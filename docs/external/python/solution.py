"""A `pair` server that keeps its promises: asyncio, a task for each peer.

    python3 solution.py PORT [--idle-timeout S] [--drain S] [--max-connections N] [--panic TEXT]
"""

import argparse
import asyncio
import json
import signal
import socket
import sys

MAX_LINE = 64 * 1024  # bytes, with its end
AT_ONCE = 32  # peers that are accepted in one turn
LINGER = 1  # seconds for whoever is refused to read why


class Idle(Exception):
    """Nothing came, or nothing was taken, for too long."""


class Refused(Exception):
    """What the peer says is no conversation."""


class Server:
    def __init__(self, options):
        self.options = options
        self.tally = dict.fromkeys(
            ["accepted", "served", "refused", "timed_out", "reset", "cut", "failed", "accept_errors"], 0
        )
        self.peers = {}  # task -> socket
        self.stopping = asyncio.Event()
        self.loop = asyncio.get_running_loop()

    # asyncio.start_server accepts without bound, and cannot be told to let others wait in the backlog. So: by hand.

    def listen(self):
        if not self.stopping.is_set():
            self.loop.add_reader(self.listener, self.accept)

    def accept(self):
        # A few at a time: where peers come as fast as they are accepted, all others would wait for an end of it.
        for _ in range(min(AT_ONCE, self.options.max_connections - len(self.peers))):
            try:
                peer, _ = self.listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                self.tally["accept_errors"] += 1
                continue
            except OSError:
                # No descriptors, say. The peer still waits, and would wake us at once: look again a little later.
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
        """Holds a conversation, and counts how it ended. Whatever happens in it ends it alone."""
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
                # The last line needs no end: FIN is one. (After a stop the end of input is our own doing.)
                lines, rest = [rest], b""
            reply = []
            for line in lines:
                if len(line) > MAX_LINE:
                    break
                if self.options.panic and self.options.panic.encode() in line:
                    await self.send(writer, b"".join(reply))
                    raise RuntimeError("as it was told")
                reply += [previous, line]
                previous = line
            await self.send(writer, b"".join(reply))
            if len(rest) > MAX_LINE or any(len(line) > MAX_LINE for line in lines):
                raise Refused(f"error: a line may have {MAX_LINE} bytes\n")
            if not data:
                return "cut" if rest else "served"

    async def send(self, writer, data):
        """Returns when the kernel has taken all of it: until then nothing more is read from this peer."""
        writer.write(data)
        while left := writer.transport.get_write_buffer_size():
            try:
                await asyncio.wait_for(writer.drain(), self.options.idle_timeout)
            except asyncio.TimeoutError:
                if writer.transport.get_write_buffer_size() == left:
                    raise Idle from None
        await writer.drain()  # raises what write() has met

    async def refuse(self, reader, writer, why):
        async def linger():
            # Closing on unread input would send RST, and the peer might never read why.
            await self.send(writer, str(why).encode())
            writer.write_eof()
            while await reader.read(16 * 1024):
                pass

        try:
            await asyncio.wait_for(linger(), LINGER)
        except (asyncio.TimeoutError, asyncio.CancelledError, Idle, OSError):
            pass

    def stop(self):
        # The next signal finds nobody who handles it, and ends the process at once.
        for each in (signal.SIGTERM, signal.SIGINT):
            self.loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)
        self.stopping.set()

    async def run(self):
        for each in (signal.SIGTERM, signal.SIGINT):
            self.loop.add_signal_handler(each, self.stop)
        # Only now: whoever sees it listen may also tell it to stop.
        self.listener = socket.create_server(("127.0.0.1", self.options.port), backlog=4096)
        self.listener.setblocking(False)
        self.listen()
        await self.stopping.wait()
        self.loop.remove_reader(self.listener)
        self.listener.close()
        for peer in list(self.peers.values()):
            # What has arrived is still read and answered; then comes the end of input, as if the peer had ended it.
            try:
                peer.shutdown(socket.SHUT_RD)
            except OSError:
                pass  # It has left.
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
