# Talks to the server at argv[1]: its greeting, texts, binary messages, a ping, and the server's own way to close.
import asyncio
import sys

import websockets


async def main():
    async with websockets.connect(sys.argv[1], open_timeout=20) as socket:
        assert await socket.recv() == "welcome"
        for n in range(200):
            await socket.send(f"text {n}")
            assert await socket.recv() == f"text {n}"
        binary = bytes(range(256)) * 2000
        await socket.send(binary)
        assert await socket.recv() == binary
        await asyncio.wait_for(await socket.ping(), 20)
        await socket.send("enough")
        try:
            await socket.recv()
            raise AssertionError("it did not close")
        except websockets.ConnectionClosed as closed:
            assert closed.code == 4001 and closed.reason == "as you wish", closed
    print("all given back")


asyncio.run(asyncio.wait_for(main(), 40))
