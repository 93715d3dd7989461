"""What a controller leaves on its host for people and bills: the log of events, and the ledger of usage.

Both are read by any number of processes. The ledger and each file of events have one writer at a time.
Neither is read to decide what is to be done.
"""
