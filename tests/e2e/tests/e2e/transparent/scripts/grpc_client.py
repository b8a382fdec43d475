# Calls the server at argv[1]: unary calls with trailers, an error status, and a stream in which each question waits for the
# answer to the one before, so that nothing may be held back on the way.
import queue
import sys

import grpc

options = [("grpc.enable_http_proxy", 0)]
with grpc.insecure_channel(sys.argv[1], options=options) as channel:
    say = channel.unary_unary("/echo.Echo/Say")
    for n in range(100):
        answer, call = say.with_call(b"%d" % n, timeout=20)
        assert answer == b"said %d" % n, answer
        assert ("served-by", "echo") in call.trailing_metadata(), call.trailing_metadata()
    large = bytes(range(256)) * 4096
    assert say(large, timeout=20) == b"said " + large

    questions = queue.SimpleQueue()
    answers = channel.stream_stream("/echo.Echo/Talk")(iter(questions.get, None), timeout=30)
    for n in range(500):
        questions.put(b"%d" % n)
        answer = next(answers)
        assert answer == b"heard %d" % n, answer
    questions.put(None)
    assert next(answers, None) is None
    assert answers.code() is grpc.StatusCode.OK, answers.code()

    try:
        channel.unary_unary("/echo.Echo/Nothing")(b"", timeout=20)
        raise AssertionError("an unknown method was served")
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED, error
print("all said and heard")
