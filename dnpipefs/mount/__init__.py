"""The mount as a process: composition root, signals, daemonizing, mount points."""

from dnpipefs.mount.background import start_in_background
from dnpipefs.mount.foreground import MountOptions, run_mount
from dnpipefs.mount.mountpoint import prepare_mountpoint, unmount
from dnpipefs.mount.status import MountStatus, State, mount_status, statuses

__all__ = [
    "MountOptions",
    "MountStatus",
    "State",
    "mount_status",
    "prepare_mountpoint",
    "run_mount",
    "start_in_background",
    "statuses",
    "unmount",
]
