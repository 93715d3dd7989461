"""What a careless or hostile hand sends to a server, each from a seed."""
