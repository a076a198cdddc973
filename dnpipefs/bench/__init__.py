"""`dnpipefs bench`: how fast the mount is, beside raw etcd through the same client in the same run.

`figures` turns samples into figures and verdicts and `report` prints them, both pure; `measurements`
and `growth` say what is measured and how; `stage` sets up etcd, mounts and the processes that do the
work and takes all of it down again; `host` and `load` are the programs of those processes, `fill` makes
many topics in little time. These three are run with `python -m`, so the package itself imports nothing.
"""
