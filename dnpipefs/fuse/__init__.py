"""The FUSE adapter: the only part of dnpipefs that knows pyfuse3 and errno."""
