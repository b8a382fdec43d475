# Keeps one WebSocket to argv[1] open, a word there and back twenty times a second, until the file argv[2] is there.
import asyncio
import os
import sys

import websockets


async def main():
    async with websockets.connect(sys.argv[1], open_timeout=20) as socket:
        assert await socket.recv() == "welcome"
        print("open", flush=True)
        n = 0
        while not os.path.exists(sys.argv[2]):
            await socket.send(f"text {n}")
            assert await socket.recv() == f"text {n}"
            n += 1
            await asyncio.sleep(0.05)
    print("lived", flush=True)


asyncio.run(main())
