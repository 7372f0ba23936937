// A `pair` server that keeps its guarantees, with callbacks on one thread.
//
//   node solution.js PORT [--idle-timeout S] [--drain S] [--max-connections N] [--panic TEXT]
const net = require('node:net');
const { parseArgs } = require('node:util');

const MAX_LINE = 64 * 1024; // bytes, with the line's end
const LINGER = 1000; // milliseconds for a refused peer to read the error
const END = Buffer.from('\n');

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    'idle-timeout': { type: 'string', default: '30' },
    drain: { type: 'string', default: '5' },
    'max-connections': { type: 'string', default: '10000' },
    panic: { type: 'string' },
  },
});
const idleTimeout = 1000 * Number(options['idle-timeout']);
const drain = 1000 * Number(options.drain);
const slots = Number(options['max-connections']);

const tally = { accepted: 0, served: 0, refused: 0, timed_out: 0, reset: 0, cut: 0, failed: 0, accept_errors: 0 };
const peers = new Set();
let waiting = [];
let stopping = false;

class Peer {
  constructor(socket) {
    this.socket = socket;
    this.previous = Buffer.alloc(0);
    this.rest = Buffer.alloc(0);
    this.ending = 'served';
    this.refused = false;
    peers.add(this);
    tally.accepted += 1;
    // The time-out counts from the last byte in either direction.
    socket.setTimeout(idleTimeout, () => this.end(this.refused ? 'refused' : 'timed_out'));
    socket.on('data', (data) => this.guarded(() => this.receive(data)));
    socket.on('end', () => this.guarded(() => this.receiveEnd()));
    // Nothing is read while replies wait to be sent, which bounds the memory.
    socket.on('drain', () => this.resume());
    // Without this listener the first RST would end the process.
    socket.on('error', () => this.end('reset'));
    socket.on('close', () => this.left());
    socket.resume();
  }

  // Runs a callback. An exception in it ends only this conversation.
  guarded(callback) {
    try {
      callback();
    } catch (error) {
      console.error(`a session failed: ${error.message}`);
      this.end('failed');
    }
  }

  receive(data) {
    if (this.refused) return;
    const replies = [];
    let from = 0;
    for (let end; (end = data.indexOf(END, from)) >= 0; from = end + 1) {
      const line = Buffer.concat([this.rest, data.subarray(from, end + 1)]);
      this.rest = Buffer.alloc(0);
      if (line.length > MAX_LINE) return this.refuse(replies);
      if (options.panic && line.includes(options.panic)) {
        this.send(replies);
        throw new Error('requested by --panic');
      }
      replies.push(this.previous, line);
      this.previous = line;
    }
    this.rest = Buffer.concat([this.rest, data.subarray(from)]);
    if (this.rest.length > MAX_LINE) return this.refuse(replies);
    this.send(replies);
  }

  send(replies) {
    if (replies.length > 0 && !this.socket.write(Buffer.concat(replies))) this.socket.pause();
  }

  resume() {
    this.socket.resume();
    if (stopping) this.endWhenQuiet();
  }

  // The last line needs no end of its own: FIN ends it.
  receiveEnd() {
    if (!this.refused && this.rest.length > 0) this.socket.write(Buffer.concat([this.previous, this.rest]));
    this.socket.end();
  }

  refuse(replies) {
    this.refused = true;
    this.ending = 'refused';
    // Input is still read: closing with unread input would send RST, and the peer might never read the error.
    this.socket.end(Buffer.concat([...replies, Buffer.from(`error: a line may have ${MAX_LINE} bytes\n`)]));
    setTimeout(() => this.socket.destroy(), LINGER).unref();
  }

  // After a stop, reads and answers the bytes that have arrived. A turn of the event loop without new bytes means that
  // all of them have been read.
  endWhenQuiet() {
    const before = this.socket.bytesRead;
    const look = () => {
      if (this.socket.isPaused() || this.refused) return;
      if (this.socket.bytesRead > before) return this.endWhenQuiet();
      if (this.rest.length > 0) this.ending = 'cut';
      this.socket.end(() => this.socket.destroy());
    };
    setImmediate(() => setImmediate(look));
  }

  // Closes the connection without a further reply.
  end(ending) {
    if (this.ending === 'served') this.ending = ending;
    this.socket.destroy();
  }

  left() {
    tally[this.ending] += 1;
    peers.delete(this);
    const next = waiting.shift();
    if (next) new Peer(next);
  }
}

// `server.maxConnections` would turn peers away when all slots are taken. Here they wait, unread.
const server = net.createServer({ allowHalfOpen: true, pauseOnConnect: true, noDelay: true }, (socket) => {
  if (peers.size < slots) return new Peer(socket);
  waiting.push(socket);
  socket.on('error', () => {});
  socket.on('close', () => (waiting = waiting.filter((one) => one !== socket)));
});
server.on('error', (error) => {
  console.error(error.message);
  process.exit(1);
});
server.listen({ port: Number(positionals[0]), host: '127.0.0.1', backlog: 4096 });

const signals = ['SIGTERM', 'SIGINT'];
const stop = () => {
  // Without a handler, the next signal ends the process at once.
  for (const signal of signals) process.off(signal, stop);
  stopping = true;
  server.close();
  for (const socket of waiting.splice(0)) socket.destroy();
  for (const peer of peers) if (!peer.socket.isPaused()) peer.endWhenQuiet();
  setTimeout(() => {
    for (const peer of peers) peer.end('cut');
  }, drain).unref();
};
for (const signal of signals) process.on(signal, stop);
process.on('exit', () => console.log(JSON.stringify(tally)));
