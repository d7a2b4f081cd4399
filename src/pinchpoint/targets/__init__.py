"""What to say to a service and how to read its answer. Sans-IO: bytes in, bytes out, no sockets, no clocks."""
