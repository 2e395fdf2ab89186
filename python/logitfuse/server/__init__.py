"""The OpenAI API over HTTP: ``logitfuse serve``.

::

    uvicorn ──► LogMiddleware ──► CORS ──► keys, or names of this machine ──► JsonRoute ──► endpoint
                                                                                               │
    SSE or JSON ◄── Call ◄── event loop ◄── events of the Batcher's thread ◄── Exchange.submit ◄┘
"""
