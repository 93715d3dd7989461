"""The controller over HTTP: status, events and usage, tasks loaded and unloaded, metrics, and a page for people.

FastAPI and uvicorn come with the extra `controller`; `options` alone can be imported without them.
"""
