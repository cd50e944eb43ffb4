"""A server of Kontext Batch, from Python: batches submitted, watched and fetched over its API.

```python
with Client("https://kontext.example.com", key) as client:
    batch = client.submit_catalogue("photos/", Asked(preset="flat-lay"))
    client.wait(batch.id)
    client.export(batch.id, Path("flat-lays"))
```
Owns the wire: requests, retries, uploads, downloads, and the types of what comes back. The command line speaks to
servers through it. Refuses SQL and queues: it knows the API alone.
"""

from orchestrator.client.client import Client
from orchestrator.client.errors import ApiError
from orchestrator.client.shapes import Asked, Batch, Change, Counts, DryRun, Job
from orchestrator.client.submitting import Memory, Progress

__all__ = ["ApiError", "Asked", "Batch", "Change", "Client", "Counts", "DryRun", "Job", "Memory", "Progress"]
