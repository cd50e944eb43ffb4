"""The control plane: catalogues in, jobs through SQL and Redis, results and their state out.

Owns settings, state, storage, catalogues, batches and the services around them. Refuses torch, diffusers,
transformers and the workers' code: it runs on a machine without a model.
"""
