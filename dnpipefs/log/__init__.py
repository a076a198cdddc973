"""The log service: append, view, read and reset topics on etcd.

`open_log` composes it. The decisions are the pure ones of `dnpipefs.core`; this package does the
I/O around them and owns the tasks.
"""
