"""Nothing in this folder is a test."""

collect_ignore_glob = ["*"]
