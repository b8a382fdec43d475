# A WebSocket server that speaks first, gives back what it gets, and closes with its own code on "enough".
import asyncio
import sys

import websockets


async def serve(socket, *_):
    await socket.send("welcome")
    async for message in socket:
        if message == "enough":
            await socket.close(4001, "as you wish")
            return
        await socket.send(message)


async def main():
    async with websockets.serve(serve, None, int(sys.argv[1])):
        await asyncio.Future()


asyncio.run(main())
