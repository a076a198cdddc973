"""`dnpipefs top`: a cluster watched from a terminal, or told once to a script.

`sample` is what a look gives and what two looks give besides; `tables` makes rows and columns of it and
`report` text and JSON (all pure). `watcher` looks again and again, `follower` reads on in one topic, and
`screen` shows both and takes keys: the only module that knows the library of the terminal.
"""
