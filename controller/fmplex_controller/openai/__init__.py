"""OpenAI's HTTP API in front of a Triton server: its tasks are the models.

`serving` runs it, `app` has its doors, `chat`, `completions` and `embeddings` are what is asked and answered at each,
`tasks` is the way to the server: gRPC, as any client goes it. FastAPI and uvicorn come with the extra `openai`;
`options` alone can be imported without them.
"""
