"""What a controller leaves on its host for people and bills: the log of events, and the ledger of usage.

Both are written by one process at a time and read by any number. Neither is read to decide what is to be done.
"""
