"""An origin for WAN tests, in a process of its own: GET /BYTES/NAME is so many bytes. By TLS with a
PEM file of key and certificate as third argument. No test itself."""

from __future__ import annotations

import asyncio
import ssl
import sys

BLOCK = bytes(range(256)) * 256


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            n = int(head.split(b" ", 2)[1].split(b"/")[1])
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nCache-Control: max-age=3600\r\n"
                b'ETag: "%d"\r\nContent-Length: %d\r\n\r\n' % (n, n)
            )
            while n > 0:
                writer.write(BLOCK[:n])
                n -= min(n, len(BLOCK))
                await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError, ValueError, IndexError):
        pass
    finally:
        writer.close()


async def main() -> None:
    tls = None
    if len(sys.argv) > 3:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(sys.argv[3])
    server = await asyncio.start_server(serve, sys.argv[1], int(sys.argv[2]), ssl=tls)
    print("serving", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
