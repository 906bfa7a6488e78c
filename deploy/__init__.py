"""The edge: the Serve application, the HTTP API, the command line, the cluster files."""
