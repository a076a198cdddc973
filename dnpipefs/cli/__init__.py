"""The command line: arguments, output and exit codes; `dnpipefs.api` and `dnpipefs.mount` do the work.

`program` puts the commands together and answers for their failures, `topics`, `groups`, `listing`,
`mounts`, `doctor` and `bench` are the commands, `workers` what `pull --group` does, `options` what they
share, `running` how one of them runs and is interrupted, `streams` the standard streams.
"""

from dnpipefs.cli.program import main

__all__ = ["main"]
