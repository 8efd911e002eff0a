"""One machine with one GPU and no network: what trains, how fast, and where the time goes (`make gpu`)."""
