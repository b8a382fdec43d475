# Keeps one gRPC stream to argv[1] open, a question and its answer twenty times a second, until the file argv[2] is there.
import os
import queue
import sys
import time

import grpc

with grpc.insecure_channel(sys.argv[1], options=[("grpc.enable_http_proxy", 0)]) as channel:
    questions = queue.SimpleQueue()
    answers = channel.stream_stream("/echo.Echo/Talk")(iter(questions.get, None))
    n = 0
    while not os.path.exists(sys.argv[2]):
        questions.put(b"%d" % n)
        assert next(answers) == b"heard %d" % n
        if n == 0:
            print("open", flush=True)
        n += 1
        time.sleep(0.05)
    questions.put(None)
    assert next(answers, None) is None
    assert answers.code() is grpc.StatusCode.OK, answers.code()
print("lived", flush=True)
