"""Tells how each TCP connection to an address began, as a neighbour on the link sees it.

usage: listener.py INTERFACE PORT ADDRESS; prints "ready", listens until its input ends, prints JSON.
"""
import json
import select
import socket
import struct
import sys

interface, port, address = sys.argv[1], int(sys.argv[2]), socket.inet_aton(sys.argv[3])
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
link.bind((interface, 0))
print("ready", flush=True)
streams = {}  # (client's port, from the server?) -> {offset: bytes}
while True:
    ready, _, _ = select.select([link, sys.stdin], [], [])
    if link not in ready:
        break
    frame = link.recv(1 << 17)
    if frame[12:14] != b"\x08\x00" or frame[23] != 6:
        continue
    header = 14 + (frame[14] & 15) * 4
    length = struct.unpack("!H", frame[16:18])[0]
    source, target, sequence = struct.unpack("!HHI", frame[header:header + 8])
    start = header + (frame[header + 12] >> 4) * 4
    data = frame[start:14 + length]
    server = (frame[26:30], source) == (address, port)
    if not server and (frame[30:34], target) != (address, port):
        continue
    stream = streams.setdefault((target if server else source, server), {})
    if data:
        stream.setdefault(sequence, data)


def joined(stream):
    return b"".join(stream[sequence] for sequence in sorted(stream))


def version(hello):
    """The version that a ServerHello chose: its extension supported_versions (RFC 8446, 4.2.1)."""
    at = 5 + 4 + 2 + 32
    at += 1 + hello[at] + 2 + 1
    end = at + 2 + struct.unpack("!H", hello[at:at + 2])[0]
    at += 2
    while at < end:
        kind, size = struct.unpack("!HH", hello[at:at + 4])
        if kind == 43:
            return hello[at + 4:at + 4 + size].hex()
        at += 4 + size
    return hello[9:11].hex()


flows = []
for (client, server), stream in streams.items():
    back = joined(streams.get((client, True), {}))
    there = joined(stream)
    # Connections that were open before have no beginning to look at.
    if server or there[:1] == b"\x17" or not there:
        continue
    flows.append({"client": there[:2].hex(), "server": back[:2].hex(),
                  "version": version(back) if back[:2] == b"\x16\x03" else ""})
said = b"".join(joined(stream) for stream in streams.values())
print(json.dumps({"flows": flows, "plain": b"hello from" in said or b"GET /" in said}))
