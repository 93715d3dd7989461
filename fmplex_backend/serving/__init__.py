"""A backbone at work: requests in, batches over it, replies out."""
