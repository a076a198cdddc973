"""The mount as a process: composition root, signals, daemonizing, mount points."""

from dnpipefs.mount.background import start_in_background
from dnpipefs.mount.foreground import MountOptions, run_mount
from dnpipefs.mount.mountpoint import prepare_mountpoint, unmount

__all__ = ["MountOptions", "prepare_mountpoint", "run_mount", "start_in_background", "unmount"]
