"""A TCP relay between a client and foreman that remembers what foreman sent: how a test sees bytes that clients drop."""

import socket
import threading

# One read; waiting bytes come one at a time.
READ_BYTES = 65_536


class Tap:
    """Listens on a free port for one test and relays each connection to `address`, both ways, closing what is closed."""

    def __init__(self, address):
        host, port = address.rsplit(":", 1)
        self.target = (host, int(port))
        self.sent = bytearray()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        """Relays connections until it is closed."""
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(self.target)
            threading.Thread(target=self.relay, args=(client, server, None), daemon=True).start()
            threading.Thread(target=self.relay, args=(server, client, self.sent), daemon=True).start()

    @staticmethod
    def relay(source, sink, memory):
        """Passes on what comes until it ends, then ends the other side of that direction."""
        try:
            while piece := source.recv(READ_BYTES):
                if memory is not None:
                    memory += piece
                sink.sendall(piece)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            source.close()
            sink.close()

    def close(self):
        """Takes no more connections; those that are open go on."""
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
