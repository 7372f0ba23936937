// A `pair` server as one writes it first: node starter.js PORT
const net = require('node:net');

const server = net.createServer((socket) => {
  let previous = '';
  socket.on('data', (data) => {
    for (const text of data.toString().split('\n')) {
      if (text === '') continue;
      const line = text + '\n';
      socket.write(previous + line);
      previous = line;
    }
  });
});

server.listen(Number(process.argv[2]), '127.0.0.1');
