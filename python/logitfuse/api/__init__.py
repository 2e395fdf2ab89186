"""The OpenAI API without HTTP: bodies in, jobs for a batcher, objects and problems out."""
