"""What a careless or hostile hand puts into a repository or sends to a server, each from a seed."""
