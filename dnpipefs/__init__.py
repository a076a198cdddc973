"""Distributed named pipes: every topic of the cluster is a file, on etcd."""
