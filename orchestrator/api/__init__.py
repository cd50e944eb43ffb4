"""The HTTP face of the control plane: JSON under `/v1`, health checks, sign-in; the pages join it as routers.

Owns who may call what, the shape of answers and of errors. Refuses to decide anything that the command line would
decide otherwise: both ask the same rooms.
"""
