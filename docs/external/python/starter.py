"""A `pair` server as one writes it first: python3 starter.py PORT"""

import asyncio
import sys


async def converse(reader, writer):
    previous = b""
    while True:
        line = await reader.readline()
        if not line:
            break
        writer.write(previous + line)
        previous = line
    writer.close()


async def main():
    server = await asyncio.start_server(converse, "127.0.0.1", int(sys.argv[1]))
    async with server:
        await server.serve_forever()


asyncio.run(main())
