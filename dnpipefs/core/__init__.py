"""Pure logic: keys, formats, framing, and the state machines of view, append and namespace.

Nothing in here does I/O, reads a clock, draws a random number or knows trio, etcd or FUSE. Events
go in, new state and decisions come out, so that properties and models can prove it at full speed.
"""
