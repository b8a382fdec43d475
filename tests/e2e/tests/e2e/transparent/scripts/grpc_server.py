# A gRPC server without generated code: Echo.Say answers one message, Echo.Talk each message of a stream.
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc


def say(request, context):
    context.set_trailing_metadata((("served-by", "echo"),))
    return b"said " + request


def talk(requests, context):
    for request in requests:
        yield b"heard " + request


class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        if details.method == "/echo.Echo/Say":
            return grpc.unary_unary_rpc_method_handler(say)
        if details.method == "/echo.Echo/Talk":
            return grpc.stream_stream_rpc_method_handler(talk)
        return None


server = grpc.server(ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((Echo(),))
server.add_insecure_port("[::]:" + sys.argv[1])
server.start()
server.wait_for_termination()
